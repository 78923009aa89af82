"""The readers: comparisons as a list for training, responses as a stream for scoring, prompts as a list for a policy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

from srm.data.messages import check_prompt
from srm.data.rows import parse_responses, parse_row
from srm.data.schema import BadRow, Comparison, Prompt, RawRow, ResponseRow, RowProblem
from srm.data.settings import with_settings
from srm.data.sources import raw_rows
from srm.errors import UserError

__all__ = ["read_comparisons", "read_prompts", "read_responses", "usable_rows"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
_LISTED = 5


def read_comparisons(
    source: str, *, split: str = "train", config: str | None = None, max_pairs: int | None = None, skip_bad_rows: bool = False
) -> list[Comparison]:
    """The comparisons in `source`, in order.

    Args:
        source: a JSONL, JSON, CSV (plain or .gz) or Parquet file, a folder of such files or of a saved data set, or a hub name.
        split: which split of a folder or of a hub data set; a single file is one split.
        config: configuration of a hub data set.
        max_pairs: stop before the row that would make it more pairs than this; the rest is not read.
        skip_bad_rows: drop rows that cannot be used, and log a warning with their number and the first few, instead of stopping at
            the first.

    Raises:
        UserError: no such source or split, a file that cannot be read, a row that cannot be used, or no usable row.
        ValueError: `max_pairs` below 1.
    """
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"read_comparisons: `max_pairs` must be at least 1, got {max_pairs}.")
    comparisons: list[Comparison] = []
    num_pairs = 0
    rows = usable_rows(source, raw_rows(source, split=split, config=config), _parse_comparison, skip_bad_rows)
    try:
        for comparison in rows:
            num_pairs += len(comparison.pairs)
            if max_pairs is not None and num_pairs > max_pairs and comparisons:
                break
            comparisons.append(comparison)
            if num_pairs == max_pairs:
                break
    finally:
        # Closing reports what was dropped, also when we stop early.
        rows.close()
    return comparisons


def read_responses(source: str, *, split: str = "train", config: str | None = None, skip_bad_rows: bool = False) -> Iterator[ResponseRow]:
    """The responses in `source`, in order, as a stream that holds one row at a time (a .json list is the exception).

    Rows are prompt + response, or a pair or list as in `read_comparisons`, whose responses follow each other.

    Args:
        source: a file, a folder, or a name on the hub.
        split: which split of a folder or a hub data set.
        config: of a hub data set that has several.
        skip_bad_rows: leave out rows that cannot be used, with a warning that lists the first, instead of stopping at the first one.

    Raises:
        UserError: no such source, a file that cannot be read, or a row that cannot be used.
    """
    for responses in usable_rows(source, raw_rows(source, split=split, config=config), _parse_responses, skip_bad_rows):
        yield from responses


def read_prompts(source: str, *, split: str = "train", config: str | None = None, skip_bad_rows: bool = False) -> list[Prompt]:
    """The prompts in `source`, in order: of rows with a column `prompt`, whatever else they have, or of pairs that share theirs.

    Args:
        source: a file, a folder, or a name on the hub.
        split: which split of a folder or a hub data set.
        config: of a hub data set that has several.
        skip_bad_rows: leave out rows that cannot be used, with a warning that lists the first, instead of stopping at the first one.

    Raises:
        UserError: no such source, a file that cannot be read, or a row that cannot be used.
    """
    return list(usable_rows(source, raw_rows(source, split=split, config=config), _parse_prompt, skip_bad_rows))


def _parse_prompt(row: RawRow) -> Prompt:
    if "prompt" not in row.fields:
        return _parse_comparison(row).prompt
    try:
        return with_settings(check_prompt(row.fields["prompt"]), row.fields)
    except RowProblem as problem:
        raise BadRow(row.where, problem) from None


def _parse_comparison(row: RawRow) -> Comparison:
    return parse_row(row.fields, where=row.where, id=row.id)


def _parse_responses(row: RawRow) -> list[ResponseRow]:
    return list(parse_responses(row))


def usable_rows(
    source: str, rows: Iterable[RawRow | BadRow], parse: Callable[[RawRow], T], skip_bad_rows: bool
) -> Generator[T, None, None]:
    """What `parse` makes of each row. Dropped rows are reported when the generator ends or is closed."""
    num_rows = num_dropped = 0
    listed: list[str] = []
    try:
        for row in rows:
            num_rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                parsed = parse(row)
            except BadRow as bad:
                if not skip_bad_rows:
                    raise
                num_dropped += 1
                if len(listed) < _LISTED:
                    listed.append(bad.problem)
                continue
            yield parsed
    finally:
        if num_dropped:
            more = f"; and {num_dropped - len(listed)} more" if num_dropped > len(listed) else ""
            logger.warning("%s: dropped %d of %d rows that cannot be used: %s%s", source, num_dropped, num_rows, "; ".join(listed), more)
    if num_dropped == num_rows:
        raise UserError(f"{source}: none of the {num_rows} rows can be used. The first: {listed[0]}. docs/data.md has the forms of a row.")
