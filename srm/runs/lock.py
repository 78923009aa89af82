"""One writer an output: a lock that a live process holds and the kernel releases when it dies, however it dies.

The lock file is `.NAME.lock`, beside the output, so that it outlives whoever deletes or replaces the output itself. It stays behind, empty:
to delete it would let two processes lock two files of one name.
"""

from __future__ import annotations

import errno
import glob
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from srm.errors import UserError

__all__ = ["hold", "hold_together", "lock_file"]

logger = logging.getLogger(__name__)

# A holder that is about to end, or a process that only looks whether a lock is held, may be waited for.
_PATIENCE = 1.0
# What a file system says that keeps no locks, such as Lustre mounted without `flock`.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def lock_file(output: str | os.PathLike[str], rank: int = 0) -> Path:
    """The lock of `output`, by whatever path it is named: links and relative paths lead to one.

    Inside a folder whose parent belongs to another file system or to somebody else, such as a volume of a container.

    Args:
        output: a file or a folder, which need not be there yet.
        rank: of the process, where several write one output together.
    """
    real = Path(os.path.realpath(output))
    inside = real.is_dir() and (os.path.ismount(real) or not os.access(real.parent, os.W_OK | os.X_OK))
    suffix = f".{rank}" if rank else ""
    return (real if inside else real.parent) / f".{real.name}.lock{suffix}"


@contextmanager
def hold(output: str | os.PathLike[str], *, rank: int = 0, num_ranks: int = 1) -> Iterator[None]:
    """Let no other run write `output` while this one does. A thread may hold an output that it holds already.

    Processes that write one output together pass their rank and how many they are. Each holds its own lock, so that none of them
    keeps another out, and any of them that is alive keeps out all other runs.

    Args:
        output: a file or a folder, which need not be there yet.
        rank: of this process.
        num_ranks: how many processes write together.

    Raises:
        UserError: a live process of another run holds it, or there is no place to write.
    """
    path = lock_file(output, rank)
    # One lock a path and thread, whoever asks for it: so a command and what it calls may both hold their output.
    lock = FileLock(path, timeout=_PATIENCE, is_singleton=True, fallback_to_soft=False)
    with ExitStack() as held:
        if lock.is_locked:
            held.enter_context(lock)
        elif _acquire(lock, path, output):
            held.callback(lock.release)
            path.write_text(json.dumps(_note(rank, num_ranks)) + "\n", encoding="utf-8")
            held.callback(_forget, path)
            _refuse_other_groups(path, output, rank, num_ranks)
        yield


@contextmanager
def hold_together(output: str | os.PathLike[str], *, writes: bool) -> Iterator[None]:
    """`hold` for all processes of a group that talks through accelerate; where one is refused, all are.

    Args:
        output: as in `hold`.
        writes: whether this process is one that writes the shared files, and so the one that holds.

    Raises:
        UserError: as `hold`, in every process of the group.
    """
    from accelerate.utils import gather_object

    with ExitStack() as held:
        refusal = None
        if writes:
            try:
                held.enter_context(hold(output))
            except UserError as error:
                refusal = str(error)
        refusals = [text for text in gather_object([refusal]) if text]
        if refusals:
            raise UserError(refusals[0])
        yield


def _acquire(lock: Any, path: Path, output: str | os.PathLike[str]) -> bool:
    """Whether the lock is ours; False, with a warning, on a disk that has no locks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(_taken(output, path)) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            logger.warning("%s: its disk has no file locks, so nothing keeps a second run from writing there too.", output)
            return False
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{output}: cannot be written there ({path}: {error.strerror}). Choose another place.") from None
    return True


def _refuse_other_groups(own: Path, output: str | os.PathLike[str], rank: int, num_ranks: int) -> None:
    """Raise where a live process of another group holds the output. Both have written their notes before they look: one sees the other."""
    first = lock_file(output)
    for name in (str(first), *glob.glob(glob.escape(str(first)) + ".*")):
        other = Path(name)
        if other != own and other.exists() and _is_held(other) and _read_note(other).get("num_ranks") not in (None, num_ranks):
            raise UserError(_taken(output, other))


def _is_held(path: Path) -> bool:
    try:
        with FileLock(path, blocking=False, fallback_to_soft=False):
            return False
    except Timeout:
        return True


def _note(rank: int, num_ranks: int) -> dict[str, Any]:
    started = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "rank": rank, "num_ranks": num_ranks}


def _forget(path: Path) -> None:
    """Empty the note: whoever finds the lock of a dead run should not look for its process."""
    with suppress(OSError):
        os.truncate(path, 0)


def _read_note(path: Path) -> dict[str, Any]:
    """What the holder has written; nothing if it does not write it at once."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            time.sleep(0.02)
            continue
        return note if isinstance(note, dict) else {}
    return {}


def _taken(output: str | os.PathLike[str], path: Path) -> str:
    note = _read_note(path)
    who = f"process {note.get('pid')} on {note.get('host')}, since {note.get('started')}" if note else f"the process that holds {path}"
    return f"{output}: another run is writing there ({who}). Wait for its end, stop it, or choose another output."
