"""gather_boundaries: rows of the hidden states at the sentence boundaries.

Shape letters: `T` tokens, `N` boundaries, `D` hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backend import Backend, check_backend, choose_backend
from ...layout import SentenceLayout, check_index
from ..registration import (
    FLOAT_DTYPES,
    check_float,
    check_positions,
    check_same_device,
    kept_order,
    order_of,
    register_backward_op,
    register_op,
)
from .reference import gather_boundaries_backward_reference, gather_boundaries_reference

__all__ = ["gather_boundaries"]


def gather_boundaries(
    hidden: Tensor,
    boundaries: Tensor | SentenceLayout,
    *,
    out_dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Rows of `hidden` at `boundaries`.

    Args:
        hidden: [T, D]; fp16, bf16, fp32 or fp64. Rows may lie apart.
        boundaries: int32 or int64 [N] in [0, T). Positions may repeat; their gradients sum, in fp32 (fp64 for fp64), in a fixed order.
            Or the layout they are of: it sorts them once, where the kernels of several ops and steps would each do it.
        out_dtype: of the result; `hidden`'s if None.
        backend: what runs: `"auto"`, `"triton"` or `"torch"`.

    Returns:
        [N, D] in `out_dtype`, differentiable in `hidden`: the backward writes the whole [T, D] gradient in one pass.

    Raises:
        TypeError: a tensor or an `out_dtype` of another dtype.
        ValueError: a `hidden` that is not [T, D], or another device.
        IndexError: a boundary outside [0, T), on the CPU and in debug mode; undefined behaviour on a GPU otherwise.
        RuntimeError: `backend="triton"` where it cannot run, or a second or forward-mode derivative.
    """
    op = "gather_boundaries"
    check_backend(op, backend)
    layout = boundaries if isinstance(boundaries, SentenceLayout) else None
    boundaries = boundaries.boundaries if isinstance(boundaries, SentenceLayout) else boundaries
    check_float(op, hidden=hidden)
    check_index(op, "boundaries", boundaries)
    if hidden.dim() != 2:
        raise ValueError(f"{op}: `hidden` must have shape [T, D], got {list(hidden.shape)}. Flatten batch and length first.")
    check_same_device(op, hidden=hidden, boundaries=boundaries)
    check_positions(op, "boundaries", boundaries, hidden.shape[0])
    if out_dtype is not None and out_dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: `out_dtype` must be floating point (fp16, bf16, fp32 or fp64), got {out_dtype}.")
    # The gradient alone asks for the order.
    order = order_of(layout if hidden.requires_grad and torch.is_grad_enabled() else None, backend)
    return _gather_boundaries_op(hidden, boundaries, *order, out_dtype or hidden.dtype, backend)


def _gather_boundaries(
    hidden: Tensor,
    boundaries: Tensor,
    positions: Tensor | None,
    indices: Tensor | None,
    version: int | None,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    if choose_backend("gather_boundaries", backend, hidden.device) == "triton":
        from .kernels import gather_boundaries_forward as run
    else:
        run = gather_boundaries_reference
    return run(hidden, boundaries, out_dtype)


def _fake(
    hidden: Tensor,
    boundaries: Tensor,
    positions: Tensor | None,
    indices: Tensor | None,
    version: int | None,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    return hidden.new_empty((boundaries.shape[0], hidden.shape[1]), dtype=out_dtype)


def _gather_boundaries_backward(
    grad: Tensor,
    boundaries: Tensor,
    positions: Tensor | None,
    indices: Tensor | None,
    version: int | None,
    num_tokens: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """Gradient of `hidden` [T, D] in `dtype`."""
    if choose_backend("gather_boundaries", backend, grad.device) == "triton":
        from .kernels import gather_boundaries_backward

        return gather_boundaries_backward(grad, boundaries, num_tokens, dtype, kept_order(boundaries, positions, indices, version))
    return gather_boundaries_backward_reference(grad, boundaries, num_tokens, dtype)


def _fake_backward(
    grad: Tensor,
    boundaries: Tensor,
    positions: Tensor | None,
    indices: Tensor | None,
    version: int | None,
    num_tokens: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    return grad.new_empty((num_tokens, grad.shape[1]), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, *indices, ctx.version, _, ctx.backend = inputs
    # Not `hidden` itself: its [T, D] would be kept for a shape.
    ctx.num_tokens, ctx.dtype = hidden.shape[0], hidden.dtype
    ctx.save_for_backward(*indices)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_hidden = _gather_boundaries_backward_op(grad, *ctx.saved_tensors, ctx.version, ctx.num_tokens, ctx.dtype, ctx.backend)
    return grad_hidden, None, None, None, None, None, None


_gather_boundaries_op = register_op("gather_boundaries", _gather_boundaries, _fake, save=_save, backward=_backward)
_gather_boundaries_backward_op = register_backward_op("gather_boundaries", _gather_boundaries_backward, _fake_backward)
