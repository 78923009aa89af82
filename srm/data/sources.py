"""Rows out of whatever the user names: a file, a folder of files, a saved data set, or a data set on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from srm.data.boundary import as_bad_row
from srm.data.files import SUFFIXES, file_rows, format_of
from srm.data.schema import BadRow, RawRow
from srm.errors import UserError, first_line
from srm.hub import at_the_hub, why_not_there

__all__ = ["loaded_rows", "one_split", "raw_rows", "what_is_read"]

# What people and the hub call the splits in file names.
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORD = re.compile(r"[a-z]+")
# What commands ask for where nobody names a split.
_DEFAULTS = ("train", "test")
# A copy of a hub data set may hold this beside its rows.
_NO_ROWS = "dataset_infos.json"
_LISTED = 3


def raw_rows(source: str, *, split: str = "train", config: str | None = None, streaming: bool = False) -> Iterator[RawRow | BadRow]:
    """The rows of `source` as a stream, numbered from 1; a row that cannot be read comes out as a `BadRow`.

    A file is one split, and so is a folder, unless names of files or folders in it state splits: `split` must be `train` or `test` there,
    as commands ask for where nobody names one, for any other is a slip.

    Args:
        source: a file, a folder, or a name on the hub.
        split: of a folder or a hub data set.
        config: of a hub data set that has several.
        streaming: download the rows of a hub data set only as they are read. Files are read so anyway.

    Raises:
        UserError: nothing there, no such split, or a file that cannot be read.
    """
    if not source.strip():
        raise UserError("the name of the data is empty. Give a file, a folder, or a name on the hub.")
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _folder_rows(path, split)
        is_path = path.is_file() or path.is_symlink() or _looks_like_path(source, path)
    except (OSError, ValueError, RuntimeError) as error:
        # No right to look, a name that is too long, a NUL byte, the home of a user who is not there.
        raise UserError(f"{source}: cannot be opened ({getattr(error, 'strerror', None) or error}). Check the path.") from None
    if not is_path:
        return loaded_rows(source, split=split, config=config, streaming=streaming)
    if path.is_file():
        _check_default(source, split)
    return file_rows(path)


def one_split(source: str, split: str | None) -> str:
    """The split of `source` that a command reads: `split`, or where that is None the only one, or `train` where no name states any.

    Args:
        source: as in `raw_rows`.
        split: what the user asks for.

    Raises:
        UserError: there are several, and the user has to say which; or there are none, and one is asked for.
    """
    path = _here(source)
    found = _splits_of_folder(path) if path is not None and path.is_dir() else []
    if split is not None:
        if split != "train" and path is not None and not found:
            _refuse_split(source, split)
        return split
    if len(found) > 1:
        raise UserError(f"{source}: the folder has the splits {', '.join(found)}. Say which by --split, such as --split {found[0]}.")
    return found[0] if found else "train"


def what_is_read(source: str, split: str) -> str | None:
    """A line on what is read of a folder that states splits; None of anything else.

    Args:
        source: as in `raw_rows`.
        split: as there.
    """
    path = _here(source)
    if path is None or not path.is_dir() or not (found := _splits_of_folder(path)):
        return None
    files = [] if _is_saved(path) else [str(file.relative_to(path)) for file in _files_of_split(path, split)]
    return f"reading split {split} of {source} (it has {', '.join(found)})" + (f": {_some(files)}" if files else "")


def _here(source: str) -> Path | None:
    """Where `source` lies on this machine; None where it does not, or `raw_rows` will say why it cannot be looked at."""
    try:
        path = Path(source).expanduser()
        return path if source.strip() and path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _check_default(source: str, split: str) -> None:
    if split not in _DEFAULTS:
        _refuse_split(source, split)


def _refuse_split(source: str, split: str) -> None:
    raise UserError(f"{source}: has no split {split!r}, because no name of a file or folder there states one. Leave the split out.")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _looks_like_path(source: str, path: Path) -> bool:
    return format_of(path) is not None or source.startswith((".", "/", "~")) or source.count("/") > 1


def _folder_rows(folder: Path, split: str) -> Iterator[RawRow | BadRow]:
    if _is_saved(folder):
        yield from _saved_rows(folder, split)
        return
    number = 0
    for path in _files_of_split(folder, split):
        for row in file_rows(path, first=number + 1):
            number += 1
            yield row


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file()


def _splits_of_folder(folder: Path) -> list[str]:
    """What splits a folder has; none where it does not say."""
    if not _is_saved(folder):
        return sorted({name for name in _data_files(folder).values() if name})
    try:
        return [str(name) for name in json.loads((folder / "dataset_dict.json").read_bytes())["splits"]]
    except (OSError, ValueError, KeyError, TypeError):
        # A single saved split, or a damaged record, of which the reader says what is wrong.
        return []


def _data_files(folder: Path) -> dict[Path, str | None]:
    """The data files of a folder, in order, each with the split that its name states."""
    # A link that leads nowhere is listed too, for its rows would be missing without a word.
    found = sorted(path for path in folder.rglob("*") if format_of(path) and not path.is_dir() and path.name != _NO_ROWS)
    return {path: _split_of(path.relative_to(folder)) for path in found if not _hidden(path.relative_to(folder))}


def _files_of_split(folder: Path, split: str) -> list[Path]:
    splits = _data_files(folder)
    if not splits:
        raise UserError(f"{folder}: the folder holds no data file. Put {', '.join(SUFFIXES)} files there.")
    found = sorted({name for name in splits.values() if name})
    if not found:
        _check_default(str(folder), split)
        return list(splits)
    if nameless := [str(path.relative_to(folder)) for path, name in splits.items() if name is None]:
        named = next(path for path, name in splits.items() if name)
        raise UserError(
            f"{folder}: {_some(nameless)} would be left out, because no split is in the name, and {named.relative_to(folder)} states "
            f"{splits[named]!r}. Rename files, move some out of the folder, or give one file."
        )
    wanted = next((name for name, aliases in _SPLIT_NAMES.items() if split in aliases), split)
    if wanted not in found:
        names = ", ".join(found)
        raise UserError(f"{folder}: the folder has no split {split!r}; its file names state {names}. Name one of these, or one file.")
    return [path for path in splits if splits[path] == wanted]


def _split_of(path: Path) -> str | None:
    """The split that a name such as `data/train-00000-of-00002.parquet` or `test/pairs.jsonl` states."""
    words = set(_WORD.findall(str(path).lower()))
    return next((name for name, aliases in _SPLIT_NAMES.items() if words.intersection(aliases)), None)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _saved_rows(folder: Path, split: str) -> Iterator[RawRow | BadRow]:
    datasets = _import_datasets(str(folder))
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        # Of damaged files `datasets` raises whatever its parsers do.
        raise UserError(f"{folder}: the saved data set cannot be loaded ({first_line(error)}). Save it again.") from None
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(f"{folder}: the data set has no split {split!r}; it has {', '.join(saved)}. Name one of these.")
        saved = saved[split]
    else:
        _check_default(str(folder), split)
    yield from _dataset_rows(saved, str(folder), folder.name)


def loaded_rows(name: str, *, split: str, config: str | None, streaming: bool, **more: Any) -> Iterator[RawRow | BadRow]:
    """The rows of what `datasets.load_dataset` finds under `name`: on the hub, or with files (`data_files`, `data_dir`) of the kind `name`.

    Args:
        name: of the data set, or a kind of file such as `json`.
        split: any that `datasets` knows, `train[:10%]` too.
        config: of a data set that has several.
        streaming: download rows as they are read.
        **more: further arguments of `load_dataset`.

    Raises:
        UserError: it could not be loaded, or has no rows.
    """
    datasets = _import_datasets(name)
    # A kind of file and its files ask nobody.
    at_its_place = nullcontext() if more.get("data_files") or more.get("data_dir") else at_the_hub(name)
    try:
        with at_its_place:
            dataset = datasets.load_dataset(name, config, split=split, streaming=streaming, **more)
    except UserError:
        raise
    except Exception as error:
        if (reason := why_not_there(name, error)) is not None:
            raise UserError(reason) from None
        # Not there, no such split or configuration, no connection, access refused, a loading script: `datasets` has no common class.
        # Of a file that cannot be read, the cause alone says more than that a data set was not generated.
        told = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ else error
        setting = "".join(f", {what} {value!r}" for what, value in {"configuration": config, **more}.items() if value)
        raise UserError(
            f"{name}: there is no such file or folder here, and as a data set of the Hugging Face hub (split {split!r}{setting}) it "
            f"could not be loaded: {first_line(told)}. Check the name and the connection, or give a local file."
        ) from None
    rows = _streamed_rows if streaming else _dataset_rows
    yield from rows(dataset, f"{name} ({split})", name.split("/")[-1])


def _streamed_rows(dataset: Any, title: str, stem: str) -> Iterator[RawRow | BadRow]:
    number = 0
    try:
        for number, fields in enumerate(dataset, start=1):
            yield RawRow(where=f"{title} row {number}", id=f"{stem}-{number}", number=number, fields=fields)
    except Exception as error:
        # Behind a row that cannot be read, or a connection that breaks, there is no going on.
        raise UserError(f"{title}: the row after row {number} cannot be read ({first_line(error)}). Load it without streaming.") from None
    _require_rows(number, title)


def _dataset_rows(dataset: Sequence[dict[str, Any]], title: str, stem: str) -> Iterator[RawRow | BadRow]:
    count = len(dataset)
    for number in range(1, count + 1):
        where = f"{title} row {number}"
        row: RawRow | BadRow
        try:
            row = RawRow(where=where, id=f"{stem}-{number}", number=number, fields=dataset[number - 1])
        except Exception as error:
            # A value that its type cannot decode, such as a broken picture in another column.
            row = as_bad_row(where, error)
        yield row
    _require_rows(count, title)


def _require_rows(count: int, title: str) -> None:
    if not count:
        raise UserError(f"{title}: the data set has no rows. Check that it was written to the end.")


def _import_datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{source}: needs the package `datasets`. Install it (pip install datasets), or give a JSONL, CSV or Parquet file."
        ) from None
    return datasets
