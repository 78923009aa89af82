"""difference_rewards in plain PyTorch: the definition, and what runs on the CPU.

Shape letters: `N` boundaries, `B` responses.
"""

from __future__ import annotations

from torch import Tensor

from ..segments import accumulate_dtype, first_of_segment

__all__ = [
    "difference_by_segment",
    "difference_rewards_backward_reference",
    "difference_rewards_reference",
    "transposed_difference",
]


def difference_rewards_reference(value: Tensor, cu_boundaries: Tensor) -> Tensor:
    """`r_0 = v_0`, `r_i = v_i - v_{i-1}` inside each response, differentiable as often as you like.

    Args:
        value: [N].
        cu_boundaries: int [B + 1].

    Returns:
        [N] in `value`'s dtype.
    """
    first_N = first_of_segment(cu_boundaries, value.shape[0])
    return difference_by_segment(value.to(accumulate_dtype(value)), first_N).to(value.dtype)


def difference_by_segment(value: Tensor, first: Tensor) -> Tensor:
    """The same, from a mask `first` bool [N] of segment starts."""
    if value.numel() == 0:
        return value.clone()
    previous_N = value.roll(1).masked_fill(first, 0)
    return value - previous_N


def difference_rewards_backward_reference(grad: Tensor, cu_boundaries: Tensor) -> Tensor:
    """`dv_i = g_i - g_{i+1}`, the last of a segment keeps `g_i`; in `grad`'s dtype."""
    first_N = first_of_segment(cu_boundaries, grad.shape[0])
    return transposed_difference(grad.to(accumulate_dtype(grad)), first_N).to(grad.dtype)


def transposed_difference(grad: Tensor, first: Tensor) -> Tensor:
    """Transpose of `difference_by_segment`. The first of a segment is nobody's successor; element 0 is always first."""
    return grad - grad.masked_fill(first, 0).roll(-1)
