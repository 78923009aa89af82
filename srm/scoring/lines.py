"""The lines of a file of scores, one a response: what stands in them, whose they are, how they are read and written."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

from srm.data import ResponseRow
from srm.errors import UserError
from srm.scoring.results import ScoredResponse

__all__ = ["ANEW", "append_lines", "check_line", "count_truncated", "read_scores", "read_scores_of", "score_line", "write_scores"]

# What a line must have, and each of its sentences; and which of those are numbers.
_LINE = {"id", "digest", "reward", "prompt_reward", "prompt_weight", "sentences"}
_NUMBERS = ("start", "end", "reward", "weight", "weighted_reward")
_SENTENCE = {"text", *_NUMBERS}
ANEW = "Choose another output, or pass --overwrite to score all anew."


def read_scores(output: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that `score_file` wrote.

    Args:
        output: the JSONL file.

    Raises:
        UserError: a line is not one that `score_file` writes.
    """
    with output.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                sound = _is_score(line)
            except (ValueError, OverflowError, RecursionError):
                sound = False
            if not sound:
                raise UserError(f"{output} line {number}: is not what srm-score writes, so the file was edited or cut. {ANEW}")
            yield line


def read_scores_of(output: Path, rows: Iterable[ResponseRow]) -> Iterator[tuple[ResponseRow, dict[str, Any]]]:
    """Each row with its line of a file that `score_file` wrote.

    Args:
        output: the JSONL file.
        rows: all rows of the input.

    Raises:
        UserError: the file does not hold exactly these rows, once each and in order.
    """
    for number, (row, line) in enumerate(zip_longest(rows, read_scores(output)), 1):
        if row is None:
            raise UserError(f"{output}: holds more than the {number - 1} responses of the input. {ANEW}")
        if line is None:
            raise UserError(f"{output}: ends after {number - 1} responses, and the input has more ({row.where}). Run the command again.")
        check_line(output, number, line, row)
        yield row, line


def count_truncated(output: Path) -> int:
    """How many responses of a file were cut, or their prompts.

    Args:
        output: the JSONL file.

    Raises:
        UserError: as `read_scores`.
    """
    return sum("truncated" in line for line in read_scores(output))


def _is_score(line: Any) -> bool:
    sentences = line["sentences"] if isinstance(line, dict) and line.keys() >= _LINE else None
    if (
        not isinstance(sentences, list)
        or line.get("truncated", True) is not True
        or not all(isinstance(each, dict) and each.keys() == _SENTENCE for each in sentences)
    ):
        return False
    numbers = [
        *(line[name] for name in ("reward", "prompt_reward", "prompt_weight")),
        *(each[name] for each in sentences for name in _NUMBERS),
    ]
    return all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)


def check_line(output: Path, number: int, line: dict[str, Any], row: ResponseRow) -> None:
    """Refuse a line that was not written for `row`.

    Args:
        output: the file.
        number: of the line.
        line: from `read_scores`.
        row: of the input, in its place.

    Raises:
        UserError: another id, prompt or response.
    """
    if line["id"] != row.id:
        found = f"holds id {line['id']!r}, and the input has {row.id!r} there"
    elif line["digest"] != _digest(row):
        found = f"holds the score that {row.id!r} had with another prompt or response"
    else:
        return
    raise UserError(f"{output} line {number}: {found} ({row.where}). The input has changed since. {ANEW}")


def _digest(row: ResponseRow) -> str:
    """Of the prompt, with what its template is given beside the messages, and of the response, in whatever form the row has them."""
    content = json.dumps([row.prompt, getattr(row.prompt, "settings", {}), row.response], sort_keys=True, default=repr)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def score_line(row: ResponseRow, response: ScoredResponse) -> str:
    """What `srm-score` writes of a response.

    Args:
        row: of the input.
        response: its scores.

    Returns:
        The line, JSON.
    """
    return json.dumps({"id": row.id, **response.to_dict(), "digest": _digest(row)}, ensure_ascii=False, allow_nan=False) + "\n"


def write_scores(file: IO[str], scored: Iterable[tuple[ResponseRow, ScoredResponse]]) -> None:
    """Append a line a response, and put them on the disk.

    Args:
        file: open for writing.
        scored: each row with its scores.
    """
    append_lines(file, (score_line(row, response) for row, response in scored))


def append_lines(file: IO[str], lines: Iterable[str]) -> None:
    """Append lines, and put them on the disk.

    Args:
        file: open for writing.
        lines: from `score_line`.
    """
    file.writelines(lines)
    file.flush()
    os.fsync(file.fileno())
