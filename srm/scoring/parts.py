"""Score a file with several processes, on one machine or many that share a disk.

The input's rows are cut into parts of equal size, and part `i` belongs to process `i` modulo their number. A part is a file of its own
beside the output, written like a whole output (score_file.py) and renamed when it is done. Whoever finds all parts done joins them into
the output, in order, and renames that into place. No process waits for another or talks to it, so one that is killed loses nothing that is
on the disk: run the command again, with as many processes as are there. Each holds the output under its rank, which keeps out other runs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from srm.data import ResponseRow, read_responses
from srm.errors import UserError
from srm.runs.folders import write_whole
from srm.runs.lock import hold
from srm.runs.places import check_files
from srm.scoring.file import (
    RowSettings,
    ScoreFileSummary,
    append_scores,
    check_identity,
    check_resumed,
    drop_unfinished_line,
    meta_path,
    read_record,
)
from srm.scoring.protocol import RewardModel

__all__ = ["parts_folder", "score_parts"]

# Rows of a part: about this many parts a process, for an even end, within limits that keep batches full and files few.
_PARTS_PER_PROCESS, _FEWEST_ROWS, _MOST_ROWS = 8, 32, 2048


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the first process writes down, and all others, later runs included, go by.

    first, first_bytes: rows that the output held before, from a run by one process, and their size. num_rows: of the input.
    part_rows: rows of each part but the last.
    """

    first: int
    first_bytes: int
    num_rows: int
    part_rows: int

    @property
    def num_parts(self) -> int:
        return -(-(self.num_rows - self.first) // self.part_rows)

    def rows_of(self, part: int) -> tuple[int, int]:
        """First row of a part, and the one after its last."""
        start = self.first + part * self.part_rows
        return start, min(start + self.part_rows, self.num_rows)


def parts_folder(output: Path) -> Path:
    """Where the parts of an unfinished `output` are."""
    return output.with_name(output.name + ".parts")


def score_parts(
    model: RewardModel,
    source: str,
    output: Path,
    *,
    process: int,
    num_processes: int,
    num_rows: int,
    split: str = "train",
    identity: dict[str, Any],
    settings: RowSettings,
    skip_bad_rows: bool = False,
    left_out: Container[int] = frozenset(),
    on_scored: Callable[[int], None] = lambda count: None,
) -> ScoreFileSummary | None:
    """Do this process's share of `source`.

    Args:
        model: the reward model.
        source: as in `score_file`.
        output: as in `score_file`; parts lie in a folder beside it until all are done.
        process: which one this is, from 0.
        num_processes: how many there are.
        num_rows: responses in `source`.
        split: as in `score_file`.
        identity: as in `score_file`.
        settings: how rows are scored.
        skip_bad_rows: as in `score_file`.
        left_out: as in `score_file`.
        on_scored: as in `score_file`.

    Returns:
        The summary, from the process that completed `output`; None from the others.

    Raises:
        UserError: as `score_file`.
    """
    identity = identity | settings.decisive()
    check_files({"output": output}, data={"source": source}, models={})
    with hold(output, rank=process, num_ranks=num_processes):
        rows = read_responses(source, split=split, skip_bad_rows=skip_bad_rows, left_out=left_out)
        plan, first = _agree(output, identity, num_rows, num_processes)
        # What a run by one process has left.
        check_resumed(output, rows, first)
        if plan is None:
            return ScoreFileSummary(num_scored=0, num_resumed=num_rows)
        num_scored, position = 0, first
        for part in range(process, plan.num_parts, num_processes):
            start, stop = plan.rows_of(part)
            _skip(rows, start - position)
            position = stop
            path = _part_path(output, part)
            try:
                num_scored += _score_part(model, islice(rows, stop - start), stop - start, path, settings, on_scored)
            except FileNotFoundError:
                if _num_lines(output) != num_rows:
                    raise
                break  # another process has joined the parts of an earlier run
        if not _join(output, plan, identity):
            return None
        return ScoreFileSummary(num_scored=num_scored, num_resumed=num_rows - num_scored)


def _agree(output: Path, identity: dict[str, Any], num_rows: int, num_processes: int) -> tuple[_Plan | None, int]:
    """(the plan that is there, or a new one; None where `output` is whole. Rows that `output` holds).

    All processes write the same plan, so it does not matter who does.
    """
    folder = parts_folder(output)
    meta = meta_path(output)
    if meta.exists():
        check_identity(output, read_record(meta), identity)
    elif output.exists():
        raise UserError(f"{output}: exists and was not written by srm-score. Choose another --output, or delete it.")
    first = _num_lines(output)
    if first >= num_rows:
        shutil.rmtree(folder, ignore_errors=True)
        return None, first
    path = folder / "plan.json"
    if path.exists():
        plan = _read_plan(output, path, identity)
    else:
        part_rows = min(max((num_rows - first) // (num_processes * _PARTS_PER_PROCESS), _FEWEST_ROWS), _MOST_ROWS)
        plan = _Plan(first=first, first_bytes=_whole_bytes(output), num_rows=num_rows, part_rows=part_rows)
        write_whole(path, json.dumps({"identity": identity, "plan": asdict(plan)}, indent=2) + "\n")
    if plan.num_rows != num_rows:
        raise UserError(
            f"{output}: was begun on {plan.num_rows} responses, and the input has {num_rows} now. "
            f"Choose another --output, or delete {folder}."
        )
    return plan, plan.first


def _read_plan(output: Path, path: Path, identity: dict[str, Any]) -> _Plan:
    found = read_record(path)
    try:
        before, plan = dict(found["identity"]), _Plan(**found["plan"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: was edited. Choose another --output, or delete {path.parent}.") from None
    check_identity(output, before, identity)
    if before != identity:
        # Settings that the parts so far do not depend on, and the next ones may.
        write_whole(path, json.dumps({"identity": identity, "plan": asdict(plan)}, indent=2) + "\n")
    return plan


def _score_part(
    model: RewardModel,
    rows: Iterator[ResponseRow],
    num_rows: int,
    path: Path,
    settings: RowSettings,
    on_scored: Callable[[int], None],
) -> int:
    """Rows that were scored now, and not there already."""
    if path.exists():
        check_resumed(path, rows, num_rows)
        on_scored(num_rows)
        return 0
    growing = path.with_suffix(".growing")
    num_resumed = drop_unfinished_line(growing) if growing.exists() else 0
    num_scored = append_scores(model, rows, growing, num_resumed, settings, on_scored)
    growing.replace(path)
    return num_scored


def _join(output: Path, plan: _Plan, identity: dict[str, Any]) -> bool:
    """Join the parts into `output` if all are there. Should two processes do it at once, they write the same."""
    paths = [_part_path(output, part) for part in range(plan.num_parts)]
    joined = output.with_name(f"{output.name}.{os.getpid()}.partial")
    if not all(path.exists() for path in paths):
        # None left: another process was quicker.
        return False
    try:
        with joined.open("wb") as whole:
            if plan.first:
                with output.open("rb") as before:
                    whole.write(before.read(plan.first_bytes))
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole)
            whole.flush()
            os.fsync(whole.fileno())
    except FileNotFoundError:
        joined.unlink(missing_ok=True)
        return False
    write_whole(meta_path(output), json.dumps(identity, indent=2) + "\n")
    joined.replace(output)
    shutil.rmtree(parts_folder(output), ignore_errors=True)
    return True


def _part_path(output: Path, part: int) -> Path:
    return parts_folder(output) / f"{part:06d}.jsonl"


def _skip(rows: Iterator[ResponseRow], count: int) -> None:
    next(islice(rows, count, count), None)


def _num_lines(path: Path) -> int:
    """Whole lines of a file that may not be there."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def _whole_bytes(path: Path) -> int:
    """Size of those lines."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))
