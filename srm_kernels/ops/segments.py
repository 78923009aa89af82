"""What the PyTorch references share: segment numbers, and the dtype to accumulate in."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import values_readable

__all__ = ["accumulate_dtype", "first_of_segment", "segment_cumsum", "segment_of", "segment_sum"]


def accumulate_dtype(*of: Tensor | torch.dtype | None) -> torch.dtype:
    """fp64 if any tensor or dtype is fp64, else fp32."""
    return torch.float64 if any((x.dtype if isinstance(x, Tensor) else x) == torch.float64 for x in of) else torch.float32


def segment_of(cu_seqlens: Tensor, num: int) -> Tensor:
    """Segment number int64 [N] of each element, from offsets `cu_seqlens` [B + 1]; `num` = N spares a device synchronisation."""
    return torch.repeat_interleave(cu_seqlens.diff().long(), output_size=num)


def first_of_segment(cu_seqlens: Tensor, num: int) -> Tensor:
    """bool [N]: whether each element is the first of its segment."""
    first_N = torch.zeros(num + 1, dtype=torch.bool, device=cu_seqlens.device)
    # An empty segment marks its successor's first element once more; the last offset marks the spare one.
    return first_N.index_fill_(0, cu_seqlens.long(), True)[:num]


def segment_sum(x: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum of `x` [N, ...] inside each segment, [B, ...]."""
    return x.new_zeros((num_segments, *x.shape[1:])).index_add(0, segment, x)


def segment_cumsum(x: Tensor, cu_seqlens: Tensor, segment: Tensor, *, reverse: bool = False) -> Tensor:
    """[N] sum of `x` [N] from the beginning of each element's segment to it, or from it to the end: by doubling, in a few vector steps.

    No difference of sums over all segments: the NaN of one, or its large numbers, would be in those behind it. In fp64, because callers
    take differences of the sums.
    """
    n = torch.arange(x.numel(), device=x.device)
    inside_N = cu_seqlens[1:].long()[segment] - 1 - n if reverse else n - cu_seqlens[:-1].long()[segment]
    # Where it costs nothing to ask, no step is longer than the longest segment.
    longest = int(cu_seqlens.diff().max()) if x.numel() and values_readable(cu_seqlens) else x.numel()
    total, step = x.double(), 1
    while step < longest:
        total = total + total.roll(-step if reverse else step).masked_fill(inside_N < step, 0)
        step *= 2
    return total.to(x.dtype)
