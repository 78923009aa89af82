"""gather_boundaries: rows of the hidden states at the sentence boundaries.

Shape letters: `T` tokens, `N` boundaries, `D` hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backend import Backend, choose_backend
from ...layout import check_index
from ..registration import FLOAT_DTYPES, check_float, check_positions, check_same_device, check_shape, refuse_double_backward
from ..segments import accumulate_dtype
from .reference import gather_boundaries_backward_reference, gather_boundaries_reference

__all__ = ["gather_boundaries"]


def gather_boundaries(
    hidden: Tensor,
    boundaries: Tensor,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    out_dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Rows of `hidden` at `boundaries`, optionally RMS-normed in the same pass.

    Args:
        hidden: [T, D]; fp16, bf16, fp32 or fp64. Rows may lie apart.
        boundaries: int32 or int64 [N] in [0, T). Positions may repeat; their gradients sum, in fp32 (fp64 for fp64), in a fixed order.
        norm_weight: [D]; the rows become `x / sqrt(mean(x²) + eps) · norm_weight`.
        eps: of the norm.
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
    check_float(op, hidden=hidden, norm_weight=norm_weight)
    check_index(op, "boundaries", boundaries)
    if hidden.dim() != 2:
        raise ValueError(f"{op}: `hidden` must have shape [T, D], got {list(hidden.shape)}. Flatten batch and length first.")
    check_shape(op, "norm_weight", norm_weight, (hidden.shape[1],), "[D]")
    check_same_device(op, hidden=hidden, boundaries=boundaries, norm_weight=norm_weight)
    check_positions(op, "boundaries", boundaries, hidden.shape[0])
    if out_dtype is not None and out_dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: `out_dtype` must be floating point (fp16, bf16, fp32 or fp64), got {out_dtype}.")
    return _gather_boundaries(hidden, boundaries, norm_weight, eps, out_dtype or hidden.dtype, backend)[0]


@torch.library.custom_op("srm_kernels::gather_boundaries", mutates_args=())
def _gather_boundaries(
    hidden: Tensor, boundaries: Tensor, norm_weight: Tensor | None, eps: float, out_dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    """Rows [N, D], and the reciprocal root mean square [N] of each (empty without norm, zeros from the reference)."""
    if choose_backend("gather_boundaries", backend, hidden.device) == "triton":
        from .kernels import gather_boundaries_forward

        return gather_boundaries_forward(hidden, boundaries, norm_weight, eps, out_dtype)
    row_ND = gather_boundaries_reference(hidden, boundaries, norm_weight, eps, out_dtype)
    # The reference's backward computes it anew.
    rstd_N = hidden.new_zeros(0 if norm_weight is None else boundaries.numel(), dtype=accumulate_dtype(hidden, norm_weight))
    return row_ND, rstd_N


@_gather_boundaries.register_fake
def _(
    hidden: Tensor, boundaries: Tensor, norm_weight: Tensor | None, eps: float, out_dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    num = boundaries.shape[0]
    rstd_N = hidden.new_empty(0 if norm_weight is None else num, dtype=accumulate_dtype(hidden, norm_weight))
    return hidden.new_empty((num, hidden.shape[1]), dtype=out_dtype), rstd_N


@torch.library.custom_op("srm_kernels::gather_boundaries_backward", mutates_args=())
def _gather_boundaries_backward(
    grad: Tensor,
    hidden: Tensor,
    boundaries: Tensor,
    norm_weight: Tensor | None,
    rstd: Tensor,
    eps: float,
    need_hidden: bool,
    need_weight: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of `hidden` [T, D] and `norm_weight` [D]; one that is not needed is empty."""
    if choose_backend("gather_boundaries", backend, hidden.device) == "triton":
        from .kernels import gather_boundaries_backward

        grad_hidden, grad_weight = gather_boundaries_backward(grad, hidden, boundaries, norm_weight, rstd, need_hidden, need_weight)
    else:
        grad_hidden, grad_weight = gather_boundaries_backward_reference(
            grad, hidden, boundaries, norm_weight, eps, need_hidden, need_weight
        )
    empty = hidden.new_empty(0)
    return (
        empty if grad_hidden is None else grad_hidden,
        empty.clone() if grad_weight is None else grad_weight,
    )


@_gather_boundaries_backward.register_fake
def _(
    grad: Tensor,
    hidden: Tensor,
    boundaries: Tensor,
    norm_weight: Tensor | None,
    rstd: Tensor,
    eps: float,
    need_hidden: bool,
    need_weight: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    has_weight = need_weight and norm_weight is not None
    return (
        hidden.new_empty(hidden.shape if need_hidden else (0,)),
        norm_weight.new_empty(norm_weight.shape) if has_weight and norm_weight is not None else hidden.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, boundaries, norm_weight, ctx.eps, _, ctx.backend = inputs
    ctx.save_for_backward(hidden, boundaries, norm_weight, output[1])


def _backward(ctx: Any, grad: Tensor, grad_rstd: Tensor) -> tuple[Tensor | None, ...]:
    hidden, boundaries, norm_weight, rstd = ctx.saved_tensors
    need_hidden, _, need_weight, *_ = ctx.needs_input_grad
    grad_hidden, grad_weight = _gather_boundaries_backward(
        grad, hidden, boundaries, norm_weight, rstd, ctx.eps, need_hidden, need_weight, ctx.backend
    )
    return grad_hidden if need_hidden else None, None, grad_weight if need_weight else None, None, None, None


_gather_boundaries.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(_gather_boundaries_backward, "gather_boundaries")
