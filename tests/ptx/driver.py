"""A driver for Triton that executes the compiled PTX on the CPU: ops and their launchers run as they are, on CPU tensors, with no GPU.

Triton compiles for the GPU that its driver names, asks it to load the binary and to launch it. This one says that it is an sm_80, sm_90 or
sm_100, takes the PTX for the binary, and hands it to `Machine`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from .counters import Counters
from .dtypes import RAW, Array
from .machine import Machine
from .memory import GlobalMemory, view_of
from .program import Program, PtxError, parse

__all__ = ["TARGETS", "Driver", "Launched", "emulated"]

TARGETS = (80, 90, 100)
# Only PTX is compiled here, so a cache of our own: a GPU would find no binary in it.
CACHE = Path(__file__).parents[2] / "build" / "ptx"
# Fresh memory, 16 bits at a time: NaN in every float dtype, and no number that anything computes.
FRESH = 0xFFFA


@dataclass(frozen=True, kw_only=True)
class Launched:
    """One launch: the kernel, its grid, and what the CTAs that ran executed."""

    kernel: str
    grid: int
    counters: Counters


@dataclass(kw_only=True)
class Driver:
    """What Triton asks of a driver, and what our tests ask of this one.

    Attributes:
        target: 80, 90 or 100.
        check: whether reads of fresh memory and races are looked for; bounds and alignment are, always.
        sample: which CTAs of a grid run; all of them if None.
        inspect: sees each program before it runs; whatever it raises ends the launch.
        launches: what has run.
    """

    target: int
    check: bool = True
    sample: Callable[[int], Sequence[int]] | None = None
    inspect: Callable[[Program], None] = lambda program: None
    launches: list[Launched] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Triton asks what a CTA may have; we run whatever compiles.
        properties = {"max_shared_mem": 227 * 1024}
        self.utils = SimpleNamespace(load_binary=self._load, get_device_properties=lambda device: properties)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.target, 32)

    def get_current_device(self) -> str:
        """Triton keeps what it compiled by device: another driver must not find it."""
        return f"ptx sm_{self.target}"

    def get_current_stream(self, device: str) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What Triton calls to launch: with the grid, the stream, what `load_binary` made, its own things, and all arguments."""
        kinds = list(source.signature.items())

        def launch(
            x: int, y: int, z: int, stream: int, machine: Machine, packed: Any, meta: Any, enter: Any, leave: Any, *args: Any
        ) -> None:
            if (y, z) != (1, 1):
                raise PtxError(f"{machine.program.name}: a grid of {(x, y, z)}; only its first dimension is implemented.")
            # Triton keeps what it compiled: the driver that is active now may be a later one.
            driver = triton.runtime.driver.active
            driver.launch(machine, x, [(kind, arg) for (_, kind), arg in zip(kinds, args, strict=True) if kind != "constexpr"])

        return launch

    def _load(self, name: str, binary: bytes, shared_bytes: int, device: str) -> tuple[str, Machine, int, int, int]:
        """A module, a function, registers, spills and the most threads of a CTA."""
        program = parse(binary.decode())
        self.inspect(program)
        return name, Machine(program, shared_bytes), 0, 0, 1024

    def launch(self, machine: Machine, grid: int, arguments: list[tuple[str, Any]]) -> None:
        """Runs a kernel on its arguments, each with Triton's name of its type."""
        tensors = [arg for kind, arg in arguments if kind.startswith("*")]
        for tensor in tensors:
            if tensor.device.type != "cpu":
                raise PtxError(f"{machine.program.name}: a tensor on {tensor.device}; the emulator runs on CPU tensors, GPU or not.")
        memory = GlobalMemory([(x.data_ptr(), _extent(x) * x.element_size()) for x in tensors], machine.cell, self.check)
        if self.check:
            for tensor in tensors:
                memory.forget(_fresh_elements(tensor), tensor.element_size())
        # Behind the arguments Triton passes addresses of scratch memory, which our kernels use none of.
        bits = [_bits(kind, arg) for kind, arg in arguments]
        parameters = dict(zip(machine.program.parameters, [*bits, *[np.uint64(0)] * 2], strict=False))
        counters = machine.run(grid, parameters, memory, None if self.sample is None else self.sample(grid))
        self.launches.append(Launched(kernel=machine.program.name, grid=grid, counters=counters))


@contextlib.contextmanager
def emulated(target: int, **options: Any) -> Iterator[Driver]:
    """Triton's kernels run here, compiled for `target`, until the end of the block. `torch.empty` then gives memory that nobody wrote.

    Args:
        target: one of `TARGETS`.
        options: of `Driver`.

    Yields:
        The driver.

    Raises:
        RuntimeError: TRITON_INTERPRET=1, under which nothing is compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 replaces the compiler, and here is executed what the compiler writes. Unset it.")
    driver = Driver(target=target, **options)
    previous = triton.runtime.driver._active
    with (
        triton.knobs.cache.scope(),
        triton.knobs.runtime.scope(),
        # The ops ask whether kernels run on CPU tensors, as they do in the interpreter.
        patch("srm_kernels.backend.interpreted", lambda: True),
        patch("torch.empty", _fresh(torch.empty)),
        patch("torch.empty_like", _fresh(torch.empty_like)),
        patch("torch.Tensor.new_empty", _fresh(torch.Tensor.new_empty)),
    ):
        triton.knobs.cache.dir = str(CACHE)
        triton.knobs.runtime.add_stages_inspection_hook = _stop_at_ptx
        triton.runtime.driver.set_active(driver)
        try:
            yield driver
        finally:
            triton.runtime.driver._active = previous


def _stop_at_ptx(*stages: Any) -> tuple[str, str] | None:
    """Triton's hook into its stages: PTX is the binary. Without arguments it says how a cache tells such compilations from others."""
    if not stages:
        return "ptx", "ptx"
    stages[1]["cubin"] = lambda ptx, metadata: ptx.encode()
    return None


def _fresh(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate_fresh(*args: Any, **kwargs: Any) -> Tensor:
        out = allocate(*args, **kwargs)
        # Fake tensors have no elements to fill; bytes have too few values to tell one that nobody wrote.
        if triton.runtime.driver.active.check and type(out) is Tensor and out.device.type == "cpu" and out.element_size() > 1:
            view_of(out.data_ptr(), out.numel() * out.element_size() // 2, RAW[2])[:] = FRESH
        return out

    return allocate_fresh


def _fresh_elements(x: Tensor) -> Array:
    """Addresses of the elements that still hold what fresh memory does."""
    size = x.element_size()
    if not x.numel() or size == 1:
        return np.empty(0, np.uint64)
    pattern = np.full(size // 2, FRESH, np.uint16).view(RAW[size])
    return x.data_ptr() + size * np.flatnonzero(view_of(x.data_ptr(), _extent(x), RAW[size]) == pattern)


def _extent(x: Tensor) -> int:
    """Elements from the first to the last one, with those in between that a stride passes over."""
    return 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0


def _bits(kind: str, arg: Any) -> np.uint64:
    """An argument as the launch passes it."""
    if kind.startswith("*"):
        return np.uint64(arg.data_ptr())
    if kind in ("fp32", "fp64"):
        dtype = np.dtype(f"f{int(kind[2:]) // 8}")
        return np.uint64(np.array(arg, dtype).view(RAW[dtype.itemsize]))
    if kind in ("i32", "i64"):
        return np.int64(arg).view(np.uint64)
    raise PtxError(f"an argument of type {kind}: only pointers, i32, i64, fp32 and fp64 are implemented.")
