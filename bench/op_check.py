"""Nothing is timed before it is right: the fp64 definition of a case, and how far a provider is from it."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from op_cases import Case, Provider
from torch import Tensor

__all__ = ["Expected", "compare", "define", "gradients", "verify"]

# Outputs, gradients of the inputs, and the gradients that flow into the outputs.
Expected: TypeAlias = "tuple[list[Tensor], list[Tensor], list[Tensor]]"
DTYPE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 0.0, torch.float16: 2e-3, torch.bfloat16: 8e-3}
WHOLE_TOLERANCE = 0.1
CHUNK = 1 << 26


def define(case: Case) -> Expected:
    """Outputs and gradients of the fp64 definition, kept in fp32, and the gradients that flow in: exact in bf16, so in every dtype."""
    exact = {name: x.detach().double().requires_grad_() for name, x in case.floats.items()}
    outputs = case.definition(**exact)
    flowing = []
    for i, x in enumerate(outputs[: case.grad_outputs]):
        generator = torch.Generator(x.device).manual_seed(100 + i)
        # Around 1, not 0: the gradient of a bias is their sum, and rounding would be most of a sum that cancels.
        flowing.append((1 + torch.randn(x.shape, generator=generator, device=x.device)).bfloat16().float())
    grads = torch.autograd.grad(outputs[: case.grad_outputs], list(exact.values()), [g.double() for g in flowing])
    return [x.detach().float() for x in outputs], [x.float() for x in grads], flowing


def verify(provider: Provider, case: Case, expected: Expected) -> dict[str, Any]:
    """`max_error`, in units of what is allowed, and `problem`: why it gets no time, or None."""
    try:
        outputs = provider.run(**case.floats)
        grads = gradients(outputs, case, expected[2]) if "backward" in provider.modes else None
        return compare(provider, outputs, grads, expected)
    except torch.OutOfMemoryError:
        return {"problem": "out of memory", "left_out": True}
    except Exception as failure:  # A baseline that cannot run is a finding, and the others still count.
        return {"problem": f"failed: {type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure).strip() else ''}"}


def compare(provider: Provider, outputs: tuple[Tensor, ...], grads: tuple[Tensor, ...] | None, expected: Expected) -> dict[str, Any]:
    """What `verify` says of outputs, and of gradients where there are some."""
    wanted_outputs, wanted_grads, _ = expected
    pairs = list(zip(provider.finish(outputs), wanted_outputs, strict=False))
    if grads is not None:
        pairs += zip(grads, wanted_grads, strict=True)
    error = max(_error(got.detach(), wanted, provider.tolerance) for got, wanted in pairs)
    return {"max_error": error, "problem": None if error <= 1 else f"wrong: an element is off by {error:.1f} times what is allowed"}


def gradients(outputs: tuple[Tensor, ...], case: Case, flowing: list[Tensor]) -> tuple[Tensor, ...]:
    """Of all inputs, from those that flow into the outputs."""
    used = outputs[: case.grad_outputs]
    return torch.autograd.grad(used, list(case.floats.values()), [g.to(x.dtype) for g, x in zip(flowing, used, strict=True)])


def _error(got: Tensor, wanted: Tensor, tolerance: float) -> float:
    """How wrong, where 1 is the most allowed: the worst element beside its size plus the root mean square of all, and the whole beside
    its norm. Infinite where it is not a number."""
    if got.shape != wanted.shape:
        return math.inf
    if wanted.numel() == 0:
        return 0.0
    allowed = max(tolerance, DTYPE_TOLERANCE[got.dtype])
    norm = max(torch.linalg.vector_norm(wanted).item(), 1e-30)
    worst = square = 0.0
    for a, b in zip(got.flatten().split(CHUNK), wanted.flatten().split(CHUNK), strict=True):
        distance = (a.float() - b).abs()
        square += distance.square().sum().item()
        worst = max(worst, _or_infinite((distance / (b.abs() + norm / math.sqrt(wanted.numel()))).max().item()))
    return max(worst / allowed, _or_infinite(math.sqrt(square)) / norm / min(allowed, WHOLE_TOLERANCE))


def _or_infinite(x: float) -> float:
    return x if math.isfinite(x) else math.inf
