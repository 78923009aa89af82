"""gather_boundaries in plain PyTorch: the definition, and what runs on the CPU.

Shape letters: `T` tokens, `N` boundaries, `D` hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..segments import accumulate_dtype

__all__ = ["gather_boundaries_backward_reference", "gather_boundaries_reference"]


def gather_boundaries_reference(hidden: Tensor, boundaries: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """Rows of `hidden`, differentiable as often as you like.

    Args:
        hidden: [T, D].
        boundaries: int [N].
        out_dtype: of the result; `hidden`'s if None.

    Returns:
        [N, D] in `out_dtype`.
    """
    return hidden.index_select(0, boundaries).to(out_dtype or hidden.dtype)


def gather_boundaries_backward_reference(grad: Tensor, boundaries: Tensor, num_tokens: int, dtype: torch.dtype) -> Tensor:
    """Gradient of `hidden` [T, D], in `dtype`, from `grad` [N, D]; rows gathered twice get the sum."""
    acc = accumulate_dtype(grad.dtype, dtype)
    grad_ND = grad.to(acc)
    grad_TD = grad_ND.new_zeros((num_tokens, grad.shape[1]), dtype=dtype)
    if dtype == acc:
        return grad_TD.index_add_(0, boundaries, grad_ND)
    # Sum duplicates in the accumulation dtype, and only over the rows that occur: a full [T, D] in fp32 would be most of the work.
    row_M, position_N = boundaries.long().unique(return_inverse=True)  # index_copy_ takes no int32.
    sum_MD = grad_ND.new_zeros((row_M.numel(), grad.shape[1])).index_add_(0, position_N, grad_ND)
    return grad_TD.index_copy_(0, row_M, sum_MD.to(dtype))
