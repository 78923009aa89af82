"""Score a file of responses into a file of rewards: streamed, in order, and resumable after any interruption.

The output is its own progress record: a line is a scored response, lines are in input order, and a batch is on disk before the next one
runs. To resume is to drop a half-written last line, check that each line belongs to its row of the input, and go on after the last one. A
line belongs to a row whose id, prompt and response it was scored for: it holds the id, and a digest of the other two.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from srm.data import OverlongPolicy, ResponseRow, read_responses
from srm.errors import UserError, check_choice
from srm.packing import PackingMode, PromptGroup
from srm.runs.folders import write_whole
from srm.runs.lock import hold
from srm.runs.places import check_files
from srm.scoring.guards import require_finite
from srm.scoring.lines import ANEW, check_line, read_scores, write_scores
from srm.scoring.protocol import RewardModel
from srm.scoring.results import ScoredResponse
from srm.scoring.run import score_groups
from srm.scoring.text import OVERLONG, encode_groups, read_off_group

__all__ = [
    "RowSettings",
    "ScoreFileSummary",
    "ScoredRows",
    "append_scored",
    "append_scores",
    "by_prompt",
    "check_identity",
    "check_output",
    "check_resumed",
    "check_written_by_us",
    "drop_unfinished_line",
    "meta_path",
    "prepare_output",
    "read_record",
    "score_file",
    "score_rows",
]

# Rows with their scores, some at a time.
ScoredRows = list[tuple[ResponseRow, ScoredResponse]]

# A prompt group is run in one batch; more responses than this to one prompt are split.
_LARGEST_GROUP = 64
_DIGEST = re.compile("(sha256:)?[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """How rows are scored.

    Attributes:
        overlong: what happens to a response that is too long with its prompt; see `srm.scoring.text.encode_groups`.
        max_length: longest prompt + response in tokens; never more than the backbone's own limit.
        packing: `shared`, `packed` or `none` by name, or None; see `SentenceRewardModel.packing_mode`.
        tokens_per_batch: upper bound on the tokens of a pass, padding included.

    Raises:
        UserError: another `overlong` or `packing`.
    """

    overlong: OverlongPolicy
    max_length: int | None
    packing: PackingMode | None
    tokens_per_batch: int

    def __post_init__(self) -> None:
        check_choice("scoring rows: `overlong`", self.overlong, OVERLONG)
        if self.packing is not None:
            check_choice("scoring rows: `packing`", self.packing, get_args(PackingMode))

    def decisive(self) -> dict[str, Any]:
        """Those that a score depends on; the others only round differently."""
        return {"overlong": self.overlong, "max_length": self.max_length}


@dataclass(frozen=True, kw_only=True)
class ScoreFileSummary:
    """What a call has done.

    Attributes:
        num_scored: responses scored by this call.
        num_resumed: responses that an earlier call had scored.
    """

    num_scored: int
    num_resumed: int


def score_file(
    model: RewardModel,
    source: str,
    output: Path,
    *,
    split: str = "train",
    identity: dict[str, Any],
    settings: RowSettings,
    overwrite: bool = False,
    skip_bad_rows: bool = False,
    left_out: Container[int] = frozenset(),
    on_scored: Callable[[int], None] = lambda count: None,
) -> ScoreFileSummary:
    """Write one JSON line a response of `source` to `output`.

    Args:
        model: the reward model.
        source: a file, a folder, or a name on the hub, as in `srm.data.read_responses`.
        output: the JSONL file; what it holds already is not scored again.
        split: as in `srm.data.read_responses`.
        identity: what the scores depend on beside rows and settings (model, input), JSON; kept beside the output, and a resumed call
            must agree.
        settings: how rows are scored.
        overwrite: begin anew where `output` exists.
        skip_bad_rows: as in `srm.data.read_responses`.
        left_out: as in `srm.data.read_responses`.
        on_scored: called with the number of responses just written, the resumed ones first.

    Raises:
        UserError: `output` exists and belongs to other settings or other rows, or another run is writing it; a row that cannot be scored.
    """
    check_files({"output": output}, data={"source": source}, models={})
    with hold(output):
        num_resumed = prepare_output(output, identity | settings.decisive(), overwrite=overwrite)
        rows = read_responses(source, split=split, skip_bad_rows=skip_bad_rows, left_out=left_out)
        num_scored = append_scores(model, rows, output, num_resumed, settings, on_scored)
    return ScoreFileSummary(num_scored=num_scored, num_resumed=num_resumed)


def append_scores(
    model: RewardModel,
    rows: Iterator[ResponseRow],
    output: Path,
    num_resumed: int,
    settings: RowSettings,
    on_scored: Callable[[int], None],
) -> int:
    """Score the rows that `output` does not hold yet, and append them.

    Args:
        model: the reward model.
        rows: all rows of the input, the first `num_resumed` included.
        output: the JSONL file.
        num_resumed: responses that `output` holds already.
        settings: how rows are scored.
        on_scored: called with the number of responses just written, the resumed ones first.

    Returns:
        How many responses were scored.

    Raises:
        UserError: `output` holds scores of other rows; a row that cannot be scored.
    """
    return append_scored(partial(score_rows, model, settings=settings), rows, output, num_resumed, on_scored)


def append_scored(
    score: Callable[[Iterator[ResponseRow]], Iterable[ScoredRows]],
    rows: Iterator[ResponseRow],
    output: Path,
    num_resumed: int,
    on_scored: Callable[[int], None],
) -> int:
    """`append_scores` with whatever scores rows.

    Args:
        score: takes the rows that are left, in order, and gives them back with their scores.
        rows: all rows of the input, the first `num_resumed` included.
        output: the JSONL file.
        num_resumed: responses that `output` holds already.
        on_scored: called with the number of responses just written, the resumed ones first.

    Returns:
        How many responses were scored.

    Raises:
        UserError: as `append_scores`.
    """
    check_resumed(output, rows, num_resumed)
    on_scored(num_resumed)
    num_scored = 0
    with output.open("a", encoding="utf-8") as file:
        for scored in score(rows):
            write_scores(file, scored)
            num_scored += len(scored)
            on_scored(len(scored))
    return num_scored


def score_rows(model: RewardModel, rows: Iterable[ResponseRow], settings: RowSettings) -> Iterator[ScoredRows]:
    """Score rows, in order.

    Args:
        model: the reward model.
        rows: taken as they are needed.
        settings: how they are scored.

    Returns:
        Rows with their scores, some at a time, as soon as they have run.

    Raises:
        UserError: a row that cannot be scored.
    """
    waiting: deque[tuple[list[ResponseRow], PromptGroup]] = deque()

    def encoded() -> Iterator[PromptGroup]:
        for same_prompt in by_prompt(rows):
            pending = iter(same_prompt)
            texts, where = [row.response for row in same_prompt], [row.where for row in same_prompt]
            for group in encode_groups(
                model, same_prompt[0].prompt, texts, where=where, max_length=settings.max_length, overlong=settings.overlong
            ):
                waiting.append((list(islice(pending, len(group.responses))), group))
                yield group

    for scores in score_groups(model, encoded(), tokens_per_batch=settings.tokens_per_batch, packing=settings.packing):
        same_prompt, group = waiting.popleft()
        require_finite(model, scores, (row.where for row in same_prompt))
        yield list(zip(same_prompt, read_off_group(group, scores), strict=True))


def meta_path(output: Path) -> Path:
    """Where the settings that `output` was written with are kept."""
    return output.with_name(output.name + ".meta.json")


def prepare_output(output: Path, identity: dict[str, Any], *, overwrite: bool) -> int:
    """Make `output` ready to be appended to.

    Args:
        output: the JSONL file.
        identity: all that the scores depend on.
        overwrite: delete what is there.

    Returns:
        How many responses it holds already.

    Raises:
        UserError: `output` was written by something else, or with other settings.
    """
    meta = meta_path(output)
    if overwrite:
        output.unlink(missing_ok=True)
        meta.unlink(missing_ok=True)
    check_output(output, identity)
    if not meta.exists() or read_record(meta) != identity:
        write_whole(meta, json.dumps(identity, indent=2) + "\n")
    return drop_unfinished_line(output) if output.exists() else 0


def check_output(output: Path, identity: dict[str, Any]) -> None:
    """Look whether `output` can be gone on with; commands ask before they load a model.

    Args:
        output: the JSONL file, which need not be there.
        identity: as in `prepare_output`.

    Raises:
        UserError: `output` was written by something else, or with other settings.
    """
    check_written_by_us(output)
    meta = meta_path(output)
    if meta.exists():
        check_identity(output, read_record(meta), identity)


def check_written_by_us(output: Path) -> None:
    """Refuse an `output` that another program wrote.

    Args:
        output: the JSONL file, which need not be there.

    Raises:
        UserError: it is there, without the record of a run beside it.
    """
    if output.exists() and not meta_path(output).exists():
        raise UserError(f"{output}: exists and was not written by srm-score. Choose another --output, or pass --overwrite to replace it.")


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object that an earlier run left.

    Args:
        path: the file.

    Raises:
        UserError: it holds something else.
    """
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path}: is not what srm-score writes, so the file was edited or cut. {ANEW}")
    return record


def check_identity(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare the settings that `output` was begun with to those of this call.

    A run that stops at a row that is too long can go on with a larger limit or another `overlong`: what it has scored was not too long.

    Args:
        output: the file, for the message.
        before: the settings kept beside it.
        now: those of this call.

    Raises:
        UserError: they differ.
    """
    if before.get("overlong") == "error" and _allows(now.get("max_length"), before.get("max_length")):
        before = before | {key: now[key] for key in ("overlong", "max_length") if key in now}
    names = sorted(before.keys() | now.keys())
    changed = [_change(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{output}: was begun with other settings ({'; '.join(changed[:3])}{more}). Use those, choose another --output, or pass "
            "--overwrite."
        )


def _allows(now: int | None, before: int | None) -> bool:
    """Whether a limit is no lower than it was."""
    return now is None or (before is not None and now >= before)


def _change(name: str, before: Any, now: Any) -> str:
    if any(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (before, now)):
        # Nobody can compare 64 digits.
        return f"{name} is new" if before is None else f"{name} is gone" if now is None else f"{name} has other contents now"
    return f"{name} was {before!r}, is {now!r}"


def drop_unfinished_line(output: Path) -> int:
    """Cut what follows the last line end; the number of lines that stay."""
    num_lines = end = 0
    with output.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            num_lines += 1
            end += len(line)
        file.truncate(end)
    return num_lines


def check_resumed(output: Path, rows: Iterator[ResponseRow], num_resumed: int) -> None:
    """Advance `rows` past what is scored already.

    Args:
        output: the JSONL file.
        rows: all rows of the input.
        num_resumed: responses that `output` holds.

    Raises:
        UserError: `output` holds other rows, or not so many; or the input has fewer.
    """
    lines = islice(read_scores(output), num_resumed) if num_resumed else iter(())
    for number in range(1, num_resumed + 1):
        line, row = next(lines, None), next(rows, None)
        if line is None:
            raise UserError(f"{output}: holds {number - 1} responses in place of {num_resumed}, so it was edited or cut. {ANEW}")
        if row is None:
            raise UserError(
                f"{output}: holds {num_resumed} responses, and the input has only {number - 1} now. The input has changed since. {ANEW}"
            )
        check_line(output, number, line, row)


def by_prompt(rows: Iterable[ResponseRow]) -> Iterator[list[ResponseRow]]:
    """Rows that follow each other and have one prompt, together; at most so many as run in one batch.

    Args:
        rows: taken as they are needed.
    """
    group: list[ResponseRow] = []
    for row in rows:
        if group and (row.prompt != group[0].prompt or len(group) == _LARGEST_GROUP):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
