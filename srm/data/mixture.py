"""Training data out of several sources, as the section `datasets` of a settings file lists them, and a part set aside for a test."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from srm.data.read import comparisons_of
from srm.data.schema import BadRow, Comparison, RawRow, RowProblem
from srm.data.sources import loaded_rows, raw_rows
from srm.errors import UserError
from srm.runs.parser import did_you_mean

__all__ = ["DataPart", "read_mixture", "set_aside"]

_SPLIT_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class DataPart:
    """One source of a mixture, with the names and meanings of trl's `datasets:` and `datasets.load_dataset`.

    Attributes:
        path: a file, a folder, a name on the hub, or with `data_files` a kind of file, such as `json`.
        name: configuration of a hub data set.
        data_dir: folder in the data set, or with a kind of file one of such files.
        data_files: files in the data set, or with a kind of file any.
        split: which one; of what `datasets` loads also a part, such as `train[:10%]`.
        columns: those that are kept; all where None.
        fraction: this source's share of the mixture; all sources have one, or none.
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, Any] | None = None
    split: str = "train"
    columns: list[str] | None = None
    fraction: float | None = None

    @classmethod
    def of(cls, entry: Any, where: str) -> DataPart:
        """The part that a mapping describes.

        Args:
            entry: from a file of settings.
            where: it stands, for messages.

        Raises:
            UserError: no mapping, an unknown name, a value of the wrong type, or no path.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str) or not entry["path"].strip():
            raise UserError(f"{where} must be a mapping with a path, such as {{path: pairs.jsonl}}, got {entry!r}.")
        for name, value in entry.items():
            if name not in known:
                raise UserError(f"{where}: unknown setting {name!r}{did_you_mean(str(name), known)} It takes {', '.join(known)}.")
            if value is not None and not _TAKES[name](value):
                raise UserError(f"{where}: {name} must be {_KINDS[name]}, got {value!r}.")
        return cls(**{name: value for name, value in entry.items() if value is not None})

    def rows(self, *, streaming: bool) -> Iterator[RawRow | BadRow]:
        """Its rows, with the columns that are kept.

        Args:
            streaming: download rows as they are read.

        Raises:
            UserError: nothing there, or it has no such split.
        """
        more = {name: value for name in ("data_dir", "data_files") if (value := getattr(self, name)) is not None}
        if not _SPLIT_NAME.fullmatch(self.split) and Path(self.path).expanduser().is_file():
            raise UserError(
                f"{self.path}: a single file is one split, and {self.split!r} is a part of one. Give path: json and data_files."
            )
        if self.is_plain:
            rows = raw_rows(self.path, split=self.split, streaming=streaming)
        else:
            rows = loaded_rows(self.path, split=self.split, config=self.name, streaming=streaming, **more)
        columns = self.columns
        return rows if columns is None else (_selected(row, columns) for row in rows)

    @property
    def is_plain(self) -> bool:
        """Whether it is read as --dataset_name is, and not by `datasets`, which alone knows what to do with a part of a split and files."""
        return bool(_SPLIT_NAME.fullmatch(self.split)) and all(value is None for value in (self.name, self.data_dir, self.data_files))

    @property
    def places(self) -> list[str]:
        """Whatever of it may lie on this machine."""
        files = self.data_files.values() if isinstance(self.data_files, dict) else [self.data_files or []]
        named = chain.from_iterable([entry] if isinstance(entry, str) else entry for entry in files)
        return [self.path, *([self.data_dir] if self.data_dir else []), *map(str, named)]


def read_mixture(
    parts: Sequence[DataPart], *, streaming: bool = False, max_pairs: int | None = None, skip_bad_rows: bool = False
) -> list[Comparison]:
    """The comparisons of several sources, one source after the other.

    With fractions, the first rows of each source are taken: as many as give the shares, and as many in all as no source runs out of.

    Args:
        parts: the sources.
        streaming: download rows as they are read.
        max_pairs: as in `read_comparisons`, of the whole.
        skip_bad_rows: as there.

    Raises:
        UserError: as `read_comparisons`; or fractions that are not given for all, or not with streaming.
    """
    check_fractions(parts, streaming=streaming)
    if all(part.fraction is None for part in parts):
        rows = chain.from_iterable(part.rows(streaming=streaming) for part in parts)
    else:
        rows = chain.from_iterable(_shares(parts))
    return comparisons_of(title(parts), rows, max_pairs=max_pairs, skip_bad_rows=skip_bad_rows)


def check_fractions(parts: Sequence[DataPart], *, streaming: bool) -> None:
    """Refuse fractions that make no mixture.

    Args:
        parts: the sources.
        streaming: whether they are streamed.

    Raises:
        UserError: some have one and others not; none is above 0; or they are streamed, and nobody knows how many rows there are.
    """
    given = [part.fraction for part in parts if part.fraction is not None]
    if given and len(given) < len(parts):
        raise UserError(f"datasets: `fraction` is set for {len(given)} of {len(parts)} sources. Set it for all of them, or for none.")
    if given and streaming:
        raise UserError("datasets: `fraction` needs to know how many rows there are, and streaming does not tell. Leave one of them out.")
    if given and not sum(given) > 0:
        raise UserError("datasets: at least one `fraction` must be above 0.")


def title(parts: Sequence[DataPart]) -> str:
    """What a message calls the mixture.

    Args:
        parts: the sources.
    """
    return ", ".join(dict.fromkeys(part.path for part in parts))


def set_aside(comparisons: Sequence[Comparison], test_size: float, *, seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """Draw the rows of a test set; the others stay for training, both in their order.

    Args:
        comparisons: all rows.
        test_size: below 1 a share of them (rounded up), else their number.
        seed: decides which; the same in every process.

    Raises:
        UserError: one of both would be empty.
    """
    count = math.ceil(test_size * len(comparisons)) if test_size < 1 else int(test_size)
    if not 0 < count < len(comparisons):
        raise UserError(
            f"test_split_size {test_size:g} of {len(comparisons)} rows leaves {max(len(comparisons) - count, 0)} to train on. "
            "Give a smaller share, or number of rows."
        )
    drawn = set(random.Random(seed).sample(range(len(comparisons)), count))
    return (
        [row for index, row in enumerate(comparisons) if index not in drawn],
        [row for index, row in enumerate(comparisons) if index in drawn],
    )


def _selected(row: RawRow | BadRow, columns: Sequence[str]) -> RawRow | BadRow:
    if isinstance(row, BadRow):
        return row
    missing = [name for name in columns if name not in row.fields]
    if missing:
        return BadRow(row.where, RowProblem(f"has no column {missing[0]!r}, which `columns` asks for; it has {', '.join(row.fields)}"))
    return replace(row, fields={name: row.fields[name] for name in columns})


def _shares(parts: Sequence[DataPart]) -> Iterator[Iterator[RawRow | BadRow]]:
    rows = [list(part.rows(streaming=False)) for part in parts]
    whole = sum(part.fraction or 0 for part in parts)
    weights = [(part.fraction or 0) / whole for part in parts]
    total = min(len(some) / weight for some, weight in zip(rows, weights, strict=True) if weight)
    return (islice(some, round(weight * total)) for some, weight in zip(rows, weights, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _is_files(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(_is_files(entry) and not isinstance(entry, dict) for entry in value.values())
    return _is_text(value) or _is_names(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_TAKES = {"path": _is_text, "name": _is_text, "data_dir": _is_text, "split": _is_text}
_TAKES |= {"columns": _is_names, "data_files": _is_files, "fraction": _is_number}
_KINDS = dict.fromkeys(("path", "name", "data_dir", "split"), "text")
_KINDS |= {
    "columns": "a list of names",
    "data_files": "a file, a list of files, or splits with their files",
    "fraction": "a number from 0 up",
}
