"""gather_boundaries in plain PyTorch: the definition, and what runs on the CPU.

Shape letters: `T` tokens, `N` boundaries, `D` hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..segments import accumulate_dtype

__all__ = ["gather_boundaries_backward_reference", "gather_boundaries_reference"]


def gather_boundaries_reference(
    hidden: Tensor, boundaries: Tensor, norm_weight: Tensor | None = None, eps: float = 1e-6, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Rows [N, D] of `hidden` [T, D] at `boundaries` [N]; with `norm_weight` [D], RMS-normed: `x / sqrt(mean(x²) + eps) · weight`."""
    out_dtype = out_dtype or hidden.dtype
    row_ND = hidden.index_select(0, boundaries)
    if norm_weight is None:
        return row_ND.to(out_dtype)
    dtype = accumulate_dtype(hidden, norm_weight)
    row_ND = row_ND.to(dtype)
    rstd_N1 = (row_ND.square().mean(1, keepdim=True) + eps).rsqrt()
    return (row_ND * rstd_N1 * norm_weight.to(dtype)).to(out_dtype)


def gather_boundaries_backward_reference(
    grad: Tensor, hidden: Tensor, boundaries: Tensor, norm_weight: Tensor | None, eps: float, need_hidden: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `hidden` [T, D] and `norm_weight` [D] from `grad` [N, D]; rows gathered twice get the sum."""
    dtype = accumulate_dtype(hidden, norm_weight, grad)
    grad_ND = grad.to(dtype)
    grad_weight = None
    if norm_weight is not None:
        row_ND = hidden.index_select(0, boundaries).to(dtype)
        rstd_N1 = (row_ND.square().mean(1, keepdim=True) + eps).rsqrt()
        normed_ND = row_ND * rstd_N1
        if need_weight:
            grad_weight = (grad_ND * normed_ND).sum(0).to(norm_weight.dtype)
        grad_ND = grad_ND * norm_weight.to(dtype)
        grad_ND = (grad_ND - normed_ND * (grad_ND * normed_ND).mean(1, keepdim=True)) * rstd_N1
    if not need_hidden:
        return None, grad_weight
    if hidden.dtype == dtype:
        return grad_ND.new_zeros(hidden.shape).index_add_(0, boundaries, grad_ND), grad_weight
    # Sum duplicates in the accumulation dtype, and only over the rows that occur: a full [T, D] in fp32 would be most of the work.
    row_M, position_N = boundaries.long().unique(return_inverse=True)  # index_copy_ takes no int32.
    sum_MD = grad_ND.new_zeros((row_M.numel(), grad_ND.shape[1])).index_add_(0, position_N, grad_ND)
    return hidden.new_zeros(hidden.shape).index_copy_(0, row_M, sum_MD.to(hidden.dtype)), grad_weight
