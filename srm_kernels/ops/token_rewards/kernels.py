"""token_rewards in Triton: a program owns a block of tokens, and finds the sentences that end there by one search in the sorted boundaries.

Shape letters: `T` tokens, `N` boundaries, `B` responses.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import (
    NUM_THREADS,
    WAYS_LOG2,
    acc_type,
    aligned,
    device_of,
    joined,
    num_warps,
    places_between,
    search_shift,
    segment_of_each,
    sort_positions,
    split_float,
    strided,
    upper_bound,
)
from ..segments import accumulate_dtype
from .reference import ESTIMATORS

__all__ = ["token_rewards_backward", "token_rewards_forward"]

BLOCK = 512
K1: tl.constexpr = tl.constexpr(0)
K2: tl.constexpr = tl.constexpr(1)
NUM_TERMS: tl.constexpr = tl.constexpr(16)


@triton.jit
def expm1_less_y(y):
    """exp(y) - 1 - y. Near 0 by its series: the difference of nearly equal numbers has no digits left there.

    By factors, not divisions: one in fp64 is a call on a GPU, around which registers spill.
    """
    small = tl.abs(y) < 0.5
    z = tl.where(small, y, 0.0)
    series = tl.zeros_like(z) + 1.0
    for i in tl.static_range(NUM_TERMS):
        series = 1.0 + z * (1.0 / (NUM_TERMS + 2 - i)) * series
    return tl.where(small, 0.5 * z * z * series, tl.exp(y) - 1.0 - y)


@triton.jit
def log_ratio(logprob_ptr, ref_logprob_ptr, i, mask, kl_coef, ACC: tl.constexpr):
    """log policy - log reference of tokens i, and where it takes no part: without a price, or -inf under both. It is 0 there, not NaN."""
    policy = tl.load(logprob_ptr + i, mask=mask, other=0).to(ACC)
    reference = tl.load(ref_logprob_ptr + i, mask=mask, other=0).to(ACC)
    # The price is stretched over the block: the interpreter has no `or` of a scalar and a block.
    free = ((policy == reference) & (tl.abs(policy) == float("inf"))) | (kl_coef + tl.zeros_like(policy) == 0)
    return tl.where(free, 0.0, policy - reference), free


@triton.jit(do_not_specialize=["num", "num_offsets", "num_tokens", "shift"])
def token_rewards_kernel(
    reward_ptr,
    sorted_ptr,
    order_ptr,
    cu_boundaries_ptr,
    logprob_ptr,
    ref_logprob_ptr,
    earned_ptr,
    out_ptr,
    num,
    num_offsets,
    num_tokens,
    shift,
    kl_high,
    kl_low,
    ACC: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    WAYS_LOG2: tl.constexpr,
):
    """out [T] = sentence rewards at their last token - kl_coef · KL estimate. earned [N] is for the programs' own use."""
    kl_coef = joined(kl_high, kl_low, ACC)
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    token = begin + strided(BLOCK)
    in_range = token < num_tokens
    # Few tokens close a sentence: from here on a lane is a sorted boundary of the block, not a token.
    lane = tl.arange(0, LANES)
    first, last = places_between(sorted_ptr, num, begin, begin + BLOCK, shift, WAYS_LOG2)
    first, last = first.to(tl.int64), last.to(tl.int64)
    start = first
    while start < last:
        j = start + lane
        n = tl.load(order_ptr + j, mask=j < last, other=0).to(tl.int64)
        response = upper_bound(cu_boundaries_ptr, n, num_offsets * 0, num_offsets).to(tl.int64) - 1
        opening = tl.load(cu_boundaries_ptr + response, mask=j < last, other=0).to(tl.int64)
        # Index 0 sits on the prompt and earns nothing.
        tl.store(earned_ptr + j, tl.load(reward_ptr + n, mask=(j < last) & (n > opening), other=0).to(ACC), mask=j < last)
        start += LANES
    x, _ = log_ratio(logprob_ptr, ref_logprob_ptr, token, in_range, kl_coef, ACC)
    if ESTIMATOR == K1:
        kl = x
    elif ESTIMATOR == K2:
        kl = 0.5 * x * x
    else:
        kl = expm1_less_y(-x)
    tl.store(out_ptr + token, 0.0 - kl_coef * kl, mask=in_range)
    tl.debug_barrier()  # From here on threads read what others wrote to `out` and `earned`.
    start = first
    while start < last:
        j = start + lane
        position = tl.load(sorted_ptr + j, mask=j < last, other=-1).to(tl.int64)
        # The first boundary of a token adds up what all of them earned.
        adds = (j < last) & (position != tl.load(sorted_ptr + (j - 1), mask=(j < last) & (j > 0), other=-1).to(tl.int64))
        paid = tl.load(out_ptr + position, mask=adds, other=0)
        total = tl.zeros((LANES,), ACC)
        more = adds
        while tl.max(more.to(tl.int32), 0) > 0:
            total += tl.load(earned_ptr + j, mask=more, other=0)
            j += 1
            more = more & (j < last) & (tl.load(sorted_ptr + j, mask=more & (j < last), other=-1).to(tl.int64) == position)
        tl.store(out_ptr + position, total + paid, mask=adds)
        start += LANES


@triton.jit(do_not_specialize=["num", "num_offsets", "num_tokens", "shift"])
def token_rewards_backward_kernel(
    grad_ptr,
    boundary_ptr,
    cu_boundaries_ptr,
    logprob_ptr,
    ref_logprob_ptr,
    grad_reward_ptr,
    grad_logprob_ptr,
    grad_ref_logprob_ptr,
    num,
    num_offsets,
    num_tokens,
    shift,
    kl_high,
    kl_low,
    ACC: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    WAYS_LOG2: tl.constexpr,
):
    """grad_reward [N] by a gather, grad_logprob [T] and grad_ref_logprob [T] elementwise; blocks of T cover N too."""
    kl_coef = joined(kl_high, kl_low, ACC)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = start + strided(BLOCK)
    if start < num:
        response = segment_of_each(cu_boundaries_ptr, num_offsets, i, start, start + BLOCK, shift, WAYS_LOG2)
        begin = tl.load(cu_boundaries_ptr + response, mask=i < num, other=0).to(tl.int64)
        position = tl.load(boundary_ptr + i, mask=i < num, other=0).to(tl.int64)
        earned = tl.load(grad_ptr + position, mask=(i < num) & (i > begin), other=0).to(ACC)
        tl.store(grad_reward_ptr + i, earned, mask=i < num)
    x, free = log_ratio(logprob_ptr, ref_logprob_ptr, i, i < num_tokens, kl_coef, ACC)
    if ESTIMATOR == K1:
        slope = tl.full((BLOCK,), 1.0, ACC)
    elif ESTIMATOR == K2:
        slope = x
    else:
        slope = x - expm1_less_y(-x)  # 1 - exp(-x)
    grad = -kl_coef * slope * tl.load(grad_ptr + i, mask=i < num_tokens, other=0).to(ACC)
    grad = tl.where(free, 0.0, grad)
    tl.store(grad_logprob_ptr + i, grad, mask=i < num_tokens)
    tl.store(grad_ref_logprob_ptr + i, -grad, mask=i < num_tokens)


def token_rewards_forward(
    sentence_reward: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float,
    estimator: str,
    order: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Rewards [T]. `order`: sorted positions and their indices, where somebody has them."""
    dtype = accumulate_dtype(sentence_reward, logprobs, ref_logprobs)
    num, num_tokens, cu_boundaries = boundaries.numel(), logprobs.numel(), aligned(cu_boundaries)
    out = torch.empty(num_tokens, dtype=dtype, device=logprobs.device)
    if num_tokens:
        positions, indices = order or sort_positions(boundaries, num_tokens)
        with device_of(logprobs):
            token_rewards_kernel[(triton.cdiv(num_tokens, BLOCK),)](
                aligned(sentence_reward),
                aligned(positions),
                aligned(indices),
                cu_boundaries,
                aligned(logprobs),
                aligned(ref_logprobs),
                torch.empty(num, dtype=dtype, device=logprobs.device),
                out,
                num,
                cu_boundaries.numel(),
                num_tokens,
                search_shift(num),
                *split_float(kl_coef),
                ACC=acc_type(dtype),
                ESTIMATOR=ESTIMATORS.index(estimator),
                BLOCK=BLOCK,
                LANES=NUM_THREADS,
                WAYS_LOG2=WAYS_LOG2,
                num_warps=num_warps(),
            )
    return out


def token_rewards_backward(
    grad: Tensor,
    sentence_reward: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float,
    estimator: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sentence_reward [N], logprobs [T], ref_logprobs [T]."""
    num, num_tokens, cu_boundaries = boundaries.numel(), logprobs.numel(), aligned(cu_boundaries)
    grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (sentence_reward, logprobs, ref_logprobs))
    if max(num, num_tokens):
        with device_of(grad):
            token_rewards_backward_kernel[(triton.cdiv(max(num, num_tokens), BLOCK),)](
                aligned(grad),
                aligned(boundaries),
                cu_boundaries,
                aligned(logprobs),
                aligned(ref_logprobs),
                *grads,
                num,
                cu_boundaries.numel(),
                num_tokens,
                search_shift(cu_boundaries.numel()),
                *split_float(kl_coef),
                ACC=acc_type(grad.dtype),
                ESTIMATOR=ESTIMATORS.index(estimator),
                BLOCK=BLOCK,
                WAYS_LOG2=WAYS_LOG2,
                num_warps=num_warps(),
            )
    return grads[0], grads[1], grads[2]
