"""sentence_attention_pool in plain PyTorch: the definition, and what runs on the CPU.

Shape letters: `N` boundaries, `B` responses, `A` attention width, `J` = A / 2 rotary pairs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..difference_rewards.reference import difference_by_segment, transposed_difference
from ..segment_softmax.reference import softmax_by_segment
from ..segments import accumulate_dtype, first_of_segment, segment_cumsum, segment_of, segment_sum

__all__ = ["Rotation", "pool_and_rotation", "pooling_of", "sentence_attention_pool_backward_reference", "sentence_attention_pool_reference"]


def sentence_attention_pool_reference(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu_boundaries: Tensor,
    rope_theta: float | None = 1e4,
    include_prompt: bool = True,
    difference: bool = True,
    pooling: str = "value_attention",
) -> tuple[Tensor, Tensor, Tensor]:
    """`sentence_attention_pool` and `sentence_pool`, differentiable as often as you like.

    Args:
        query: [B, A]; None where `pooling` has no attention.
        key: [N, A]; None where `pooling` has no attention.
        value: [N].
        cu_boundaries: int [B + 1].
        rope_theta: base of the rotary embedding on the boundary's index, or None.
        include_prompt: whether index 0 takes part.
        difference: sentence reward `v_i - v_{i-1}`; False: `v_i`.
        pooling: one of `Pooling`.

    Returns:
        `reward` [B], `sentence_reward` [N] and `weight` [N], in fp32 (fp64 if any input is).
    """
    return pool_and_rotation(query, key, value, cu_boundaries, rope_theta, include_prompt, difference, pooling)[0]


def pool_and_rotation(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu_boundaries: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
) -> tuple[tuple[Tensor, Tensor, Tensor], Rotation | None]:
    """The same, and the rotation for a backward that would rather keep it than compute it anew."""
    num, num_responses = value.shape[0], cu_boundaries.numel() - 1
    dtype = accumulate_dtype(query, key, value)
    segment_N, first_N = segment_of(cu_boundaries, num), first_of_segment(cu_boundaries, num)
    rotation = None
    if query is not None and key is not None:
        if rope_theta is not None:
            rotation = _relative_rotation(cu_boundaries, segment_N, key.shape[1], rope_theta, dtype)
        key_NA = key.to(dtype) if include_prompt else key.to(dtype).masked_fill(first_N[:, None], 0)
        score_N = _score(query.to(dtype)[segment_N], key_NA, rotation)
    else:
        score_N = value.new_zeros(num, dtype=dtype)
    pooling = pooling_of(pooling, difference)
    weight_N = _pooling_weight(score_N, cu_boundaries, segment_N, first_N, include_prompt, pooling)
    value_N = value.to(dtype)
    reward_N = difference_by_segment(value_N, first_N) if difference else value_N.clone()
    # What has no weight does not take part: 0 · NaN is NaN.
    counted_N = reward_N.masked_fill(weight_N == 0, 0)
    pooled = segment_sum(weight_N * counted_N, segment_N, num_responses), reward_N, weight_N
    return pooled, rotation


def sentence_attention_pool_backward_reference(
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
    rotation: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of `query` [B, A], `key` [N, A] and `value` [N], each in its tensor's dtype.

    `rotation` is the forward's in complex numbers, where it was kept.
    """
    num, num_responses = value.shape[0], cu_boundaries.numel() - 1
    dtype = weight.dtype
    segment_N, first_N = segment_of(cu_boundaries, num), first_of_segment(cu_boundaries, num)
    reward_grad_N = grad_reward.index_select(0, segment_N)
    grad_r_N = torch.addcmul(grad_sentence_reward, weight, reward_grad_N)
    grad_value_N = transposed_difference(grad_r_N, first_N) if difference else grad_r_N
    if query is None or key is None:
        return None, None, grad_value_N.to(value.dtype)
    grad_a_N = torch.addcmul(grad_weight, sentence_reward.masked_fill(weight == 0, 0), reward_grad_N)
    mean_B = segment_sum(weight * grad_a_N, segment_N, num_responses)
    attention_N = weight
    if pooling_of(pooling, difference) == "value_attention":
        # From the weights behind each boundary to the softmax's own: their differences, and the transpose of the sum for the gradient.
        attention_N = transposed_difference(weight, first_N)
        attention_N = attention_N if include_prompt else attention_N.masked_fill(first_N, 0)
        grad_a_N = segment_cumsum(grad_a_N, cu_boundaries, segment_N)
    score_grad_N = attention_N * (grad_a_N - mean_B.index_select(0, segment_N))
    if rotation is None and rope_theta is not None:
        rotation = _relative_rotation(cu_boundaries, segment_N, key.shape[1], rope_theta, dtype).numbers()
    scaled_N1 = (score_grad_N / math.sqrt(key.shape[1])).unsqueeze(1)
    # The score is bilinear in q and k: each gradient is the other one, turned by the relative angle.
    counted_NA = key.to(dtype).masked_fill(scaled_N1 == 0, 0) * scaled_N1
    grad_query = segment_sum(_turn_by(counted_NA, rotation, back=True), segment_N, num_responses)
    grad_key = _turn_by(query.to(dtype).index_select(0, segment_N), rotation) * scaled_N1
    return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value_N.to(value.dtype)


class Rotation(NamedTuple):
    """By how much the query is turned ahead of each key: `cos` and `sin` [N, J] of the angles."""

    cos: Tensor
    sin: Tensor

    def numbers(self) -> Tensor:
        """As complex numbers [N, J]."""
        return torch.complex(self.cos, self.sin)


def pooling_of(pooling: str, difference: bool) -> str:
    """Without differences a sentence reward is the value: attention over either is the same, and its weight is the softmax's."""
    return "attention" if pooling == "value_attention" and not difference else pooling


def _relative_rotation(cu_boundaries: Tensor, segment: Tensor, width: int, theta: float, dtype: torch.dtype) -> Rotation:
    """By `(n - i) θ^(-2j/A)`, the angle between the query at index n and the key at index i.

    Rotating both by their own index and rotating the query by the difference give the same score; this way costs one rotation.
    """
    last_N = cu_boundaries[1:].long()[segment] - 1
    distance_N = last_N - torch.arange(segment.numel(), device=cu_boundaries.device)
    pair_J = torch.arange(width // 2, device=cu_boundaries.device, dtype=torch.float64)
    # Whole turns are dropped in fp64: in fp32 the angle of sentence 3,000 would already be off by 1e-4 radians.
    turns_NJ = distance_N.unsqueeze(1) * (theta ** (-2 * pair_J / width) / (2 * math.pi))
    angle_NJ = ((turns_NJ - turns_NJ.round()) * (2 * math.pi)).to(dtype)
    return Rotation(angle_NJ.cos(), angle_NJ.sin())


def _turn(x: Tensor, by: Rotation | None) -> Tensor:
    """Rotates the pairs (2j, 2j + 1) of `x` [N, A]."""
    if by is None:
        return x
    even, odd = x[:, 0::2], x[:, 1::2]
    return torch.stack((even * by.cos - odd * by.sin, even * by.sin + odd * by.cos), dim=2).flatten(1)


def _turn_by(x: Tensor, rotation: Tensor | None, back: bool = False) -> Tensor:
    """The same with complex numbers, which are faster, and which `torch.compile` makes nothing of."""
    if rotation is None:
        return x
    pairs_NJ = torch.view_as_complex(x.unflatten(1, (-1, 2)).contiguous())
    # Not `conj`: it is lazy, and in a compiled graph nobody makes up for it inside an op.
    return torch.view_as_real(pairs_NJ * (rotation.conj_physical() if back else rotation)).flatten(1)


def _score(query: Tensor, key: Tensor, rotation: Rotation | None) -> Tensor:
    return (_turn(query, rotation) * key).sum(1) / math.sqrt(key.shape[1])


def _pooling_weight(score: Tensor, cu_boundaries: Tensor, segment: Tensor, first: Tensor, include_prompt: bool, pooling: str) -> Tensor:
    """Weight [N] of each sentence reward in its response's reward."""
    left_out = first if not include_prompt else torch.zeros_like(first)
    if pooling == "sum":
        return (~left_out).to(score.dtype)
    if pooling == "last":
        is_last = torch.arange(segment.numel(), device=cu_boundaries.device) == cu_boundaries[1:].long()[segment] - 1
        return (is_last & ~left_out).to(score.dtype)
    weight_N = softmax_by_segment(score.masked_fill(left_out, -torch.inf), segment, cu_boundaries.numel() - 1)
    return segment_cumsum(weight_N, cu_boundaries, segment, reverse=True) if pooling == "value_attention" else weight_N
