"""What a training step minimises: Bradley-Terry on the response rewards, and what gives sentence rewards their meaning.

Shape letters: `B` responses, `N` boundaries, `P` pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from srm.modeling import SentenceRewardOutput
from srm_kernels import bradley_terry_loss

__all__ = ["RewardLoss", "mean_value", "reward_loss", "sentence_reward_penalty"]


@dataclass(frozen=True, kw_only=True)
class RewardLoss:
    """What a step minimises, and what it is made of. All are scalars, weighted means over the pairs.

    Attributes:
        objective: what is minimised: the pair loss and each part times its coefficient.
        pair_loss: Bradley-Terry on the rewards alone, which compares across recipes and starts at log 2; without a gradient.
        parts: by name, what the recipe adds, without coefficients and gradients; none whose coefficient is 0.
    """

    objective: Tensor
    pair_loss: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


def reward_loss(
    output: SentenceRewardOutput,
    cu_boundaries: Tensor,
    pairs: Tensor,
    *,
    margin: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
    mean_value_coefficient: float = 0.0,
    sentence_reward_l2: float = 0.0,
) -> RewardLoss:
    """The loss of a batch of pairs.

    Args:
        output: of the model; `reward` [B], `sentence_reward` [N], `value` [N].
        cu_boundaries: [B + 1], where each response's boundaries start.
        pairs: [P, 2], (chosen, rejected) as indices of responses.
        margin, weight: [P]; None for 0 and for 1.
        label_smoothing, centering: as in `srm_kernels.bradley_terry_loss`.
        mean_value_coefficient: weight of a second Bradley-Terry loss, on `mean_value`.
        sentence_reward_l2: weight of `sentence_reward_penalty`, of each pair's two responses.
    """
    assert output.reward is not None
    assert output.sentence_reward is not None
    assert output.value is not None
    reward_B, parts = output.reward, {}
    objective = bradley_terry_loss(reward_B, pairs, margin=margin, label_smoothing=label_smoothing, centering=centering, weight=weight)
    pair_loss = objective
    if centering:
        # The op adds the two up.
        pair_loss = bradley_terry_loss(reward_B.detach(), pairs, margin=margin, label_smoothing=label_smoothing, weight=weight)
        parts["centering_penalty"] = _weighted_mean(reward_B.to(pair_loss.dtype)[pairs].sum(1).square(), weight)
    if mean_value_coefficient:
        value_B = mean_value(output.value, cu_boundaries)
        parts["mean_value_loss"] = bradley_terry_loss(value_B, pairs, label_smoothing=label_smoothing, weight=weight)
        objective = objective + mean_value_coefficient * parts["mean_value_loss"]
    if sentence_reward_l2:
        penalty_P = sentence_reward_penalty(output.sentence_reward, cu_boundaries)[pairs].mean(1)
        parts["sentence_reward_penalty"] = _weighted_mean(penalty_P, weight)
        objective = objective + sentence_reward_l2 * parts["sentence_reward_penalty"]
    return RewardLoss(objective=objective, pair_loss=pair_loss.detach(), parts={name: part.detach() for name, part in parts.items()})


def mean_value(value: Tensor, cu_boundaries: Tensor) -> Tensor:
    """[B] mean of `v_i` over each response's sentences; the prompt, its first boundary, is left out. 0 where there is no sentence.

    While attention is uniform `R` is `v_n / (n + 1)`: only the value at the end of a response is trained. This trains the value
    of every beginning of it. Sentences before the first difference of a pair have equal values in both, and cancel.
    """
    count_B = cu_boundaries.diff()
    is_prompt_N = torch.zeros_like(value, dtype=torch.bool).index_fill_(0, cu_boundaries[:-1].long(), True)
    return _sums(value.masked_fill(is_prompt_N, 0), count_B) / (count_B - 1).clamp(min=1)


def sentence_reward_penalty(sentence_reward: Tensor, cu_boundaries: Tensor) -> Tensor:
    """[B] mean of `r_i^2` over each response's boundaries, the prompt's included.

    Bradley-Terry says next to nothing about the prompt's value `v_0`: a pair shares it. Left alone it drifts, and every first
    sentence's `r_1 = v_1 - v_0` carries the drift, good or bad. It says as little about sentences that both answers have. With
    a price on every reward these stay at zero, and only what a preference needs is paid for.
    """
    count_B = cu_boundaries.diff()
    return _sums(sentence_reward.square(), count_B) / count_B


def _weighted_mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Of `x` [P] by `weight` [P], as in `bradley_terry_loss`: 0 where nothing has weight, and what has none may be NaN."""
    weight = torch.ones_like(x) if weight is None else weight
    total = weight.sum()
    return (weight * x.masked_fill(weight == 0, 0)).sum() / total.masked_fill(total == 0, 1)


def _sums(x: Tensor, count_B: Tensor) -> Tensor:
    """[B] sums of `x` [N] over each response's `count_B` boundaries."""
    response_N = torch.repeat_interleave(count_B, output_size=x.shape[0])
    return x.new_zeros(count_B.shape).index_add(0, response_N, x)
