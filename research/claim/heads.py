"""Heads to train on frozen features, and the training: sentence, response and token level, their ablations, and other poolings.

Shape letters as in features.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from research.claim.features import Features
from srm import ScoredResponse
from srm.scoring.run import ResponseScore
from srm.scoring.text import read_off
from srm.training.losses import reward_loss
from srm_kernels import SentenceLayout, SentenceRewardHead, SentenceRewardHeadOutput

__all__ = ["EPOCHS", "HEADS", "RATES", "Head", "Part", "outputs", "scored", "train"]

# The same six settings for every head; each takes its best on the tuning pairs.
RATES, EPOCHS = (1e-3, 3e-3, 1e-2), (6, 18)
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Part:
    """Features of some responses. x: [N, D] in fp32. tokens: [N]. cu_boundaries: [B + 1]."""

    x: Tensor
    tokens: Tensor
    cu_boundaries: Tensor

    @property
    def response(self) -> Tensor:
        """[N], the response of each boundary."""
        return torch.repeat_interleave(self.cu_boundaries.diff())


class TokenMean(nn.Module):
    """R is the mean of the values of a response's tokens; a linear value of the mean is the mean of the values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, part: Part) -> SentenceRewardHeadOutput:
        value_N = self.value(part.x)[:, 0]
        total_B = torch.zeros(len(part.cu_boundaries) - 1).index_add(0, part.response, part.tokens.float())
        share_N = part.tokens / total_B[part.response]
        reward_B = torch.zeros(len(part.cu_boundaries) - 1).index_add(0, part.response, share_N * value_N)
        return SentenceRewardHeadOutput(reward_B, value_N, share_N, value_N)


class Pooled(nn.Module):
    """The library's head.

    gate: mixed with the value at the response's end by one learned weight that starts at a half.
    random_start: query and key start as torch's layers do and the value at N(0, 0.02), not at zero.
    """

    def __init__(self, width: int, *, gate: bool = False, random_start: bool = False, **arguments: Any) -> None:
        super().__init__()
        self.head = SentenceRewardHead(width, **arguments)
        self.gate = nn.Parameter(torch.zeros(())) if gate else None
        if random_start:
            for layer in (self.head.query, self.head.key):
                layer.reset_parameters()
            nn.init.normal_(self.head.value.weight, std=0.02)

    def forward(self, part: Part) -> SentenceRewardHeadOutput:
        output = self.head(part.x, SentenceLayout(torch.arange(len(part.x)), part.cu_boundaries.int()))
        if self.gate is None:
            return output
        share = torch.sigmoid(self.gate)
        return output._replace(reward=share * output.reward + (1 - share) * output.value[part.cu_boundaries[1:] - 1])


@dataclass(frozen=True, kw_only=True)
class Head:
    """What is compared.

    of: which hidden states, `last` or `mean` of a sentence's tokens. by_token: `TokenMean` in place of `Pooled`.
    arguments: of `Pooled`. loss: weights of `reward_loss`'s terms.
    attention_share: learning rate of query and key as a share of the value's; as srm-train has it by default, 5e-6 beside 2e-4.
    balanced: trained on pairs of which half have the longer response chosen, the surplus left out.
    """

    of: str = "last"
    by_token: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    attention_share: float = 1 / 40
    balanced: bool = False

    def make(self, width: int) -> nn.Module:
        return TokenMean(width) if self.by_token else Pooled(width, **self.arguments)


# As srm-train has it by default at sentence level.
_OURS: dict[str, Any] = {"pooling": "value_attention"}
_RECIPE = {"mean_value_coefficient": 1.0, "sentence_reward_l2": 0.01}
_NO_MEAN_VALUE = {"sentence_reward_l2": 0.01}

HEADS = {
    "sentence": Head(arguments=_OURS, loss=_RECIPE),
    "response": Head(arguments={"pooling": "sum"}),
    "token": Head(of="mean", by_token=True),
    "paper": Head(arguments={"pooling": "attention"}),
    "paper's pooling": Head(arguments={"pooling": "attention"}, loss=_RECIPE),
    "mean pooling": Head(arguments={"pooling": "mean"}, loss=_RECIPE),
    "mean of values, no attention": Head(arguments={"pooling": "mean", "difference": False}, loss=_NO_MEAN_VALUE),
    "no differencing": Head(arguments={**_OURS, "difference": False}, loss=_RECIPE),
    "no RoPE": Head(arguments={**_OURS, "rope_theta": None}, loss=_RECIPE),
    "no prompt index": Head(arguments={**_OURS, "include_prompt": False}, loss=_RECIPE),
    "mean of each sentence's tokens": Head(of="mean", arguments=_OURS, loss=_RECIPE),
    "gate to the last value": Head(arguments={**_OURS, "gate": True}, loss=_RECIPE),
    "no mean value loss": Head(arguments=_OURS, loss=_NO_MEAN_VALUE),
    "fast attention": Head(arguments=_OURS, loss=_RECIPE, attention_share=1.0),
    "fast attention, no mean value loss": Head(arguments=_OURS, loss=_NO_MEAN_VALUE, attention_share=1.0),
    "sentence, lengths balanced": Head(arguments=_OURS, loss=_RECIPE, balanced=True),
    "response, lengths balanced": Head(arguments={"pooling": "sum"}, balanced=True),
    "token, lengths balanced": Head(of="mean", by_token=True, balanced=True),
}


def part_of(features: Features, x: Tensor, responses: Tensor) -> Part:
    """`responses` [b] of the features `x` [N, D]."""
    lengths = features.cu_boundaries.diff()[responses]
    cu_boundaries = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    rows = torch.repeat_interleave(features.cu_boundaries[responses] - cu_boundaries[:-1], lengths) + torch.arange(int(lengths.sum()))
    return Part(x=x[rows], tokens=features.tokens[rows], cu_boundaries=cu_boundaries)


def train(head: Head, features: Features, scale: float, *, rate: float, epochs: int, seed: int) -> nn.Module:
    """`head` on pairs of neighbours in `features`, (better, worse): AdamW, linear decay, `BATCH` pairs a step.

    scale: what hidden states are divided by, so that one grid of learning rates fits any backbone.
    """
    torch.manual_seed(seed)
    x = getattr(features, head.of).float() / scale
    model = head.make(x.shape[1])
    slow = [p for name, p in model.named_parameters() if ".query." in name or ".key." in name]
    fast = [p for name, p in model.named_parameters() if not (".query." in name or ".key." in name)]
    groups = [{"params": fast, "lr": rate}] + ([{"params": slow, "lr": rate * head.attention_share}] if slow else [])
    optimizer = torch.optim.AdamW(groups)
    chosen = _balanced(features) if head.balanced else torch.arange((len(features.cu_boundaries) - 1) // 2)
    steps = epochs * -(-len(chosen) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(epochs):
        for pairs in chosen[torch.randperm(len(chosen))].split(BATCH):
            part = part_of(features, x, torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten())
            loss = reward_loss(model(part), part.cu_boundaries, torch.arange(2 * len(pairs)).view(-1, 2), **head.loss).objective
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def _balanced(features: Features) -> Tensor:
    """Pairs, as many with the longer response chosen as with the shorter one; the same ones every time."""
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), features.tokens.cumsum(0)])[features.cu_boundaries]
    chosen_P, rejected_P = ends.diff().view(-1, 2).unbind(1)
    sides = [torch.nonzero(chosen_P > rejected_P)[:, 0], torch.nonzero(chosen_P < rejected_P)[:, 0]]
    size = min(map(len, sides))
    draw = torch.Generator().manual_seed(0)
    return torch.cat([side[torch.randperm(len(side), generator=draw)[:size]] for side in sides])


@torch.no_grad()
def outputs(head: Head, model: nn.Module, features: Features, scale: float) -> SentenceRewardHeadOutput:
    """What a trained head says about all responses of `features`."""
    x = getattr(features, head.of).float() / scale
    return model(part_of(features, x, torch.arange(len(features.cu_boundaries) - 1)))


def scored(features: Features, output: SentenceRewardHeadOutput) -> list[ScoredResponse]:
    """What `output` says about every response of `features` and its sentences."""
    lengths = features.cu_boundaries.diff().tolist()
    reward, sentence_reward, weight, _ = output
    parts = zip(features.responses, reward.tolist(), sentence_reward.split(lengths), weight.split(lengths), strict=True)
    return [
        read_off(response, ResponseScore(reward=total, sentence_reward=r.tolist(), weight=w.tolist())) for response, total, r, w in parts
    ]
