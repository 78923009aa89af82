"""Where a command writes: looked at before anything is opened or computed, so that no work is lost and nothing of the user's replaced."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from srm.errors import UserError
from srm.runs.model_files import model_files

__all__ = ["check_files", "check_folder"]

# Flag -> what the user gave: a path, a name on the hub, or nothing.
Read = Mapping[str, str | None]


def check_files(written: Mapping[str, Path | None], *, data: Read, models: Read) -> None:
    """Refuse files to be written that cannot be, or that are read, by whatever path, link or hard link they are named.

    Args:
        written: flag -> the file; None where it is not asked for.
        data: flag -> what is read as data.
        models: flag -> what is loaded as a model.

    Raises:
        UserError: one of the files is read, or lies in a folder that is read as data; two of them are one; or there is no writing it.
    """
    files = {name: path for name, path in written.items() if path is not None}
    for name, path in files.items():
        _check_not_read(name, path, data)
        for flag, model in _existing(models).items():
            if model.is_dir() and any(_same(path, file) for file in model_files(model)):
                raise UserError(f"{name} {path} is a file of the model that {flag} names. Choose another place.")
    for (name, path), (other, second) in combinations(files.items(), 2):
        if _same(path, second) or _is_under(path, second) or _is_under(second, path):
            raise UserError(f"{name} {path} and {other} {second} are in each other's way. Give them different names.")
    for name, path in files.items():
        _check_writable(name, path, is_folder=False)


def check_folder(name: str, folder: str | Path, *, data: Read, models: Read, whole: bool) -> None:
    """Refuse a folder to write into that cannot be written, or that holds what is read.

    Args:
        name: the flag.
        folder: what it names.
        data: as in `check_files`.
        models: as in `check_files`.
        whole: the run may replace or delete whatever its names give it in there, so that nothing that is read may lie there.

    Raises:
        UserError: the folder is a model's, lies in a folder that is read as data, or there is no writing into it.
    """
    folder = Path(folder)
    _check_not_read(name, folder, data)
    for flag, path in _existing(models).items():
        if _same(folder, path):
            raise UserError(f"{name} {folder} is the folder of the model that {flag} names. Choose another folder.")
    for flag, path in _existing({**data, **models}).items() if whole else ():
        if _is_under(path, folder):
            raise UserError(f"{name} {folder} holds {path}, which {flag} reads and the run might replace. Choose a folder beside it.")
    _check_writable(name, folder, is_folder=True)


def _check_not_read(name: str, path: Path, data: Read) -> None:
    for flag, source in data.items():
        read = None if source is None else Path(source).expanduser()
        if read is not None and _same(path, read):
            raise UserError(f"{name} {path} is what {flag} reads. Choose another place: the input is never overwritten.")
        if read is not None and os.path.isdir(read) and _is_under(path, read) and path.suffix != ".html":
            raise UserError(f"{name} {path} lies in {read}, which {flag} reads, and would be read as data. Choose another place.")


def _existing(read: Read) -> dict[str, Path]:
    """Those that are here, and not on the hub."""
    paths = {flag: Path(name).expanduser() for flag, name in read.items() if name is not None}
    return {flag: path for flag, path in paths.items() if os.path.exists(path)}


def _same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def _is_under(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def _check_writable(name: str, path: Path, *, is_folder: bool) -> None:
    """Raise unless `path` can be made, or be replaced, or be written into. Leaves no trace."""
    try:
        problem = _problem_of_kind(path, is_folder)
        if problem:
            raise UserError(f"{name} {path} {problem}")
        _try_to_write(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{name} {path}: cannot be written ({error.strerror}). Choose another place.") from None


def _problem_of_kind(path: Path, is_folder: bool) -> str:
    if str(path) == "-":
        return f"is not standard output here, which can neither be gone on with nor replaced. Give a {'folder' if is_folder else 'file'}."
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is a link to what is not there. Delete the link, or choose another place." if path.is_symlink() else ""
    except NotADirectoryError:
        return "lies in a file, and not in a folder. Choose another place."
    if is_folder:
        return "" if stat.S_ISDIR(mode) else "is a file. Give a folder."
    if stat.S_ISDIR(mode):
        return "is a folder. Give a file."
    return "" if stat.S_ISREG(mode) else "is a device or a pipe, which can neither be gone on with nor replaced. Give a file."


def _try_to_write(path: Path) -> None:
    if path.is_file() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    place = path if path.is_dir() else path.parent
    while not place.exists():
        if place.is_symlink():
            raise FileNotFoundError(errno.ENOENT, f"{place} is a link to what is not there")
        place = place.parent
    # Rights alone do not tell: a disk may be mounted read-only, and root has nearly all of them.
    with tempfile.TemporaryFile(dir=place):
        pass
