"""The most memory that a piece of work holds beyond what was held before it, on a GPU or, where Linux tells, on the CPU."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["Peak", "gigabytes", "measure_peak"]

_PROCESS = Path("/proc/self")


class Peak:
    """`bytes` after the `with` block of `measure_peak`; None where it cannot be measured."""

    bytes: int | None = None


@contextmanager
def measure_peak(device: torch.device) -> Iterator[Peak]:
    """Measure the block. On the CPU freed memory is given back to the system first, so that no block runs on what another left."""
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    resettable = _reset_resident_peak()
    before = _status("VmRSS")
    yield peak
    if resettable:
        peak.bytes = _status("VmHWM") - before


def gigabytes(size: int | None) -> float | None:
    """Of bytes; None stays None."""
    return None if size is None else size / 1e9


def _reset_resident_peak() -> bool:
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:  # another C library, or a system that does not allow it
        return False
    return True


def _status(name: str) -> int:
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
