"""Interleaved timing: every job runs once a round, in an order that rotates, so that drift of clocks and neighbours hits all alike.

    times = time_interleaved({"ours": Job(run=lambda _: ours(x)), "theirs": Job(run=lambda _: theirs(x))}, device=x.device)
    print(times["ours"].median_ms)

On a GPU the clock is CUDA events behind a cold L2 cache; elsewhere it is the wall clock. `measure_peak` measures memory.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Job", "Peak", "Timing", "measure_peak", "peak_bytes", "time_interleaved", "wait"]

# Written before each timed call on a GPU: more than any L2 cache, so that every call starts cold. It also keeps the device busy while
# the host submits the call, so that events measure the device, unless submitting takes longer than this does.
FLUSH_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is timed: `run(prepare())`, of which only `run` counts."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of a call over the rounds: CUDA events on a GPU, the wall clock elsewhere.

    host_ms: median time until the call returned. On a GPU the work may go on after it; where it exceeds `median_ms`, the host is what
        limits a program that does nothing else.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    host_ms: float
    rounds: int


def time_interleaved(
    jobs: Mapping[str, Job], *, device: torch.device | str, min_rounds: int = 5, max_rounds: int = 50, budget_s: float = 1.0
) -> dict[str, Timing]:
    """Timings by name. Each job runs twice untimed; then come as many rounds as fit `budget_s`, between `min_rounds` and `max_rounds`."""
    device = torch.device(device)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    for job in jobs.values():
        job.run(job.prepare())
    wait(device)
    start = time.perf_counter()
    for job in jobs.values():
        job.run(job.prepare())
    wait(device)
    rounds = max(min_rounds, min(max_rounds, int(budget_s / max(time.perf_counter() - start, 1e-6))))
    names = list(jobs)
    clocks: dict[str, list[Callable[[], tuple[float, float]]]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            clocks[name].append(_clock(jobs[name], device, flush))
    wait(device)
    return {name: _summary([clock() for clock in clocks[name]]) for name in names}


class Peak:
    """`bytes` after the `with` block of `measure_peak`; None where it cannot be measured."""

    bytes: int | None = None

    @property
    def gigabytes(self) -> float | None:
        return None if self.bytes is None else self.bytes / 1e9


@contextmanager
def measure_peak(device: torch.device) -> Iterator[Peak]:
    """The most memory that the block holds beyond what was held before it, on a GPU or, where Linux tells, on the CPU.

    On the CPU freed memory is given back to the system first, so that no block runs on what another left.
    """
    peak = Peak()
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        wait(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    resettable = _reset_resident_peak()
    before = _status("VmRSS")
    yield peak
    if resettable:
        peak.bytes = _status("VmHWM") - before


def peak_bytes(job: Job, device: torch.device | str) -> int | None:
    """Most bytes that one `run` holds on the GPU beyond what was there before it; None elsewhere."""
    if torch.device(device).type != "cuda":
        return None
    prepared = job.prepare()
    with measure_peak(torch.device(device)) as peak:
        job.run(prepared)
    return peak.bytes


def wait(device: torch.device) -> None:
    """Until `device` has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_resident_peak() -> bool:
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another C library, or a system that does not allow it
        return False
    return True


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _clock(job: Job, device: torch.device, flush: Tensor | None) -> Callable[[], tuple[float, float]]:
    """Runs the job once; the result gives (device, host) milliseconds when the device is done."""
    prepared = job.prepare()
    if flush is None:
        start = time.perf_counter()
        job.run(prepared)
        elapsed = 1e3 * (time.perf_counter() - start)
        return lambda: (elapsed, elapsed)
    flush.zero_()
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        start = time.perf_counter()
        job.run(prepared)
        host = 1e3 * (time.perf_counter() - start)
        end.record()
    return lambda: (begin.elapsed_time(end), host)


def _summary(times: list[tuple[float, float]]) -> Timing:
    device_ms = sorted(device for device, _ in times)
    last = len(device_ms) - 1
    return Timing(
        median_ms=statistics.median(device_ms),
        p20_ms=device_ms[round(0.2 * last)],
        p80_ms=device_ms[round(0.8 * last)],
        host_ms=statistics.median(host for _, host in times),
        rounds=len(times),
    )
