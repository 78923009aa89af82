"""The readers: comparisons as a list for training, responses as a stream for scoring, prompts as a list for a policy."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from srm.data.boundary import BadRows, RowCheck, as_bad_row
from srm.data.messages import check_prompt
from srm.data.responses import own_prompt
from srm.data.rows import check_has_prompt, parse_responses, parse_row
from srm.data.schema import BadRow, Comparison, Prompt, RawRow, ResponseRow, RowProblem
from srm.data.settings import with_settings
from srm.data.sources import raw_rows
from srm.errors import UserError

__all__ = ["FirstPass", "comparisons_of", "first_pairs", "first_pass", "read_comparisons", "read_prompts", "read_responses", "usable_rows"]

T = TypeVar("T")


@dataclass(frozen=True)
class FirstPass:
    """What a look at every row of a source has found.

    Attributes:
        num_responses: in the rows that can be used.
        left_out: numbers of the rows that cannot, from 1.
    """

    num_responses: int
    left_out: frozenset[int]


def first_pass(
    source: str, *, split: str = "train", config: str | None = None, skip_bad_rows: bool = False, check: RowCheck | None = None
) -> FirstPass:
    """Look at every row of `source` as `read_responses` will, and at what the tokenizer makes of it, before hours are spent on them.

    Args:
        source: a file, a folder, or a name on the hub.
        split: which split of a folder or a hub data set.
        config: of a hub data set that has several.
        skip_bad_rows: leave out rows that cannot be used, with a warning that lists the first, instead of stopping at the first one.
        check: raises what else is wrong with a row, such as `srm.data.boundary.check_row` of the tokenizer that will read it.

    Raises:
        UserError: no such source, a file that cannot be read, or a row that cannot be used, such as one whose id came before.
    """
    # Of each id, the number of its row.
    seen: dict[str, int] = {}

    def check_ids(number: int, ids: Sequence[str]) -> None:
        for id in ids:
            if id in seen:
                raise RowProblem(f"the id {id!r} is that of row {seen[id]} too", "Rename one, or delete the column `id`")
        seen.update(dict.fromkeys(ids, number))

    def parse(row: RawRow) -> tuple[int, int]:
        responses = _parse_responses(row)
        if check is not None:
            for _, same in groupby(responses, key=lambda response: response.prompt):
                row_responses = list(same)
                check(row_responses[0].prompt, [response.response for response in row_responses])
        check_ids(row.number, [response.id for response in responses])
        return row.number, len(responses)

    bad = BadRows(source, skip_bad_rows)
    good = list(_usable(raw_rows(source, split=split, config=config), parse, bad))
    numbers = {number for number, _ in good}
    left_out = frozenset(range(1, len(good) + bad.count + 1)) - numbers
    return FirstPass(sum(count for _, count in good), left_out)


def read_comparisons(
    source: str,
    *,
    split: str = "train",
    config: str | None = None,
    streaming: bool = False,
    max_pairs: int | None = None,
    skip_bad_rows: bool = False,
) -> list[Comparison]:
    """The comparisons in `source`, in order.

    Args:
        source: a JSONL, JSON, CSV (plain or .gz) or Parquet file, a folder of such files or of a saved data set, or a hub name.
        split: which split of a folder or of a hub data set; a single file is one split.
        config: configuration of a hub data set.
        streaming: download a hub data set's rows only as they are read, of which `max_pairs` may leave most unread.
        max_pairs: stop before the row that would make it more pairs than this; the rest is not read.
        skip_bad_rows: drop rows that cannot be used, and log a warning with their number and the first few, instead of stopping at
            the first.

    Raises:
        UserError: no such source or split, a file that cannot be read, a row that cannot be used, or no usable row.
        ValueError: `max_pairs` below 1.
    """
    rows = raw_rows(source, split=split, config=config, streaming=streaming)
    return comparisons_of(source, rows, max_pairs=max_pairs, skip_bad_rows=skip_bad_rows)


def comparisons_of(title: str, rows: Iterable[RawRow | BadRow], *, max_pairs: int | None, skip_bad_rows: bool) -> list[Comparison]:
    """The comparisons in `rows`, in order.

    Args:
        title: what messages call their source.
        rows: from `raw_rows`.
        max_pairs: as in `read_comparisons`.
        skip_bad_rows: as there.

    Raises:
        UserError: a row that cannot be used, or no usable row.
        ValueError: `max_pairs` below 1.
    """
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"read_comparisons: `max_pairs` must be at least 1, got {max_pairs}.")
    usable = usable_rows(title, rows, _parse_comparison, skip_bad_rows)
    try:
        return list(first_pairs(usable, max_pairs))
    finally:
        # Closing reports what was dropped, also when we stop early.
        usable.close()


def first_pairs(comparisons: Iterable[Comparison], max_pairs: int | None) -> Iterator[Comparison]:
    """The comparisons before the one that would make it more than `max_pairs` pairs, but one at least; all where None.

    Args:
        comparisons: in order; the rest is not read.
        max_pairs: at most so many.
    """
    num_pairs = 0
    for comparison in comparisons:
        is_first, num_pairs = not num_pairs, num_pairs + len(comparison.pairs)
        if max_pairs is not None and num_pairs > max_pairs and not is_first:
            return
        yield comparison
        if num_pairs == max_pairs:
            return


def read_responses(
    source: str,
    *,
    split: str = "train",
    config: str | None = None,
    skip_bad_rows: bool = False,
    left_out: Container[int] = frozenset(),
) -> Iterator[ResponseRow]:
    """The responses in `source`, in order, as a stream that holds one row at a time (a .json list is the exception).

    Rows are prompt + response, or a pair or list as in `read_comparisons`, whose responses follow each other.

    Args:
        source: a file, a folder, or a name on the hub.
        split: which split of a folder or a hub data set.
        config: of a hub data set that has several.
        skip_bad_rows: leave out rows that cannot be used, with a warning that lists the first, instead of stopping at the first one.
        left_out: numbers of rows that are passed over without a word: those that `first_pass` has reported.

    Raises:
        UserError: no such source, a file that cannot be read, or a row that cannot be used.
    """
    rows = (row for number, row in enumerate(raw_rows(source, split=split, config=config), start=1) if number not in left_out)
    for responses in usable_rows(source, rows, _parse_responses, skip_bad_rows):
        yield from responses


def read_prompts(
    source: str, *, split: str = "train", config: str | None = None, skip_bad_rows: bool = False, check: RowCheck | None = None
) -> list[Prompt]:
    """The prompts in `source`, in order: of rows with a column `prompt`, whatever else they have, or of pairs that share theirs.

    Args:
        source: a file, a folder, or a name on the hub.
        split: which split of a folder or a hub data set.
        config: of a hub data set that has several.
        skip_bad_rows: leave out rows that cannot be used, with a warning that lists the first, instead of stopping at the first one.
        check: as in `first_pass`; it gets prompts without responses.

    Raises:
        UserError: no such source, a file that cannot be read, or a row that cannot be used.
    """

    def parse(row: RawRow) -> Prompt:
        fields = row.fields
        if "prompt" in fields:
            prompt = with_settings(check_prompt(fields["prompt"]), fields)
        else:
            check_has_prompt(fields)
            prompt = _only_prompt(_parse_comparison(row))
        if check is not None:
            check(prompt, ())
        return prompt

    return list(usable_rows(source, raw_rows(source, split=split, config=config), parse, skip_bad_rows))


def _only_prompt(comparison: Comparison) -> Prompt:
    """What all responses of a pair or a ranking answer."""
    first, *others = (own_prompt(comparison.prompt, response)[0] for response in comparison.responses)
    if any(other != first for other in others):
        raise RowProblem("its responses answer different messages, so there is no one prompt", "Add a `prompt` column")
    return first


def _parse_comparison(row: RawRow) -> Comparison:
    return parse_row(row.fields, where=row.where, id=row.id)


def _parse_responses(row: RawRow) -> list[ResponseRow]:
    return list(parse_responses(row))


def usable_rows(
    source: str, rows: Iterable[RawRow | BadRow], parse: Callable[[RawRow], T], skip_bad_rows: bool
) -> Generator[T, None, None]:
    """What `parse` makes of each row; whatever it raises is a `BadRow`. Dropped rows are reported when the generator ends or is closed."""
    return _usable(rows, parse, BadRows(source, skip_bad_rows))


def _usable(rows: Iterable[RawRow | BadRow], parse: Callable[[RawRow], T], bad: BadRows) -> Generator[T, None, None]:
    num_rows = 0
    try:
        for row in rows:
            num_rows += 1
            if isinstance(row, BadRow):
                bad.add(row)
                continue
            try:
                parsed = parse(row)
            except MemoryError:
                raise
            except Exception as error:
                found = as_bad_row(row.where, error)
                if not bad.skip:
                    raise found from (None if isinstance(error, (RowProblem, UserError)) else error)
                bad.add(found)
                continue
            yield parsed
    finally:
        bad.report(num_rows)
    bad.require_some(num_rows)
