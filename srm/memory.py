"""Freed memory that stays with the process."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Parameters of mallopt and their values (its manual page): never give the end of the heap back, take no block straight from the
# system, and have one heap for all threads, because those of other threads are limited in size.
_SETTINGS = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for the next allocation; for a process that computes on the CPU and does little else.

    Else glibc hands large blocks back at once, and in every layer of a long packed row the system clears pages anew.
    The process then stays as large as it has ever been.

    Returns whether it is so: only glibc, on Linux, can be told. To be called before other threads start.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return all(mallopt(parameter, value) for parameter, value in _SETTINGS.values())
