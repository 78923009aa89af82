"""Lanes: the same checks run on the reference, on Triton's interpreter and on a GPU.

The interpreter replaces the compiler for the whole process, so its lane needs a process of its own:
`TRITON_INTERPRET=1 pytest -m interpreter`. Tests of the other lanes are left out there, and the other way round.
The same tests run on compiled kernels, executed by an emulator, with `pytest -p tests.ptx.plugin -m interpreter` (docs/ptx.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

# One table for all ops. Inputs are exact in their dtype and results round once; the interpreter truncates to bf16 where a GPU rounds.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def emulates(config: pytest.Config) -> bool:
    """Whether compiled kernels are executed here."""
    return config.pluginmanager.has_plugin("tests.ptx.plugin")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_cpu = INTERPRETED or emulates(config)
    out = {item for item in items if HERE in item.path.parents and (item.get_closest_marker("interpreter") is not None) != on_cpu}
    if out:
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Where an op runs."""

    name: str
    backend: str
    device: str


@pytest.fixture(
    params=[
        Lane(name="reference", backend="torch", device="cpu"),
        pytest.param(Lane(name="interpreter", backend="triton", device="cpu"), marks=pytest.mark.interpreter),
        pytest.param(Lane(name="gpu", backend="triton", device="cuda"), marks=pytest.mark.gpu),
    ],
    ids=lambda lane: lane.name,
)
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lane:
    """The lane of this run. Memory that kernels allocate is NaN until they write it, and scan chunks are small in the interpreter."""
    lane = request.param
    # The emulator's memory is NaN by itself.
    if lane.backend == "triton" and not emulates(request.config):
        for name in ("empty", "empty_like"):
            monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    if INTERPRETED:
        monkeypatch.setattr("srm_kernels.ops.packed_gae.kernels.CHUNK", 64)  # It scans element by element.
    return lane


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate_nan(*args: Any, **kwargs: Any) -> Tensor:
        out = allocate(*args, **kwargs)
        # Fake tensors have no elements to fill.
        return out.fill_(torch.nan) if type(out) is Tensor and out.is_floating_point() else out

    return allocate_nan


@pytest.fixture
def compare(lane: Lane) -> Callable[..., None]:
    """Checks an op and its gradients against an oracle in fp64, on inputs rounded to `dtype` first.

    compare(op, oracle, {"x": fp64 tensor, ...}, dtype, other arguments): the tensors of the dictionary get gradients.
    """

    def check(
        op: Callable[..., Any], oracle: Callable[..., Any], floats: dict[str, Tensor], dtype: torch.dtype, scale: float = 1.0, **rest: Any
    ) -> None:
        ours = {name: x.to(lane.device, dtype).requires_grad_() for name, x in floats.items()}
        theirs = {name: x.detach().to("cpu", torch.float64).requires_grad_() for name, x in ours.items()}
        moved = {name: x.to(lane.device) if isinstance(x, Tensor) else x for name, x in rest.items()}
        out, expected = _tuple(op(**ours, **moved, backend=lane.backend)), _tuple(oracle(**theirs, **rest))
        close(out, expected, scale)
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in out]
        grads = torch.autograd.grad(out, list(ours.values()), [g.to(lane.device) for g in cotangents])
        loss = sum((g.double() * x).sum() for g, x in zip(cotangents, expected, strict=True))
        # What no output depends on has no gradient for autograd, and zero for us.
        loss = loss + sum(0 * x.sum() for x in theirs.values())
        close(grads, torch.autograd.grad(loss, list(theirs.values())), scale)

    return check


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """`assert_close(tensors, fp64 tensors)` with the tolerance of their dtype."""
    return close


def close(out: Any, expected: Any, scale: float = 1.0) -> None:
    for ours, theirs in zip(_tuple(out), _tuple(expected), strict=True):
        tolerance = TOLERANCE[ours.dtype] * scale
        torch.testing.assert_close(ours.detach().cpu().double(), theirs.detach().double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def _tuple(x: Any) -> tuple[Tensor, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


@pytest.fixture(scope="session")
def random() -> Callable[..., Tensor]:
    """`random(seed, *shape)`: standard normal, fp64."""

    def draw(seed: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return draw
