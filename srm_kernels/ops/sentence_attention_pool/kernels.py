"""sentence_attention_pool in Triton: a program owns one response; one kernel forward, one backward.

Shape letters: `N` boundaries, `B` responses, `A` attention width, `J` = rotary pairs.

Rotating the query by its index n and a key by its index i gives the score that rotating the query alone by n - i gives, so the keys
are never rotated; with complex pairs, score = Re(q · conj(k) · exp(iφ)), φ_j = (n - i) θ^(-2j/A).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...pooling import POOLINGS
from ..device import NUM_THREADS, acc_type, aligned, device_of, num_warps
from ..segments import accumulate_dtype
from .rotation import rotation_before_first, rotation_of_next, turned

__all__ = ["sentence_attention_pool_backward", "sentence_attention_pool_forward"]

SUM: tl.constexpr = tl.constexpr(POOLINGS.index("sum"))
LAST: tl.constexpr = tl.constexpr(POOLINGS.index("last"))
VALUE_ATTENTION: tl.constexpr = tl.constexpr(POOLINGS.index("value_attention"))


@functools.cache  # `next_power_of_2` is slow, because it may be asked inside kernels.
def pool_config(width: int, itemsize: int) -> dict[str, Any]:
    """Tiles of 2,048 key elements (of fp64 fewer), or one wider row, so that rotation angles and keys stay in registers."""
    widest = 8192 if itemsize < 8 else 4096  # More than that spills.
    if width > widest:
        raise ValueError(
            f"sentence_attention_pool: `query` and `key` must have A of at most {widest} for the kernels, got {width}. "
            'Use `backend="torch"`, which takes any.'
        )
    block = max(16, triton.next_power_of_2(width))
    tile = 2048 if itemsize < 8 else 1024 if block == 128 else 512  # What spills nothing: see compile_check.
    rows = max(1, min(64, tile // block))
    terms = 5 if itemsize < 8 else 9  # The first one left out is below the rounding of the result.
    return {"A": width, "BLOCK_A": block, "BLOCK_N": rows, "TERMS": terms, "LANES": 128, "ANCHOR": 4 if rows > 1 else 1}


def pool_threads(block: int) -> int:
    """At most 16 columns of a row a thread."""
    return max(NUM_THREADS, block // 16)


@triton.jit
def pool_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    cu_boundaries_ptr,
    reward_ptr,
    sentence_reward_ptr,
    weight_ptr,
    ACC: tl.constexpr,
    A: tl.constexpr,
    LOG2_THETA: tl.constexpr,
    TERMS: tl.constexpr,
    ROPE: tl.constexpr,
    INCLUDE_PROMPT: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    POOLING: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
    ANCHOR: tl.constexpr,
):
    """reward [B], sentence_reward [N], weight [N]. The weight buffer holds the scores between the passes."""
    response = tl.program_id(0).to(tl.int64)
    begin = tl.load(cu_boundaries_ptr + response).to(tl.int64)
    end = tl.load(cu_boundaries_ptr + (response + 1)).to(tl.int64)
    first = begin + (0 if INCLUDE_PROMPT else 1)
    HAS_ATTENTION: tl.constexpr = query_ptr is not None
    if HAS_ATTENTION:
        tops = tl.full((BLOCK_N,), float("-inf"), ACC)
        a = tl.arange(0, BLOCK_A)
        query = tl.load(query_ptr + (response * A + a), mask=a < A, other=0).to(ACC)[None, :]
        if ROPE:
            cos, sin, step_cos, step_sin = rotation_before_first(ACC, A, BLOCK_N, BLOCK_A // 2, LOG2_THETA, TERMS)
            tile = begin * 0
        start = begin
        while start < end:
            n = start + tl.arange(0, BLOCK_N)
            mask = ((n >= first) & (n < end))[:, None] & (a < A)[None, :]
            key = tl.load(key_ptr + (n[:, None] * A + a[None, :]), mask=mask, other=0).to(ACC)
            if ROPE:
                cos, sin = rotation_of_next(
                    tile, end - 1 - n, cos, sin, step_cos, step_sin, ACC, A, BLOCK_A // 2, LOG2_THETA, TERMS, ANCHOR
                )
                tile += 1
                # Turning the key backwards, not the query forwards: the key already has the shape of the angles.
                key = turned(key, cos, -sin, BLOCK_A)
            score = tl.sum(key * query, 1) * (A**-0.5)
            tl.store(weight_ptr + n, score, mask=n < end)
            tops = tl.maximum(tops, tl.where((n >= first) & (n < end), score, float("-inf")))
            start += BLOCK_N
        tl.debug_barrier()  # From here on threads read scores that others wrote.
        top = tl.max(tops, 0)
        top = tl.where(top == float("-inf"), 0.0, top)  # exp(-inf - -inf) would be NaN.
        sum_ = tl.zeros((LANES,), ACC)
        start = begin
        while start < end:
            n = start + tl.arange(0, LANES)
            score = tl.load(weight_ptr + n, mask=(n >= first) & (n < end), other=float("-inf"))
            sum_ += tl.exp(score - top)
            start += LANES
        total = tl.sum(sum_, 0)
        share = 1.0 / tl.where(total == 0, 1.0, total)  # Nothing to attend to: weights are 0, not 0 / 0.
    reward = tl.zeros((LANES,), ACC)
    behind = tl.zeros((), ACC)
    stop = end
    while stop > begin:  # From the end, because value attention adds up what is behind.
        n = stop - LANES + tl.arange(0, LANES)
        inside = (n >= begin) & (n < end)
        pooled = (n >= first) & (n < end)
        if HAS_ATTENTION:
            score = tl.load(weight_ptr + n, mask=pooled, other=float("-inf"))
            weight = tl.exp(score - top) * share
        elif POOLING == SUM:
            weight = tl.full((LANES,), 1.0, ACC)
        elif POOLING == LAST:
            weight = tl.where(n == end - 1, 1.0, 0.0).to(ACC)
        else:
            weight = tl.full((LANES,), 1.0, ACC) / tl.maximum(end - first, 1).to(ACC)
        weight = tl.where(pooled, weight, 0.0)
        if POOLING == VALUE_ATTENTION:
            weight = tl.cumsum(weight, 0, reverse=True) + behind
            behind = tl.max(weight, 0)  # Weights are not negative: the first of the block has all of it.
        sentence_reward = tl.load(value_ptr + n, mask=inside, other=0).to(ACC)
        if DIFFERENCE:
            sentence_reward -= tl.load(value_ptr + (n - 1), mask=(n > begin) & inside, other=0).to(ACC)
        if HAS_ATTENTION:
            tl.debug_barrier()  # All scores of the block are read before any is overwritten.
        tl.store(weight_ptr + n, weight, mask=inside)
        tl.store(sentence_reward_ptr + n, sentence_reward, mask=inside)
        reward += tl.where(inside & (weight != 0), weight * sentence_reward, 0.0)  # Selected: 0 · NaN is NaN.
        stop -= LANES
    tl.store(reward_ptr + response, tl.sum(reward, 0))


@triton.jit
def pool_backward_kernel(
    grad_reward_ptr,
    grad_sentence_reward_ptr,
    grad_weight_ptr,
    query_ptr,
    key_ptr,
    cu_boundaries_ptr,
    sentence_reward_ptr,
    weight_ptr,
    grad_score_ptr,
    grad_query_ptr,
    grad_key_ptr,
    grad_value_ptr,
    ACC: tl.constexpr,
    A: tl.constexpr,
    LOG2_THETA: tl.constexpr,
    TERMS: tl.constexpr,
    ROPE: tl.constexpr,
    INCLUDE_PROMPT: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    HAS_ATTENTION: tl.constexpr,
    OF_VALUES: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
    ANCHOR: tl.constexpr,
):
    """grad_query [B, A], grad_key [N, A], grad_value [N]. Attention that was left out is 0, and so are its gradients.

    grad_score [N] is for the program's own use.
    """
    response = tl.program_id(0).to(tl.int64)
    begin = tl.load(cu_boundaries_ptr + response).to(tl.int64)
    end = tl.load(cu_boundaries_ptr + (response + 1)).to(tl.int64)
    grad_reward = tl.load(grad_reward_ptr + response).to(ACC)
    if HAS_ATTENTION:
        a = tl.arange(0, BLOCK_A)
        query = tl.load(query_ptr + (response * A + a), mask=a < A, other=0).to(ACC)[None, :]
        product = tl.zeros((LANES,), ACC)
        start = begin
        while start < end:
            n = start + tl.arange(0, LANES)
            weight = tl.load(weight_ptr + n, mask=n < end, other=0)
            grad = tl.load(grad_weight_ptr + n, mask=n < end, other=0).to(ACC)
            # A sentence reward without weight took no part.
            product += weight * (grad + grad_reward * tl.load(sentence_reward_ptr + n, mask=(n < end) & (weight != 0), other=0))
            start += LANES
        mean = tl.sum(product, 0)
    before = tl.zeros((), ACC)
    start = begin
    while start < end:
        n = start + tl.arange(0, LANES)
        inner = n + 1 < end
        weight = tl.load(weight_ptr + n, mask=n < end, other=0)
        following = tl.load(weight_ptr + (n + 1), mask=inner, other=0)
        grad_value = tl.load(grad_sentence_reward_ptr + n, mask=n < end, other=0).to(ACC) + weight * grad_reward
        if DIFFERENCE:
            grad_value -= following * grad_reward + tl.load(grad_sentence_reward_ptr + (n + 1), mask=inner, other=0).to(ACC)
        tl.store(grad_value_ptr + n, grad_value, mask=n < end)
        if HAS_ATTENTION:
            grad = tl.load(grad_weight_ptr + n, mask=n < end, other=0).to(ACC)
            grad += grad_reward * tl.load(sentence_reward_ptr + n, mask=(n < end) & (weight != 0), other=0)
            if OF_VALUES:
                # Of the softmax weight at n, which every sentence reward up to n has a share of.
                block = tl.sum(tl.where(n < end, grad, 0.0), 0)
                grad = tl.cumsum(grad, 0) + before
                before += block
                weight -= following
                if not INCLUDE_PROMPT:
                    weight = tl.where(n > begin, weight, 0.0)
            grad_score = weight * (grad - mean) * (A**-0.5)
            tl.store(grad_score_ptr + n, grad_score, mask=n < end)
        start += LANES
    if HAS_ATTENTION:
        tl.debug_barrier()  # From here on threads read gradients that others wrote.
        grad_query = tl.zeros((BLOCK_N, BLOCK_A), ACC)
        if ROPE:
            cos, sin, step_cos, step_sin = rotation_before_first(ACC, A, BLOCK_N, BLOCK_A // 2, LOG2_THETA, TERMS)
            tile = begin * 0
        start = begin
        while start < end:
            n = start + tl.arange(0, BLOCK_N)
            if ROPE:
                cos, sin = rotation_of_next(
                    tile, end - 1 - n, cos, sin, step_cos, step_sin, ACC, A, BLOCK_A // 2, LOG2_THETA, TERMS, ANCHOR
                )
                tile += 1
            grad_score = tl.load(grad_score_ptr + n, mask=n < end, other=0)[:, None]
            mask = (n < end)[:, None] & (a < A)[None, :]
            key = tl.load(key_ptr + (n[:, None] * A + a[None, :]), mask=mask & (grad_score != 0), other=0).to(ACC)
            grad_key = tl.broadcast_to(query, (BLOCK_N, BLOCK_A))
            if ROPE:
                key = turned(key, cos, -sin, BLOCK_A)
                grad_key = turned(grad_key, cos, sin, BLOCK_A)
            tl.store(grad_key_ptr + (n[:, None] * A + a[None, :]), grad_key * grad_score, mask=mask)
            grad_query += key * grad_score
            start += BLOCK_N
        tl.store(grad_query_ptr + (response * A + a), tl.sum(grad_query, 0), mask=a < A)


def sentence_attention_pool_forward(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu_boundaries: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """reward [B], sentence_reward [N], weight [N]."""
    value, cu_boundaries = aligned(value), aligned(cu_boundaries)
    query, key = _aligned(query), _aligned(key)
    dtype = accumulate_dtype(query, key, value)
    reward = torch.empty(cu_boundaries.numel() - 1, dtype=dtype, device=value.device)
    sentence_reward, weight = torch.empty_like(value, dtype=dtype), torch.empty_like(value, dtype=dtype)
    if reward.numel():
        with device_of(value):
            pool_kernel[(reward.numel(),)](
                query,
                key,
                value,
                cu_boundaries,
                reward,
                sentence_reward,
                weight,
                INCLUDE_PROMPT=include_prompt,
                DIFFERENCE=difference,
                POOLING=POOLINGS.index(pooling),
                **_constants(key, dtype, rope_theta),
            )
    return reward, sentence_reward, weight


def sentence_attention_pool_backward(
    grad_reward: Tensor,
    grad_sentence_reward: Tensor,
    grad_weight: Tensor,
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu_boundaries: Tensor,
    sentence_reward: Tensor,
    weight: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of query [B, A], key [N, A], value [N]."""
    cu_boundaries = aligned(cu_boundaries)
    query, key = _aligned(query), _aligned(key)
    grad_query, grad_key = (None if x is None else torch.empty_like(x) for x in (query, key))
    grad_value = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    if grad_reward.numel():
        with device_of(value):
            pool_backward_kernel[(grad_reward.numel(),)](
                aligned(grad_reward),
                aligned(grad_sentence_reward),
                aligned(grad_weight),
                query,
                key,
                cu_boundaries,
                aligned(sentence_reward),
                aligned(weight),
                None if key is None else torch.empty_like(weight),
                grad_query,
                grad_key,
                grad_value,
                # Elsewhere the prompt's weight says whether it takes part.
                INCLUDE_PROMPT=include_prompt or pooling != "value_attention",
                DIFFERENCE=difference,
                HAS_ATTENTION=key is not None,
                OF_VALUES=pooling == "value_attention",
                **_constants(key, weight.dtype, rope_theta),
            )
    return grad_query, grad_key, grad_value


def _constants(key: Tensor | None, dtype: torch.dtype, rope_theta: float | None) -> dict[str, Any]:
    config = pool_config(2 if key is None else key.shape[1], dtype.itemsize)
    rope = rope_theta is not None
    log2_theta = math.log2(rope_theta) if rope_theta is not None else 0.0
    return {
        "ACC": acc_type(dtype),
        "LOG2_THETA": log2_theta,
        "ROPE": rope,
        **config,
        "num_warps": num_warps(pool_threads(config["BLOCK_A"])),
    }


def _aligned(x: Tensor | None) -> Tensor | None:
    return None if x is None else aligned(x)
