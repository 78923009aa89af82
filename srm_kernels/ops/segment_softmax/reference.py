"""segment_softmax in plain PyTorch: the definition, and what runs on the CPU.

Shape letters: `N` elements, `B` segments, `H` heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..segments import accumulate_dtype, segment_of, segment_sum

__all__ = ["segment_softmax_backward_reference", "segment_softmax_reference", "softmax_by_segment"]


def segment_softmax_reference(score: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Softmax inside each segment, differentiable as often as you like.

    Args:
        score: [N] or [N, H].
        cu_seqlens: int [B + 1].

    Returns:
        The shape and dtype of `score`.
    """
    segment_N = segment_of(cu_seqlens, score.shape[0])
    return softmax_by_segment(score.to(accumulate_dtype(score)), segment_N, cu_seqlens.numel() - 1).to(score.dtype)


def softmax_by_segment(score: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Softmax of `score` [N, ...] over the elements that share a `segment` [N] number."""
    index = segment.reshape(-1, *[1] * (score.dim() - 1)).expand_as(score)
    # Shift-invariant, so the max needs no gradient.
    max_B = score.new_full((num_segments, *score.shape[1:]), -torch.inf).scatter_reduce(0, index, score.detach(), "amax")
    # Where every score is -inf there is nothing to attend to: exp(-inf - 0) = 0 instead of exp(nan).
    max_B = max_B.masked_fill(max_B == -torch.inf, 0)
    exp_N = (score - max_B[segment]).exp()
    sum_B = segment_sum(exp_N, segment, num_segments)
    # Elsewhere the max itself contributes exp(0), so no epsilon: only an all-masked segment sums to 0, and stays 0.
    return exp_N / sum_B.masked_fill(sum_B == 0, 1)[segment]


def segment_softmax_backward_reference(grad: Tensor, weight: Tensor, cu_seqlens: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient of the scores from `grad` [N, ...] and the softmax `weight` [N, ...], in `dtype`."""
    segment_N = segment_of(cu_seqlens, weight.shape[0])
    weight_N = weight.to(accumulate_dtype(weight, grad))
    product_N = weight_N * grad.to(weight_N.dtype)
    return (product_N - weight_N * segment_sum(product_N, segment_N, cu_seqlens.numel() - 1)[segment_N]).to(dtype)
