"""Which implementation runs, and why: `auto`, `triton` or `torch`."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from dataclasses import dataclass
from typing import Literal, get_args

import torch

__all__ = ["Backend", "BackendChoice", "BackendReport", "backend_report", "check_backend", "choose_backend", "debug_enabled"]

Backend = Literal["auto", "triton", "torch"]
"""What runs an op: Triton's kernels, plain PyTorch, or, for `"auto"`, Triton on a GPU that can and PyTorch elsewhere."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """What `backend="auto"` runs on one device.

    Attributes:
        device: `cpu`, or `cuda:0` and so on.
        backend: what runs there.
        reason: why.
    """

    device: str
    backend: Literal["triton", "torch"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class BackendReport:
    """The answer of `backend_report()`; `print` it.

    Attributes:
        torch_version: of the installed torch.
        triton_version: of the installed triton, or None.
        choices: what runs on each device, the CPU first.
        debug: whether `SRM_KERNELS_DEBUG=1` has index values checked on GPUs too.
    """

    torch_version: str
    triton_version: str | None
    choices: tuple[BackendChoice, ...]
    debug: bool

    def __str__(self) -> str:
        lines = [f"torch {self.torch_version}, triton {self.triton_version or 'not installed'}"]
        lines += [f"{choice.device}: {choice.backend} ({choice.reason})" for choice in self.choices]
        lines.append(f"debug checks: {'on' if self.debug else 'off (SRM_KERNELS_DEBUG=1 turns them on)'}")
        return "\n".join(lines)


def backend_report() -> BackendReport:
    """What `backend="auto"` runs on the CPU and on every visible GPU, and why. Never raises.

    Returns:
        A `BackendReport`, for `print`.
    """
    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    return BackendReport(
        torch_version=torch.__version__,
        triton_version=_triton_version(),
        choices=tuple(_auto_choice(device, interpreted()) for device in devices),
        debug=debug_enabled(),
    )


def check_backend(op: str, backend: str) -> None:
    """Raises ValueError where `backend` is not one of `Backend`."""
    if backend not in get_args(Backend):
        raise ValueError(f'{op}: `backend` must be "auto", "triton" or "torch", got {backend!r}.')


def choose_backend(op: str, backend: str, device: torch.device) -> Literal["triton", "torch"]:
    """Resolves `backend` for tensors on `device`; raises where `"triton"` was asked for and cannot run."""
    return _resolve(op, backend, _name(device), interpreted())


def debug_enabled() -> bool:
    """Whether the values of index tensors are checked on the device too (a synchronisation a call): SRM_KERNELS_DEBUG=1."""
    return os.environ.get("SRM_KERNELS_DEBUG", "0") == "1"


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache  # Asked at every call of every op.
def _resolve(op: str, backend: str, device: str, in_interpreter: bool) -> Literal["triton", "torch"]:
    if backend == "torch":
        return "torch"
    if backend == "auto":
        return _log_once(_auto_choice(device, in_interpreter)).backend
    obstacle = _triton_obstacle(device, in_interpreter)
    if obstacle is not None:
        raise RuntimeError(f'{op}: `backend="triton"` cannot run on {device}: {obstacle}. Use "auto" or "torch".')
    return "triton"


@functools.cache
def _auto_choice(device: str, in_interpreter: bool) -> BackendChoice:
    obstacle = _triton_obstacle(device, in_interpreter)
    if obstacle is not None:
        return BackendChoice(device=device, backend="torch", reason=obstacle)
    if device.startswith("cpu"):
        return BackendChoice(device=device, backend="torch", reason="the Triton interpreter only runs when asked for by name")
    return BackendChoice(device=device, backend="triton", reason=torch.cuda.get_device_name(device))


@functools.cache
def _triton_obstacle(device: str, in_interpreter: bool) -> str | None:
    """Why Triton cannot run on `device`, or None."""
    if _triton_version() is None:
        return "triton is not installed"
    if device.startswith("cpu"):
        return None if in_interpreter else "Triton has no CPU backend (TRITON_INTERPRET=1 runs its interpreter)"
    if not device.startswith("cuda"):
        return "only CUDA and ROCm devices have kernels"
    if in_interpreter:
        return "TRITON_INTERPRET=1 is set; the interpreter is for CPU tensors"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"compute capability {torch.cuda.get_device_capability(device)} is below 8.0"
    return None


@functools.cache
def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return str(triton.__version__)


@functools.cache
def _log_once(choice: BackendChoice) -> BackendChoice:
    logger.info("backend for %s: %s (%s)", choice.device, choice.backend, choice.reason)
    return choice


def _name(device: torch.device) -> str:
    if device.type == "cuda" and device.index is None:
        return f"cuda:{torch.cuda.current_device()}"
    return str(device)
