"""token_rewards in Triton: one kernel sets the penalties, and counts who pays which token. The next one pays, sentence by sentence.

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
    blocks_of,
    device_of,
    joined,
    num_warps,
    search_shift,
    segment_of_each,
    split_float,
)
from ..segments import accumulate_dtype
from .reference import ESTIMATORS

__all__ = ["token_rewards_backward", "token_rewards_forward"]

# A token or a sentence a thread.
BLOCK = NUM_THREADS
# Sentences that a program looks at together where some share a token.
TILE = 8
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


@triton.jit
def closed_by_each(boundary_ptr, cu_boundaries_ptr, n, start, num, num_offsets, shift, BLOCK: tl.constexpr, WAYS_LOG2: tl.constexpr):
    """The token (int64) that each sentence n closes with, and whether it earns: index 0 sits on the prompt and does not."""
    response = segment_of_each(cu_boundaries_ptr, num_offsets, n, start, start + BLOCK, shift, WAYS_LOG2)
    begin = tl.load(cu_boundaries_ptr + response, mask=n < num, other=0).to(tl.int64)
    return tl.load(boundary_ptr + n, mask=n < num, other=0).to(tl.int64), (n < num) & (n > begin)


@triton.jit(do_not_specialize=["num", "num_offsets", "num_tokens", "shift"])
def penalty_kernel(
    boundary_ptr,
    cu_boundaries_ptr,
    logprob_ptr,
    ref_logprob_ptr,
    payee_ptr,
    count_ptr,
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
    WAYS_LOG2: tl.constexpr,
):
    """out [T] = - kl_coef · KL estimate. payee [N] = the token that a sentence pays, or -1; count [T] = sentences that pay a token."""
    kl_coef = joined(kl_high, kl_low, ACC)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = start + tl.arange(0, BLOCK)
    if start < num:
        position, earns = closed_by_each(boundary_ptr, cu_boundaries_ptr, i, start, num, num_offsets, shift, BLOCK, WAYS_LOG2)
        tl.store(payee_ptr + i, tl.where(earns, position, -1), mask=i < num)
        tl.atomic_add(count_ptr + position, 1, mask=earns, sem="relaxed")
    x, _ = log_ratio(logprob_ptr, ref_logprob_ptr, i, i < num_tokens, kl_coef, ACC)
    if ESTIMATOR == K1:
        kl = x
    elif ESTIMATOR == K2:
        kl = 0.5 * x * x
    else:
        kl = expm1_less_y(-x)
    tl.store(out_ptr + i, 0.0 - kl_coef * kl, mask=i < num_tokens)


@triton.jit(do_not_specialize=["num"])
def pay_kernel(
    reward_ptr,
    payee_ptr,
    count_ptr,
    out_ptr,
    num,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """out [T] += the reward of each sentence that pays a token, in an order that the layout alone decides."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    payee = tl.load(payee_ptr + n, mask=n < num, other=-1).to(tl.int64)
    pays = payee >= 0
    total = tl.load(reward_ptr + n, mask=pays, other=0).to(ACC)
    if tl.max(tl.load(count_ptr + payee, mask=pays, other=0), 0) > 1:
        # Some share a token, as only sentences that end within one token do. The first of them looks for the others and pays for all.
        total = tl.zeros((BLOCK,), ACC)
        start = num * 0
        while start < num:
            m = start.to(tl.int64) + tl.arange(0, TILE)
            other = tl.load(payee_ptr + m, mask=m < num, other=-1).to(tl.int64)
            reward = tl.load(reward_ptr + m, mask=other >= 0, other=0).to(ACC)
            same = payee[:, None] == other[None, :]
            total += tl.sum(tl.where(same, reward[None, :], 0.0), 1)
            pays = pays & (tl.max((same & (m[None, :] < n[:, None])).to(tl.int32), 1) == 0)
            start += TILE
    tl.store(out_ptr + payee, tl.load(out_ptr + payee, mask=pays, other=0) + total, mask=pays)


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
    i = start + tl.arange(0, BLOCK)
    if start < num:
        position, earns = closed_by_each(boundary_ptr, cu_boundaries_ptr, i, start, num, num_offsets, shift, BLOCK, WAYS_LOG2)
        earned = tl.load(grad_ptr + position, mask=earns, other=0).to(ACC)
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
) -> Tensor:
    """Rewards [T]."""
    dtype = accumulate_dtype(sentence_reward, logprobs, ref_logprobs)
    num, num_tokens, cu_boundaries = boundaries.numel(), logprobs.numel(), aligned(cu_boundaries)
    out = torch.empty(num_tokens, dtype=dtype, device=logprobs.device)
    if num_tokens:
        payee = torch.empty(num, dtype=boundaries.dtype, device=logprobs.device)
        count = logprobs.new_zeros(num_tokens, dtype=torch.int32)
        with device_of(logprobs):
            penalty_kernel[(blocks_of(max(num, num_tokens), BLOCK),)](
                aligned(boundaries),
                cu_boundaries,
                aligned(logprobs),
                aligned(ref_logprobs),
                payee,
                count,
                out,
                num,
                cu_boundaries.numel(),
                num_tokens,
                search_shift(cu_boundaries.numel()),
                *split_float(kl_coef),
                ACC=acc_type(dtype),
                ESTIMATOR=ESTIMATORS.index(estimator),
                BLOCK=BLOCK,
                WAYS_LOG2=WAYS_LOG2,
                num_warps=num_warps(),
            )
            if num:
                pay_kernel[(blocks_of(num, BLOCK),)](
                    aligned(sentence_reward),
                    payee,
                    count,
                    out,
                    num,
                    ACC=acc_type(dtype),
                    BLOCK=BLOCK,
                    TILE=TILE,
                    num_warps=num_warps(),
                )
    return out


def token_rewards_backward(
    grad: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float,
    estimator: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sentence rewards [N], in `dtype`, of logprobs [T] and ref_logprobs [T]."""
    num, num_tokens, cu_boundaries = boundaries.numel(), logprobs.numel(), aligned(cu_boundaries)
    outputs = ((num, dtype), (num_tokens, logprobs.dtype), (num_tokens, ref_logprobs.dtype))
    grads = tuple(torch.empty(size, dtype=of, device=grad.device) for size, of in outputs)
    if max(num, num_tokens):
        with device_of(grad):
            token_rewards_backward_kernel[(blocks_of(max(num, num_tokens), BLOCK),)](
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
