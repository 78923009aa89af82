"""Comparisons to token arrays: render, tokenise, segment and shorten, in batches, with a progress bar."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import numpy as np

from srm.data.boundary import BadRows, as_bad_row
from srm.data.encode import ResponseEncoder
from srm.data.overlong import EncodedComparison, OverlongPolicy, OverlongReport, length_limit, shorten, way_out
from srm.data.schema import Comparison, RowProblem
from srm.data.turns import Turns
from srm.errors import UserError
from srm.packing import ResponseIds
from srm.packing.batch import IntArray

__all__ = ["encode_comparisons"]

# Rows tokenised at once: enough for the tokenizer's threads, few enough for a bar that moves.
_BATCH = 128


def encode_comparisons(
    comparisons: Sequence[Comparison],
    encoder: ResponseEncoder,
    *,
    max_length: int | None,
    positions: int | None = None,
    overlong: OverlongPolicy = "drop",
    skip_bad_rows: bool = False,
    progress: bool | None = None,
) -> tuple[list[EncodedComparison], OverlongReport]:
    """`comparisons` as tokens, in order, none longer than `max_length`, and the account of those that were.

    Args:
        comparisons: from `read_comparisons`.
        encoder: the model's, `model.encoder`.
        max_length: limit on the tokens of prompt + response, for each response; None for no limit.
        positions: what the model can read, `model.config.max_positions`; a higher `max_length` counts as this.
        overlong: what happens to a longer row: `drop`, `truncate_prompt`, `truncate_response` or `error`; see `overlong.shorten`.
        skip_bad_rows: leave out rows that the chat template refuses or that no tokens come from, with a warning that lists the first,
            instead of stopping at the first one.
        progress: draw a progress bar on stderr. None: where stderr is a terminal.

    Returns:
        The rows that stay, and the account of all of them.

    Raises:
        UserError: a row that cannot be encoded or that the policy cannot shorten (names the row), or no row is left.
        ValueError: an unknown policy, or a limit below 2.
    """
    if overlong not in get_args(OverlongPolicy):
        raise ValueError(f"encode_comparisons: `overlong` must be one of {', '.join(get_args(OverlongPolicy))}, got {overlong!r}.")
    if max_length is not None and max_length < 2:
        raise ValueError(f"encode_comparisons: `max_length` must be at least 2 (a prompt token and a response token), got {max_length}.")
    limit = length_limit(max_length, positions)
    kept: list[EncodedComparison] = []
    reasons: Counter[str] = Counter()
    longest = 0
    memory = _Memory(encoder)
    bad = BadRows("the rows", skip_bad_rows)
    with _progress(len(comparisons), sys.stderr.isatty() if progress is None else progress) as advance:
        for start in range(0, len(comparisons), _BATCH):
            batch = comparisons[start : start + _BATCH]
            for row in _encoded(batch, memory, bad):
                longest = max(longest, row.longest)
                result = shorten(row, max_length=max_length, positions=positions, policy=overlong, num_closing=len(encoder.boundary_ids))
                reasons[result.reason] += 1
                if result.row is not None:
                    kept.append(result.row)
            advance(len(batch))
    bad.report(len(comparisons))
    bad.require_some(len(comparisons))
    num_rows = len(comparisons) - bad.count
    report = OverlongReport(
        policy=overlong,
        max_length=limit,
        rows=num_rows,
        overlong=num_rows - reasons["fits"],
        dropped=reasons["dropped"],
        shortened=reasons["shortened"],
        indistinct=reasons["indistinct"],
        longest=longest,
    )
    if comparisons and not kept:
        raise UserError(f"no row is left: {report}. {way_out(limit, positions, 'or choose another --overlong.')}")
    return kept, report


def _encoded(comparisons: Sequence[Comparison], memory: _Memory, bad: BadRows) -> Sequence[EncodedComparison]:
    """The comparisons as arrays, in one batch; one by one where something is wrong with one of them."""
    try:
        return memory.encode(comparisons)
    except Exception:
        rows = []
        for comparison in comparisons:
            try:
                rows += memory.encode([comparison])
            except MemoryError:
                raise
            except Exception as error:
                bad.add(as_bad_row(comparison.where, error))
        return rows


class _Memory:
    """An encoder that encodes no text twice: preference data asks a prompt, and shows a response, several times over."""

    def __init__(self, encoder: ResponseEncoder) -> None:
        self._encoder = encoder
        self._prompts: dict[str, IntArray] = {}
        self._responses: dict[str | Turns, ResponseIds] = {}

    def encode(self, comparisons: Sequence[Comparison]) -> list[EncodedComparison]:
        """The comparisons as arrays; equal texts share theirs."""
        read = [list(self._encoder.read_each(comparison.prompt, comparison.responses)) for comparison in comparisons]
        self._add_prompts([prompt for answers in read for prompt, _ in answers])
        self._add_responses([answer for answers in read for _, answer in answers])
        return [self._comparison(comparison, answers) for comparison, answers in zip(comparisons, read, strict=True)]

    def _comparison(self, comparison: Comparison, answers: Sequence[tuple[str, str | Turns]]) -> EncodedComparison:
        prompts = [self._prompts[prompt] for prompt, _ in answers]
        responses = [self._responses[answer] for _, answer in answers]
        prompt_ids = prompts[0]
        if any(prompt is not prompt_ids for prompt in prompts):
            prompt_ids = prompt_ids[: _num_common(prompts)]
            if not len(prompt_ids):
                raise RowProblem(
                    "its conversations do not share their first token, and a row needs one for all",
                    "Give them the same system message, or use a tokenizer whose template opens with a token of its own",
                )
            responses = [_with_own_prompt(prompt[len(prompt_ids) :], response) for prompt, response in zip(prompts, responses, strict=True)]
        return EncodedComparison(prompt_ids=prompt_ids, responses=tuple(responses), pairs=comparison.pairs, where=comparison.where)

    def _add_prompts(self, rendered: list[str]) -> None:
        new = [prompt for prompt in dict.fromkeys(rendered) if prompt not in self._prompts]
        for prompt, ids in zip(new, self._encoder.encode_prompts(new), strict=True):
            self._prompts[prompt] = _shared(np.array(ids, dtype=np.int32))

    def _add_responses(self, answers: list[str | Turns]) -> None:
        new = [answer for answer in dict.fromkeys(answers) if answer not in self._responses]
        for answer, response in zip(new, self._encoder.encode_responses(new), strict=True):
            # Without its text, which nobody asks for again.
            self._responses[answer] = ResponseIds(
                ids=_shared(response.ids), sentence_ends=_shared(response.sentence_ends), opening=response.opening
            )


def _num_common(rows: Sequence[IntArray]) -> int:
    """How many tokens all of `rows` begin with."""
    length = min(map(len, rows))
    same = np.all([row[:length] == rows[0][:length] for row in rows], axis=0)
    return length if same.all() else int(same.argmin())


def _with_own_prompt(prompt: IntArray, response: ResponseIds) -> ResponseIds:
    """A response that opens with what only it answers: tokens of no sentence, behind which its first boundary is."""
    first = np.int32(len(prompt))
    return ResponseIds(
        ids=np.concatenate([prompt, response.ids]), sentence_ends=response.sentence_ends + first, opening=len(prompt) + response.opening
    )


def _shared(array: IntArray) -> IntArray:
    """`array`, which several rows hold, so that none may write into it."""
    array.setflags(write=False)
    return array


@contextmanager
def _progress(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Tokenising"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
