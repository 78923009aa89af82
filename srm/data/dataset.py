"""Comparisons to token arrays: render, tokenise, segment and shorten, in batches, with a progress bar."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import get_args

import numpy as np

from srm.data.encode import ResponseEncoder
from srm.data.messages import response_text
from srm.data.overlong import EncodedComparison, OverlongPolicy, OverlongReport, length_limit, shorten, way_out
from srm.data.schema import Comparison, RowProblem
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
    progress: bool | None = None,
) -> tuple[list[EncodedComparison], OverlongReport]:
    """`comparisons` as tokens, in order, none longer than `max_length`, and the account of those that were.

    Args:
        comparisons: from `read_comparisons`.
        encoder: the model's, `model.encoder`.
        max_length: limit on the tokens of prompt + response, for each response; None for no limit.
        positions: what the model can read, `model.config.max_positions`; a higher `max_length` counts as this.
        overlong: what happens to a longer row: `drop`, `truncate_prompt`, `truncate_response` or `error`; see `overlong.shorten`.
        progress: draw a progress bar on stderr. None: where stderr is a terminal.

    Returns:
        The rows that stay, and the account of all of them.

    Raises:
        UserError: a row that the chat template refuses or that the policy cannot shorten (names the row), or no row is left.
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
    with _progress(len(comparisons), sys.stderr.isatty() if progress is None else progress) as advance:
        for start in range(0, len(comparisons), _BATCH):
            batch = memory.encode(comparisons[start : start + _BATCH])
            for row in batch:
                longest = max(longest, row.longest)
                result = shorten(row, max_length=max_length, positions=positions, policy=overlong, num_closing=len(encoder.boundary_ids))
                reasons[result.reason] += 1
                if result.row is not None:
                    kept.append(result.row)
            advance(len(batch))
    report = OverlongReport(
        policy=overlong,
        max_length=limit,
        rows=len(comparisons),
        overlong=len(comparisons) - reasons["fits"],
        dropped=reasons["dropped"],
        shortened=reasons["shortened"],
        indistinct=reasons["indistinct"],
        longest=longest,
    )
    if comparisons and not kept:
        raise UserError(f"no row is left: {report}. {way_out(limit, positions, 'or choose another --overlong.')}")
    return kept, report


class _Memory:
    """An encoder that encodes no text twice: preference data asks a prompt, and shows a response, several times over."""

    def __init__(self, encoder: ResponseEncoder) -> None:
        self._encoder = encoder
        self._prompts: dict[str, IntArray] = {}
        self._responses: dict[str, ResponseIds] = {}

    def encode(self, comparisons: Sequence[Comparison]) -> list[EncodedComparison]:
        """The comparisons as arrays; equal texts share theirs."""
        rendered, texts = [], []
        for comparison in comparisons:
            with _named(comparison.where):
                rendered.append(self._encoder.format.render(comparison.prompt))
                texts.append([response_text(response, "response") for response in comparison.responses])
        self._add_prompts(rendered)
        self._add_responses(comparisons, texts)
        return [
            EncodedComparison(
                prompt_ids=self._prompts[prompt],
                responses=tuple(self._responses[text] for text in answers),
                pairs=comparison.pairs,
                where=comparison.where,
            )
            for comparison, prompt, answers in zip(comparisons, rendered, texts, strict=True)
        ]

    def _add_prompts(self, rendered: list[str]) -> None:
        new = [prompt for prompt in dict.fromkeys(rendered) if prompt not in self._prompts]
        for prompt, ids in zip(new, self._encoder.encode_prompts(new), strict=True):
            self._prompts[prompt] = _shared(np.array(ids, dtype=np.int32))

    def _add_responses(self, comparisons: Sequence[Comparison], texts: list[list[str]]) -> None:
        new = [text for text in dict.fromkeys(chain.from_iterable(texts)) if text not in self._responses]
        try:
            encoded = self._encoder.encode_responses(new)
        except UserError:
            # Find out which row it was.
            for comparison, answers in zip(comparisons, texts, strict=True):
                with _named(comparison.where):
                    self._encoder.encode_responses(answers)
            raise
        for text, response in zip(new, encoded, strict=True):
            # Without its text, which nobody asks for again.
            self._responses[text] = ResponseIds(
                ids=_shared(response.ids), sentence_ends=_shared(response.sentence_ends), opening=response.opening
            )


def _shared(array: IntArray) -> IntArray:
    """`array`, which several rows hold, so that none may write into it."""
    array.setflags(write=False)
    return array


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Put the row in front of what a user reads."""
    try:
        yield
    except RowProblem as problem:
        raise UserError(f"{where}: {problem}. {problem.fix}.") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


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
