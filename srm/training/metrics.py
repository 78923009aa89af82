"""What is logged about rewards, summed on the device so that nothing waits for it between two logging steps.

Shape letters: `B` responses, `N` boundaries, `P` pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srm.packing import PackedBatch
from srm.training.losses import RewardLoss, mean_value

if TYPE_CHECKING:
    from accelerate import Accelerator

    from srm.modeling import SentenceRewardModel, SentenceRewardOutput

__all__ = ["METRICS", "RewardMetrics", "attention_entropy"]

# Of `RewardLoss.parts`; only those are logged that a recipe has.
_PARTS = ("mean_value_loss", "sentence_reward_penalty", "centering_penalty")
METRICS = (
    *("loss", "objective", *_PARTS, "margin", "accuracy", "chosen_reward_mean", "chosen_reward_std"),
    *("rejected_reward_mean", "rejected_reward_std", "mean_value_accuracy", "sentences_per_response", "attention_entropy"),
    *("attention_entropy_normalized", "tokens_saved_by_packing", "tokens_saved_by_sharing"),
)
"""What an evaluation may yield, by variant and recipe."""
_SUMS = (
    "weight",
    "loss",
    "objective",
    *_PARTS,
    "correct",
    "mean_value_correct",
    "margin",
    "chosen",
    "chosen_square",
    "rejected",
    "rejected_square",
    "responses",
    "sentences",
    "entropy",
    "normalized_entropy",
    "spread_responses",
)


@dataclass
class _Tokens:
    """Counts known on the host, from shapes."""

    padded: int = 0
    packed: int = 0
    run: int = 0


class RewardMetrics:
    """Running sums over the batches since the last `read`.

    Args:
        device: where the sums live.
        granularity, pooling: of the model; what has no meaning for them is not logged.
        include_prompt, difference: of its pooling.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        granularity: str = "sentence",
        pooling: str = "value_attention",
        include_prompt: bool = True,
        difference: bool = True,
    ) -> None:
        # fp64, because counts pass 2^24 within long logging intervals; MPS has none.
        self._sum = torch.zeros(len(_SUMS), device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
        self._tokens = _Tokens()
        self._has_part: set[str] = set()
        # (weight, correct, mean_value_correct) of the last `read`, for `CreditWatch`.
        self.last_correct = (0.0, 0.0, 0.0)
        self.has_sentences = granularity != "token"
        self.has_attention = granularity == "sentence" and pooling in ("attention", "value_attention")
        # The weight of a sentence reward is then all the attention from its sentence on.
        self.adds_up_attention = pooling == "value_attention" and difference
        self.include_prompt = include_prompt

    @classmethod
    def of(cls, model: SentenceRewardModel, device: torch.device) -> RewardMetrics:
        """Metrics that fit `model`'s variant."""
        config = model.config
        return cls(
            device,
            granularity=config.granularity,
            pooling=config.pooling,
            include_prompt=config.include_prompt,
            difference=config.difference,
        )

    @torch.no_grad()
    def add(self, output: SentenceRewardOutput, batch: PackedBatch, pairs: Tensor, weight: Tensor | None, loss: RewardLoss) -> None:
        """Count one batch. `pairs` [P, 2] are (chosen, rejected), `weight` [P] or None for ones, `loss` the batch's."""
        assert output.reward is not None
        reward_B = output.reward.to(self._sum.dtype)
        chosen_P, rejected_P = reward_B[pairs[:, 0]], reward_B[pairs[:, 1]]
        weight_P = torch.ones_like(chosen_P) if weight is None else weight.to(self._sum.dtype)
        total = weight_P.sum()
        margin_P = chosen_P - rejected_P
        correct = _correct(reward_B, pairs), self._mean_value_correct(output, batch, pairs)
        per_pair = [(weight_P * value_P).sum() for value_P in (*correct, margin_P, chosen_P, chosen_P**2, rejected_P, rejected_P**2)]
        zero = torch.zeros_like(total)
        losses = [loss.pair_loss, loss.objective, *(loss.parts.get(name, zero) for name in _PARTS)]
        self._has_part |= loss.parts.keys()
        means = [mean.to(total.dtype) * total for mean in losses]
        sums = [total, *means, *per_pair, *self._of_responses(output, batch.cu_boundaries.diff())]
        self._sum += torch.stack(sums)
        self._tokens.packed += batch.num_packed_tokens
        self._tokens.padded += batch.num_padded_tokens
        self._tokens.run += batch.num_tokens

    def read(self, accelerator: Accelerator, seconds: float | None = None) -> dict[str, float]:
        """Means over what was added since the last call, by all processes, and start anew. {} where nothing was added.

        seconds: how long it took; adds `tokens_per_second`, which counts real tokens: no padding, a shared prompt once for each of
            its responses. So it compares across packing modes.
        """
        tokens = self._tokens
        counts = self._sum.new_tensor([tokens.padded, tokens.packed, tokens.run])
        totals = accelerator.reduce(torch.cat([self._sum, counts]), reduction="sum").tolist()
        self._sum.zero_()
        self._tokens = _Tokens()
        *sums, padded, packed, run = totals
        s = dict(zip(_SUMS, sums, strict=True))
        self.last_correct = s["weight"], s["correct"], s["mean_value_correct"]
        if not s["weight"]:
            return {}
        # What is minimised is the loss itself where the recipe adds nothing.
        parts = ["objective", *(name for name in _PARTS if name in self._has_part)] if self._has_part else []
        logs = {name: s[name] / s["weight"] for name in ("loss", *parts, "margin")}
        logs["accuracy"] = s["correct"] / s["weight"]
        for side in ("chosen", "rejected"):
            mean = s[side] / s["weight"]
            logs[f"{side}_reward_mean"] = mean
            # max: the difference of two means can round below zero where all rewards are alike.
            logs[f"{side}_reward_std"] = math.sqrt(max(s[f"{side}_square"] / s["weight"] - mean**2, 0.0))
        if self.has_sentences:
            logs["mean_value_accuracy"] = s["mean_value_correct"] / s["weight"]
            logs["sentences_per_response"] = s["sentences"] / s["responses"]
        if self.has_attention:
            logs["attention_entropy"] = s["entropy"] / s["responses"]
            if s["spread_responses"]:
                logs["attention_entropy_normalized"] = s["normalized_entropy"] / s["spread_responses"]
        if run < padded:
            logs["tokens_saved_by_packing"] = (padded - packed) / padded
            logs["tokens_saved_by_sharing"] = (packed - run) / padded
        else:
            logs["tokens_saved_by_packing"] = logs["tokens_saved_by_sharing"] = 0.0
        if seconds:
            logs["tokens_per_second"] = packed / seconds
        return logs

    def _mean_value_correct(self, output: SentenceRewardOutput, batch: PackedBatch, pairs: Tensor) -> Tensor:
        """[P] whether the mean of the values at sentence ends ranks each pair as labelled; zeros where values are not at sentence ends."""
        if not self.has_sentences:
            return self._sum.new_zeros(len(pairs))
        assert output.value is not None
        return _correct(mean_value(output.value.to(self._sum.dtype), batch.cu_boundaries), pairs)

    def _of_responses(self, output: SentenceRewardOutput, count_B: Tensor) -> list[Tensor]:
        zero = self._sum.new_zeros(())
        sums = [zero + len(count_B), (count_B - 1).sum().to(zero.dtype)]
        if not self.has_attention:
            return [*sums, zero, zero, zero]
        assert output.weight is not None
        attention_N = output.weight.to(zero.dtype)
        if self.adds_up_attention:
            attention_N = _apart(attention_N, count_B)
        entropy_B, normalized_B, spread_B = attention_entropy(attention_N, count_B, include_prompt=self.include_prompt)
        return [*sums, entropy_B.sum(), normalized_B.sum(), spread_B.sum().to(zero.dtype)]


def _correct(score_B: Tensor, pairs: Tensor) -> Tensor:
    """[P] 1 where chosen is above rejected, 0 below. A tie is half right: an untrained model, whose rewards are all zero, is at chance."""
    return ((score_B[pairs[:, 0]] - score_B[pairs[:, 1]]).sign() + 1) / 2


def _apart(attention_N: Tensor, count_B: Tensor) -> Tensor:
    """The softmax weights `a_i` of value attention, from `Σ_{j ≥ i} a_j`, the weights of its sentence rewards."""
    following_N = attention_N.roll(-1).index_fill(0, count_B.cumsum(0) - 1, 0.0)
    # Not below zero, where rounding would put the prompt that is left out.
    return (attention_N - following_N).clamp(min=0)


def attention_entropy(attention_N: Tensor, count_B: Tensor, *, include_prompt: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy [B] in nats of each response's attention, the same as a share of the largest possible, and where that is defined.

    `count_B` holds the number of boundaries of each response. The share is 0 and undefined where there is only one place to attend to.
    """
    # output_size spares the wait for the device that the sum of the counts would take.
    segment_N = torch.repeat_interleave(torch.arange(len(count_B), device=count_B.device), count_B, output_size=len(attention_N))
    entropy_B = attention_N.new_zeros(len(count_B)).index_add(0, segment_N, -torch.xlogy(attention_N, attention_N))
    places_B = count_B if include_prompt else count_B - 1
    spread_B = places_B > 1
    largest_B = places_B.clamp(min=2).to(entropy_B.dtype).log()
    return entropy_B, (entropy_B / largest_B) * spread_B, spread_B
