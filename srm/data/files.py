"""Rows out of single files: JSON Lines, JSON, CSV (each plain or gzip) and Parquet, read as a stream.

A row that cannot be read comes out as a `BadRow`, so that a caller may drop it and go on. What ends the file (not there, cut short,
empty) raises `UserError`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from srm.data.boundary import as_bad_row
from srm.data.messages import whole_text
from srm.data.schema import BadRow, RawRow, RowProblem
from srm.errors import UserError, first_line

__all__ = ["SUFFIXES", "file_rows", "format_of"]

# Rows of a file without `id` and row number, which the caller gives: (where, columns) or what is wrong with the row.
FileRow = tuple[str, dict[str, Any]] | BadRow

# The csv module refuses longer cells, and its own limit (128 KiB) is shorter than some responses.
_MAX_CELL = 1 << 28
# A line without an end, such as a gzip file of zeros unpacks to, must not fill the memory.
_MAX_LINE = 1 << 28
_PARQUET_BATCH = 256
# Only these can leave half a surrogate pair in a text, which no file can be written with.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
# "from" is no key of ours; its messages are refused with a word on why.
_MESSAGE_KEYS = frozenset({"role", "from"})
_JSON_CELLS = frozenset({"responses", "scores", "ranks"})
_COLUMNS = frozenset({"id", "prompt", "response", "responses", "chosen", "rejected"})


def format_of(path: Path) -> str | None:
    """The format that a file's name states: a key of the readers, or None."""
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    return suffix if suffix in _READERS and not (suffix == ".parquet" and path.name.lower().endswith(".gz")) else None


def file_rows(path: Path, *, first: int = 1) -> Iterator[RawRow | BadRow]:
    """The rows of `path`, numbered from `first`.

    Raises:
        UserError: the file is missing, empty, of an unknown format, cut short, or no file of the format that its name states.
    """
    _check_is_file(path)
    kind = format_of(path)
    if kind is None:
        raise UserError(f"{path}: unknown kind of file. Give one of {', '.join(SUFFIXES)}.")
    stem = path.name.split(".")[0]
    number = first - 1
    for number, row in enumerate(_READERS[kind](path), start=first):
        if isinstance(row, BadRow):
            yield row
        else:
            yield RawRow(where=row[0], id=f"{stem}-{number}", number=number, fields=row[1])
    if number < first:
        raise UserError(f"{path}: the file has no rows. Check that it was written to the end.")


def _check_is_file(path: Path) -> None:
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: the name of the file is no UTF-8, and rows are called after it. Rename the file.") from None
    if path.is_file():
        return
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: a link to {path.readlink()}, which is not there. Mend or delete the link.")
    if path.exists():
        raise UserError(f"{path}: no regular file, and a pipe or a device cannot be read twice. Write its rows to a file first.")
    raise UserError(f"{path}: no such file or folder. Check the path.")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unzipped; what goes wrong while they are read becomes a `UserError`."""
    try:
        opener: Callable[..., Any] = gzip.open if path.name.lower().endswith(".gz") else open
        with opener(path, "rb") as stream:
            yield stream
    except EOFError:
        raise UserError(f"{path}: the gzip file is cut short. Copy or download it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a sound gzip file ({error}). Copy or download it again, or drop `.gz` from its name.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions.") from None


def _jsonl(path: Path) -> Iterator[FileRow]:
    with _opened(path) as stream:
        yield from _json_lines(path, stream)


def _json_lines(path: Path, stream: IO[bytes]) -> Iterator[FileRow]:
    for number, line in enumerate(_lines(stream), start=1):
        where = f"{path} line {number}"
        try:
            if line is None:
                raise RowProblem(f"the line is longer than {_MAX_LINE >> 20} MB", "Fix or delete the line")
            if line.strip():
                yield where, _json_row(line)
        except RowProblem as problem:
            if number == 1 and line is not None and line.lstrip().startswith(b"["):
                problem = RowProblem(f"{problem}; if the file is one JSON list, rename it to .json", problem.fix)
            yield BadRow(where, problem)


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """The lines of a file; None in place of one that is too long."""
    read = partial(stream.readline, _MAX_LINE)
    for line in iter(read, b""):
        if len(line) < _MAX_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = read()
        yield None


def _json_row(line: bytes) -> dict[str, Any]:
    try:
        # A file from Windows may open with a byte order mark.
        text = line.decode("utf-8-sig").rstrip()
        return _as_object(_parsed(text), whole=not _SURROGATE_ESCAPE.search(text))
    except UnicodeDecodeError as error:
        raise RowProblem(f"not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1})", "Save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise RowProblem(f"malformed JSON ({error.msg} at column {error.colno})", "Fix or delete the line") from None


def _parsed(text: str) -> Any:
    """`text` as JSON, or a `RowProblem`; a JSONDecodeError is left to callers, who know the place."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise RowProblem("malformed JSON (nested too deeply)") from None
    except ValueError as error:
        # Python refuses to convert integers of more than 4,300 digits, because that takes quadratic time.
        raise RowProblem("an integer has more digits than can be read" if "digits" in str(error) else str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in value if names.count(name) > 1)
        raise RowProblem(f"an object names the key {twice!r} twice", "Rename or delete one")
    return value


def _check_text(value: Any, name: str) -> None:
    if isinstance(value, str):
        whole_text(value, f"`{name}`")
    elif isinstance(value, dict):
        for key, entry in value.items():
            whole_text(key, f"the name of a column of `{name}`" if name else "the name of a column")
            _check_text(entry, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check_text(entry, f"{name}[{index}]")


def _as_object(value: Any, *, whole: bool) -> dict[str, Any]:
    """`value` as a row. whole: no text in it can hold half a surrogate pair."""
    if not isinstance(value, dict):
        raise RowProblem(f'a row must be an object {{"prompt": ..., ...}}, got {type(value).__name__}')
    if not whole:
        _check_text(value, "")
    return value


def _json(path: Path) -> Iterator[FileRow]:
    """A list of objects, read as a whole; or JSON Lines under the name .json, as the hub's tools write them."""
    with _opened(path) as stream:
        head = b""
        while not head.strip() and (line := stream.readline()):
            head = line.removeprefix(b"\xef\xbb\xbf")
        stream.seek(0)
        if not head.lstrip().startswith(b"["):
            yield from _json_lines(path, stream)
            return
        try:
            text = stream.read().decode("utf-8-sig")
            rows, whole = _parsed(text), not _SURROGATE_ESCAPE.search(text)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 (byte {error.start + 1} of the file). Save the file as UTF-8.") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {error.lineno}: malformed JSON ({error.msg} at column {error.colno}). Fix the file.") from None
        except RowProblem as problem:
            raise UserError(
                f"{path}: {problem}. Fix the file, or write its rows as JSON Lines, where one bad row spoils no other."
            ) from None
    for number, value in enumerate(rows, start=1):
        where = f"{path} row {number}"
        try:
            yield where, _as_object(value, whole=whole)
        except RowProblem as problem:
            yield BadRow(where, problem)


def _csv(path: Path) -> Iterator[FileRow]:
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
    with _opened(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        # strict: an unclosed quote swallows the rest of the file and must not pass for one long cell.
        reader = csv.reader(text, strict=True)
        line = 1
        try:
            header = next(reader, [])
            _check_commas(path, header)
            if len(set(header)) < len(header):
                raise UserError(f"{path} line 1: the header names a column twice ({', '.join(header)}). Rename one.")
            while True:
                line = reader.line_num + 1
                cells = next(reader, None)
                if cells is None:
                    return
                if cells:
                    yield _csv_row(f"{path} line {line}", header, cells)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(f"{path}: not UTF-8 (byte 0x{byte:02x}, after line {line}). Save the file as UTF-8.") from None
        except csv.Error as error:
            raise UserError(f"{path} line {line}: malformed CSV ({error}). Close the quotes of the row that begins there.") from None


def _check_commas(path: Path, header: list[str]) -> None:
    """Spreadsheets of many countries write semicolons, and then the header is one cell."""
    for mark, name in (";", "semicolons"), ("\t", "tabs"):
        if len(header) == 1 and _COLUMNS & set(header[0].lower().split(mark)[:-1]):
            raise UserError(f"{path} line 1: {name} part the columns ({header[0]}), and it must be commas. Export the file with commas.")


def _csv_row(where: str, header: list[str], cells: list[str]) -> FileRow:
    try:
        if len(cells) != len(header):
            raise RowProblem(f"the row has {len(cells)} cells, the header has {len(header)}", "Quote cells that hold commas or line breaks")
        return where, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)}
    except RowProblem as problem:
        return BadRow(where, problem)


def _cell(name: str, cell: str) -> Any:
    """A CSV cell with its type: messages and lists are JSON, a margin is a number, and an empty cell of those is null."""
    if name in _JSON_CELLS:
        if not cell.strip():
            return None
        try:
            value = _parsed(cell)
            _check_text(value, name)
            return value
        except json.JSONDecodeError as error:
            raise RowProblem(f"`{name}` must be a JSON list, and is not ({error.msg} at column {error.colno})") from None
        except RowProblem as problem:
            raise RowProblem(f"`{name}`: {problem}", problem.fix) from None
    if name == "margin":
        try:
            return float(cell) if cell.strip() else None
        except ValueError:
            raise RowProblem(f"`margin` must be a number, got {cell!r}") from None
    if cell.lstrip().startswith("["):
        try:
            value = _parsed(cell)
        except (json.JSONDecodeError, RowProblem):
            # A text may open with a bracket.
            return cell
        # Other lists are text too: an answer may be JSON.
        if isinstance(value, list) and value and all(isinstance(message, dict) and message.keys() & _MESSAGE_KEYS for message in value):
            _check_text(value, name)
            return value
    return cell


def _parquet(path: Path) -> Iterator[FileRow]:
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise UserError(f"{path}: has two columns of the name {twice[0]!r}. Rename one.")
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for row in _arrow_rows(batch, path, first=number + 1):
                    number += 1
                    yield row
    except UserError:
        raise
    except Exception as error:
        # What pyarrow raises for a damaged file is any of its own errors and of Python's.
        raise UserError(
            f"{path}: not a sound Parquet file, {number} rows could be read ({first_line(error)}). Copy or download it again."
        ) from None


def _arrow_rows(batch: Any, path: Path, *, first: int) -> Iterator[FileRow]:
    """The rows of a pyarrow batch; one that Python cannot hold, such as a text that is no UTF-8, is a `BadRow`."""
    where = [f"{path} row {first + index}" for index in range(batch.num_rows)]
    rows: list[dict[str, Any] | BadRow]
    try:
        rows = batch.to_pylist()
    except Exception:
        # One value spoils the whole batch: find its row.
        rows = [_arrow_row(batch, index, place) for index, place in enumerate(where)]
    for place, row in zip(where, rows, strict=True):
        yield row if isinstance(row, BadRow) else (place, row)


def _arrow_row(batch: Any, index: int, where: str) -> dict[str, Any] | BadRow:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except Exception as error:
        return as_bad_row(where, error)


_READERS: dict[str, Callable[[Path], Iterator[FileRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
