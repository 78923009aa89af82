"""bradley_terry_loss in Triton: loss and gradient from one kernel.

Shape letters: `B` responses, `P` pairs.

The first program computes the loss. Each of the others owns a block of responses and picks up the gradient of the pairs that they are in.
A response may be in many pairs, so this is a gather over pairs instead of a scatter with atomics. A trip looks at the indices of 512 pairs
and goes into them only where one of its responses is met: the work is P · B / 64 looks, and as many comparisons where pairs lie at random.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import acc_type, aligned, blocks_of, device_of, joined, num_warps, split_float
from ..segments import accumulate_dtype

__all__ = ["bradley_terry_loss_with_grad"]

# Responses of a program, pairs that a trip looks at, and pairs that are compared with the responses at a time.
BLOCK_B, BLOCK_P, TILE_P = 64, 512, 64


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow; where 1 + u rounds, the rounding is divided out again (Kahan's log1p)."""
    u = tl.exp(-tl.abs(x))
    sum_ = 1.0 + u
    log1p = tl.where(sum_ == 1.0, u, tl.log(sum_) * u / tl.where(sum_ == 1.0, 1.0, sum_ - 1.0))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def load_pair(
    reward_ptr, pair_ptr, margin_ptr, weight_ptr, p, num_pairs, ACC: tl.constexpr, HAS_MARGIN: tl.constexpr, HAS_WEIGHT: tl.constexpr
):
    """Indices, difference less margin, sum, and weight of pairs p; weight 0 past the end.

    Difference and sum are 0 where the weight is: 0 · NaN would be NaN.
    """
    mask = p < num_pairs
    chosen = tl.load(pair_ptr + 2 * p, mask=mask, other=0).to(tl.int64)
    rejected = tl.load(pair_ptr + (2 * p + 1), mask=mask, other=0).to(tl.int64)
    reward_chosen = tl.load(reward_ptr + chosen, mask=mask, other=0).to(ACC)
    reward_rejected = tl.load(reward_ptr + rejected, mask=mask, other=0).to(ACC)
    d = reward_chosen - reward_rejected
    if HAS_MARGIN:
        d -= tl.load(margin_ptr + p, mask=mask, other=0).to(ACC)
    weight = tl.where(mask, 1.0, 0.0).to(ACC)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + p, mask=mask, other=0).to(ACC)
    counts = weight != 0
    return chosen, rejected, tl.where(counts, d, 0.0), tl.where(counts, reward_chosen + reward_rejected, 0.0), weight


@triton.jit
def total_weight(weight_ptr, num_pairs, ACC: tl.constexpr, HAS_WEIGHT: tl.constexpr, BLOCK_P: tl.constexpr):
    """Sum of the weights; 1 where it is 0, so that the loss of no pairs, or of none that counts, is 0."""
    total = tl.zeros((), ACC) + num_pairs
    if HAS_WEIGHT:
        sum_ = tl.zeros((BLOCK_P,), ACC)
        start = tl.zeros((), tl.int64)
        while start < num_pairs:
            p = start + tl.arange(0, BLOCK_P)
            sum_ += tl.load(weight_ptr + p, mask=p < num_pairs, other=0).to(ACC)
            start += BLOCK_P
        total = tl.sum(sum_, 0)
    return tl.where(total == 0, 1.0, total)


@triton.jit
def place_in_block(index, begin, BLOCK_B: tl.constexpr):
    """Where the responses `index` (int64) stand in the block from `begin` on, in 32 bits; -1 outside of it."""
    place = index - begin
    return tl.where((place >= 0) & (place < BLOCK_B), place, -1).to(tl.int32)


@triton.jit
def any_in_block(pair_ptr, p, num_pairs, begin, BLOCK_B: tl.constexpr):
    """Whether a pair of p is of a response of the block."""
    chosen = tl.load(pair_ptr + 2 * p, mask=p < num_pairs, other=-1).to(tl.int64)
    rejected = tl.load(pair_ptr + (2 * p + 1), mask=p < num_pairs, other=-1).to(tl.int64)
    return tl.max(tl.maximum(place_in_block(chosen, begin, BLOCK_B), place_in_block(rejected, begin, BLOCK_B)), 0) >= 0


@triton.jit(do_not_specialize=["num_rewards", "num_pairs"])
def bradley_terry_kernel(
    reward_ptr,
    pair_ptr,
    margin_ptr,
    weight_ptr,
    loss_ptr,
    grad_ptr,
    num_rewards,
    num_pairs,
    smoothing_high,
    smoothing_low,
    centering_high,
    centering_low,
    ACC: tl.constexpr,
    HAS_MARGIN: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_P: tl.constexpr,
    TILE_P: tl.constexpr,
):
    """loss [] and its gradient grad [B]."""
    smoothing = joined(smoothing_high, smoothing_low, ACC)
    centering = joined(centering_high, centering_low, ACC)
    total = total_weight(weight_ptr, num_pairs, ACC, HAS_WEIGHT, BLOCK_P)
    pid = tl.program_id(0).to(tl.int64)
    start = tl.zeros((), tl.int64)
    if pid == 0:
        loss_sum = tl.zeros((BLOCK_P,), ACC)
        while start < num_pairs:
            p = start + tl.arange(0, BLOCK_P)
            _, _, d, sum_, weight = load_pair(reward_ptr, pair_ptr, margin_ptr, weight_ptr, p, num_pairs, ACC, HAS_MARGIN, HAS_WEIGHT)
            loss = (1.0 - smoothing) * softplus(-d) + tl.where(smoothing == 0, 0.0, smoothing * softplus(d))
            loss_sum += weight * (loss + tl.where(centering == 0, 0.0, centering * sum_ * sum_))
            start += BLOCK_P
        tl.store(loss_ptr, tl.sum(loss_sum, 0) / total)
    else:
        begin = (pid - 1) * BLOCK_B
        b = tl.arange(0, BLOCK_B)
        grad = tl.zeros((BLOCK_B, TILE_P), ACC)
        while start < num_pairs:
            tile = start
            start += BLOCK_P
            if any_in_block(pair_ptr, tile + tl.arange(0, BLOCK_P), num_pairs, begin, BLOCK_B):
                while tile < tl.minimum(start, num_pairs):
                    p = tile + tl.arange(0, TILE_P)
                    chosen, rejected, d, sum_, weight = load_pair(
                        reward_ptr, pair_ptr, margin_ptr, weight_ptr, p, num_pairs, ACC, HAS_MARGIN, HAS_WEIGHT
                    )
                    # Past the last pair the weight is 0, and with it all that is added.
                    share = weight / total
                    # 1 / (1 + exp(d)) with the exponent kept from overflowing.
                    u = tl.exp(-tl.abs(d))
                    sigmoid = tl.where(d > 0, u, 1.0) / (1.0 + u)
                    slope = (smoothing - sigmoid) * share
                    pull = tl.where(centering == 0, 0.0, 2.0 * centering * sum_ * share)
                    grad += tl.where(place_in_block(chosen, begin, BLOCK_B)[None, :] == b[:, None], (pull + slope)[None, :], 0.0)
                    grad += tl.where(place_in_block(rejected, begin, BLOCK_B)[None, :] == b[:, None], (pull - slope)[None, :], 0.0)
                    tile += TILE_P
        tl.store(grad_ptr + (begin + b), tl.sum(grad, 1), mask=begin + b < num_rewards)


def bradley_terry_loss_with_grad(
    reward: Tensor, pairs: Tensor, margin: Tensor | None, weight: Tensor | None, label_smoothing: float, centering: float
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient [B]."""
    dtype = accumulate_dtype(reward)
    loss = torch.empty((), dtype=dtype, device=reward.device)
    grad = torch.empty(reward.shape, dtype=dtype, device=reward.device)
    with device_of(reward):
        bradley_terry_kernel[(1 + blocks_of(reward.numel(), BLOCK_B),)](
            aligned(reward),
            aligned(pairs),
            None if margin is None else aligned(margin),
            None if weight is None else aligned(weight),
            loss,
            grad,
            reward.numel(),
            pairs.shape[0],
            *split_float(label_smoothing),
            *split_float(centering),
            ACC=acc_type(dtype),
            HAS_MARGIN=margin is not None,
            HAS_WEIGHT=weight is not None,
            BLOCK_B=BLOCK_B,
            BLOCK_P=BLOCK_P,
            TILE_P=TILE_P,
            num_warps=num_warps(),
        )
    return loss, grad
