"""difference_rewards in Triton: blocks of elements; the segment of each is found among the offsets inside its block.

Shape letters: `N` boundaries, `B` responses.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import NUM_THREADS, WAYS_LOG2, acc_type, aligned, blocks_of, device_of, num_warps, search_shift, segment_of_each
from ..segments import accumulate_dtype

__all__ = ["difference_rewards_backward", "difference_rewards_forward"]

BLOCK_N = NUM_THREADS


@triton.jit(do_not_specialize=["num", "num_offsets", "shift"])
def difference_kernel(
    value_ptr, cu_boundaries_ptr, out_ptr, num, num_offsets, shift, ACC: tl.constexpr, BLOCK_N: tl.constexpr, WAYS_LOG2: tl.constexpr
):
    """out [N] = value - previous value; the first of a segment keeps its own."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    n = start + tl.arange(0, BLOCK_N)
    segment = segment_of_each(cu_boundaries_ptr, num_offsets, n, start, start + BLOCK_N, shift, WAYS_LOG2)
    begin = tl.load(cu_boundaries_ptr + segment, mask=n < num, other=0).to(tl.int64)
    value = tl.load(value_ptr + n, mask=n < num, other=0).to(ACC)
    previous = tl.load(value_ptr + (n - 1), mask=(n < num) & (n > begin), other=0).to(ACC)
    tl.store(out_ptr + n, value - previous, mask=n < num)


@triton.jit(do_not_specialize=["num", "num_offsets", "shift"])
def difference_backward_kernel(
    grad_ptr, cu_boundaries_ptr, out_ptr, num, num_offsets, shift, ACC: tl.constexpr, BLOCK_N: tl.constexpr, WAYS_LOG2: tl.constexpr
):
    """out [N] = grad - next grad; the last of a segment keeps its own."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    n = start + tl.arange(0, BLOCK_N)
    segment = segment_of_each(cu_boundaries_ptr, num_offsets, n, start, start + BLOCK_N, shift, WAYS_LOG2)
    end = tl.load(cu_boundaries_ptr + (segment + 1), mask=n < num, other=0).to(tl.int64)
    grad = tl.load(grad_ptr + n, mask=n < num, other=0).to(ACC)
    following = tl.load(grad_ptr + (n + 1), mask=(n < num) & (n + 1 < end), other=0).to(ACC)
    tl.store(out_ptr + n, grad - following, mask=n < num)


def difference_rewards_forward(value: Tensor, cu_boundaries: Tensor) -> Tensor:
    """Sentence rewards [N]."""
    return _launch(difference_kernel, value, cu_boundaries)


def difference_rewards_backward(grad: Tensor, cu_boundaries: Tensor) -> Tensor:
    """Gradient of the values [N]."""
    return _launch(difference_backward_kernel, grad, cu_boundaries)


def _launch(kernel: triton.runtime.JITFunction, x: Tensor, cu_boundaries: Tensor) -> Tensor:
    x, cu_boundaries = aligned(x), aligned(cu_boundaries)
    out = torch.empty_like(x)
    if x.numel():
        sizes = (x.numel(), cu_boundaries.numel(), search_shift(cu_boundaries.numel()))
        with device_of(x):
            kernel[(blocks_of(x.numel(), BLOCK_N),)](
                x,
                cu_boundaries,
                out,
                *sizes,
                ACC=acc_type(accumulate_dtype(x)),
                BLOCK_N=BLOCK_N,
                WAYS_LOG2=WAYS_LOG2,
                num_warps=num_warps(),
            )
    return out
