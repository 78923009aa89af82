"""Other ways to compute the ops, written as people write them: what bench/ops.py compares with.

Shape letters: `T` tokens, `N` boundaries, `B` responses, `D` hidden, `A` attention width, `H` heads, `L` longest response.

Indices that depend on the layout alone (padding, segment numbers, rotation tables) are made outside the clock: to these baselines' favour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from srm_kernels import SentenceLayout
from srm_kernels.ops.sentence_attention_pool.reference import sentence_attention_pool_reference

__all__ = [
    "Padding",
    "RotaryPool",
    "Segments",
    "full_sequence_head",
    "gae_step",
    "padded_gae",
    "padded_mean",
    "padded_softmax",
    "pyg_mean",
    "pyg_pool",
    "reduced_mean",
    "reduced_softmax",
]

Softmax = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Padding:
    """Between packed [N, ...] and padded [B, L, ...].

    source: int64 [B, L], the packed place of each padded one (0 in padding). mask: bool [B, L], real places.
    target: int64 [N], the flat padded place of each packed one.
    """

    source: Tensor
    mask: Tensor
    target: Tensor

    @classmethod
    def of(cls, cu_seqlens: Tensor) -> Padding:
        length_B, start_B = cu_seqlens.diff().long(), cu_seqlens[:-1].long()
        place_L = torch.arange(int(length_B.max()), device=cu_seqlens.device)
        mask_BL = place_L < length_B[:, None]
        return cls(torch.where(mask_BL, start_B[:, None] + place_L, 0), mask_BL, mask_BL.flatten().nonzero().flatten())

    def pad(self, x: Tensor, fill: float) -> Tensor:
        mask = self.mask.reshape(*self.mask.shape, *[1] * (x.dim() - 1))
        return torch.where(mask, x[self.source], fill)

    def unpad(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.target)


def padded_softmax(score: Tensor, padding: Padding) -> Tensor:
    """Pad with -inf, softmax, unpad."""
    return padding.unpad(padding.pad(score.float(), -torch.inf).softmax(1)).to(score.dtype)


def reduced_softmax(score: Tensor, lengths: Tensor, segment: Tensor) -> Tensor:
    """Maximum and sum by `torch.segment_reduce`."""
    score_N = score.float()
    peak_B = torch.segment_reduce(score_N.detach(), "max", lengths=lengths, unsafe=True)
    exp_N = (score_N - peak_B[segment]).exp()
    return (exp_N / torch.segment_reduce(exp_N, "sum", lengths=lengths, unsafe=True)[segment]).to(score.dtype)


@dataclass(frozen=True, eq=False)
class Segments:
    """`segment` int64 [N], whose each boundary is, and `first` bool [N], whether it is the first of them."""

    segment: Tensor
    first: Tensor
    num_responses: int

    @classmethod
    def of(cls, cu_boundaries: Tensor) -> Segments:
        segment_N = torch.repeat_interleave(cu_boundaries.diff().long())
        first_N = torch.arange(segment_N.numel(), device=cu_boundaries.device) == cu_boundaries[:-1].long()[segment_N]
        return cls(segment_N, first_N, cu_boundaries.numel() - 1)

    def sentence_rewards(self, value: Tensor) -> Tensor:
        value_N = value.float()
        return value_N - value_N.roll(1).masked_fill(self.first, 0)


def reduced_mean(value: Tensor, lengths: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """reward [B] by `torch.segment_reduce`, sentence_reward [N]."""
    reward_N = segments.sentence_rewards(value)
    return torch.segment_reduce(reward_N, "mean", lengths=lengths, unsafe=True), reward_N


def padded_mean(value: Tensor, padding: Padding) -> tuple[Tensor, Tensor]:
    """Pad, differences of columns, masked mean, unpad."""
    value_BL = padding.pad(value.float(), 0.0)
    reward_BL = torch.where(padding.mask, value_BL - torch.nn.functional.pad(value_BL[:, :-1], (1, 0)), 0.0)
    return reward_BL.sum(1) / padding.mask.sum(1), padding.unpad(reward_BL)


def pyg_mean(segments: Segments) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """PyTorch Geometric's MeanAggregation of the sentence rewards. ImportError without it."""
    from torch_geometric.nn.aggr import MeanAggregation

    aggregate = MeanAggregation()

    def run(value: Tensor) -> tuple[Tensor, Tensor]:
        reward_N = segments.sentence_rewards(value)
        return aggregate(reward_N[:, None], index=segments.segment, dim_size=segments.num_responses).squeeze(1), reward_N

    return run


@dataclass(frozen=True, eq=False)
class RotaryPool:
    """The attention pool with the softmax left to choose; `cos` and `sin` [N, A / 2] of the angle between query and key."""

    cos: Tensor
    sin: Tensor
    segments: Segments

    @classmethod
    def of(cls, cu_boundaries: Tensor, width: int, theta: float) -> RotaryPool:
        segments = Segments.of(cu_boundaries)
        index_N = torch.arange(int(cu_boundaries[-1]), device=cu_boundaries.device)
        distance_N = cu_boundaries[1:].long()[segments.segment] - 1 - index_N
        pair_J = torch.arange(width // 2, device=cu_boundaries.device, dtype=torch.float64)
        angle_NJ = distance_N[:, None] * theta ** (-2 * pair_J / width)
        return cls(angle_NJ.cos().float(), angle_NJ.sin().float(), segments)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """[N] in fp32."""
        query_NA = query.float()[self.segments.segment]
        even, odd = query_NA[:, 0::2], query_NA[:, 1::2]
        turned = torch.stack((even * self.cos - odd * self.sin, even * self.sin + odd * self.cos), 2).flatten(1)
        return (turned * key.float()).sum(1) / key.shape[1] ** 0.5

    def pool(self, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax) -> tuple[Tensor, Tensor]:
        """reward [B], sentence_reward [N]."""
        reward_N = self.segments.sentence_rewards(value)
        weighted_N = softmax(self.scores(query, key)) * reward_N
        return weighted_N.new_zeros(self.segments.num_responses).index_add(0, self.segments.segment, weighted_N), reward_N


def pyg_pool(pool: RotaryPool) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """PyTorch Geometric's AttentionalAggregation: its gate is the score, what it sums the sentence reward. ImportError without it."""
    from torch_geometric.nn.aggr import AttentionalAggregation

    class Column(torch.nn.Module):
        def __init__(self, i: int) -> None:
            super().__init__()
            self.i = i

        def forward(self, x: Tensor) -> Tensor:
            return x[:, self.i : self.i + 1]

    aggregate = AttentionalAggregation(Column(0), Column(1))

    def run(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        segments = pool.segments
        reward_N = segments.sentence_rewards(value)
        pair_N2 = torch.stack((pool.scores(query, key), reward_N), 1)
        return aggregate(pair_N2, index=segments.segment, dim_size=segments.num_responses).squeeze(1), reward_N

    return run


def full_sequence_head(hidden: Tensor, layout: SentenceLayout, weights: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The head as linear layers over all T tokens in `dtype`, of whose outputs the boundaries are picked."""
    state_TD = hidden.to(dtype)
    value_weight, value_bias, query_weight, query_bias, key_weight, key_bias = (w.to(dtype) for w in weights)
    boundaries, last_B = layout.boundaries, layout.boundaries[layout.cu_boundaries[1:].long() - 1]
    value_N = linear(state_TD, value_weight, value_bias).squeeze(1)[boundaries]
    query_BA = linear(state_TD, query_weight, query_bias)[last_B]
    key_NA = linear(state_TD, key_weight, key_bias)[boundaries]
    return (*sentence_attention_pool_reference(query_BA, key_NA, value_N, layout.cu_boundaries), value_N.float())


def gae_step(reward: Tensor, value: Tensor, next_value: Tensor, advantage: Tensor, gamma: float, lam: float) -> Tensor:
    """One step back in time for all sequences."""
    return reward + gamma * next_value - value + gamma * lam * advantage


def padded_gae(reward: Tensor, value: Tensor, gamma: float, lam: float, step: Callable[..., Tensor] = gae_step) -> tuple[Tensor, Tensor]:
    """The usual Python loop over time on right-padded `reward`, `value` [L, S]; zeros in the padding stay zeros."""
    advantage_S, next_S = torch.zeros_like(value[0]), torch.zeros_like(value[0])
    columns = []
    for t in range(value.shape[0] - 1, -1, -1):
        advantage_S = step(reward[t], value[t], next_S, advantage_S, gamma, lam)
        next_S = value[t]
        columns.append(advantage_S)
    advantage_LS = torch.stack(columns[::-1])
    return advantage_LS, advantage_LS + value
