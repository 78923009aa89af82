"""Heads to train on frozen features, and the training: sentence, response and token level, their ablations, and other poolings.

Shape letters as in features.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from claim.features import Features
from srm.training.losses import reward_loss
from srm_kernels import SentenceLayout, SentenceRewardHead, SentenceRewardOutput, bradley_terry_loss

__all__ = ["EPOCHS", "HEADS", "RATES", "Head", "Part", "outputs", "train"]

# The same six settings for every head; each takes its best on the tuning pairs.
RATES, EPOCHS = (1e-3, 3e-3, 1e-2), (6, 18)
BATCH = 32
_RECIPE = {"mean_value_coefficient": 1.0, "sentence_reward_l2": 0.01}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Features of some responses. x: [N, D] in fp32. tokens: [N]. cu: [B + 1]."""

    x: Tensor
    tokens: Tensor
    cu: Tensor

    @property
    def response(self) -> Tensor:
        """[N], the response of each boundary."""
        return torch.repeat_interleave(self.cu.diff())


class TokenMean(nn.Module):
    """R is the mean of the values of a response's tokens; a linear value of the mean is the mean of the values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, part: Part) -> SentenceRewardOutput:
        value_N = self.value(part.x)[:, 0]
        total_B = torch.zeros(len(part.cu) - 1).index_add(0, part.response, part.tokens.float())
        share_N = part.tokens / total_B[part.response]
        reward_B = torch.zeros(len(part.cu) - 1).index_add(0, part.response, share_N * value_N)
        return SentenceRewardOutput(reward_B, value_N, share_N, value_N)


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

    def forward(self, part: Part) -> SentenceRewardOutput:
        output = self.head(part.x, SentenceLayout(torch.arange(len(part.x)), part.cu.int()))
        if self.gate is None:
            return output
        share = torch.sigmoid(self.gate)
        return output._replace(reward=share * output.reward + (1 - share) * output.value[part.cu[1:] - 1])


@dataclass(frozen=True, kw_only=True)
class Head:
    """What is compared.

    of: which hidden states, `last` or `mean` of a sentence's tokens. by_token: `TokenMean` in place of `Pooled`.
    arguments: of `Pooled`. loss: weights of `reward_loss`'s terms.
    last_value_loss, prefix_loss: weights of a pair loss on the value at the end, and of `prefix_loss`.
    attention_share: learning rate of query and key as a share of the value's; as srm-train has it by default, 5e-6 beside 2e-4.
    balanced: trained on pairs of which half have the longer response chosen, the surplus left out.
    """

    of: str = "last"
    by_token: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    last_value_loss: float = 0.0
    prefix_loss: float = 0.0
    attention_share: float = 1 / 40
    balanced: bool = False

    def make(self, width: int) -> nn.Module:
        return TokenMean(width) if self.by_token else Pooled(width, **self.arguments)


HEADS = {
    "sentence": Head(loss=_RECIPE),
    "response": Head(arguments={"pooling": "sum"}),
    "token": Head(of="mean", by_token=True),
    "paper loss": Head(),
    "mean pooling": Head(arguments={"pooling": "mean"}, loss=_RECIPE),
    "no differencing": Head(arguments={"difference": False}, loss=_RECIPE),
    "no RoPE": Head(arguments={"rope_theta": None}, loss=_RECIPE),
    "no prompt index": Head(arguments={"include_prompt": False}, loss=_RECIPE),
    "mean of each sentence's tokens": Head(of="mean", loss=_RECIPE),
    "gate to the last value": Head(arguments={"gate": True}, loss=_RECIPE),
    "pair loss on the last value": Head(loss=_RECIPE, last_value_loss=1.0),
    "pair loss on every prefix": Head(loss={"sentence_reward_l2": 0.01}, prefix_loss=1.0),
    "fast attention": Head(loss=_RECIPE, attention_share=1.0),
    "mean of values, no attention": Head(arguments={"pooling": "mean", "difference": False}, loss={"sentence_reward_l2": 0.01}),
    "sentence, lengths balanced": Head(loss=_RECIPE, balanced=True),
    "response, lengths balanced": Head(arguments={"pooling": "sum"}, balanced=True),
    "token, lengths balanced": Head(of="mean", by_token=True, balanced=True),
}


def part_of(features: Features, x: Tensor, responses: Tensor) -> Part:
    """`responses` [b] of the features `x` [N, D]."""
    lengths = features.cu.diff()[responses]
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    rows = torch.repeat_interleave(features.cu[responses] - cu[:-1], lengths) + torch.arange(int(cu[-1]))
    return Part(x=x[rows], tokens=features.tokens[rows], cu=cu)


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
    chosen = _balanced(features) if head.balanced else torch.arange((len(features.cu) - 1) // 2)
    steps = epochs * -(-len(chosen) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(epochs):
        for pairs in chosen[torch.randperm(len(chosen))].split(BATCH):
            part = part_of(features, x, torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten())
            loss = _loss(head, model(part), part, torch.arange(2 * len(pairs)).view(-1, 2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def _loss(head: Head, output: SentenceRewardOutput, part: Part, pairs: Tensor) -> Tensor:
    loss = reward_loss(output, part.cu, pairs, **head.loss)
    if head.last_value_loss:
        loss = loss + head.last_value_loss * bradley_terry_loss(output.value[part.cu[1:] - 1], pairs)
    if head.prefix_loss:
        loss = loss + head.prefix_loss * prefix_loss(output.value, part.cu, pairs)
    return loss


def prefix_loss(value: Tensor, cu: Tensor, pairs: Tensor) -> Tensor:
    """Bradley-Terry between the values behind sentence i = 1, 2, ... of both responses; the shorter one keeps its last value. A mean.

    Args:
        value: [N]. cu: [B + 1]. pairs: [P, 2], (chosen, rejected); each counts the same, however long.
    """
    sentences_B = cu.diff() - 1
    longest_P = sentences_B[pairs].amax(1)
    pair_X = torch.repeat_interleave(longest_P)
    number_X = torch.arange(len(pair_X)) - (longest_P.cumsum(0) - longest_P)[pair_X] + 1
    responses_X2 = pairs[pair_X]
    value_X2 = value[cu[responses_X2] + torch.minimum(number_X[:, None], sentences_B[responses_X2])]
    return (nn.functional.softplus(value_X2[:, 1] - value_X2[:, 0]) / longest_P[pair_X]).sum() / len(pairs)


def _balanced(features: Features) -> Tensor:
    """Pairs, as many with the longer response chosen as with the shorter one; the same ones every time."""
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), features.tokens.cumsum(0)])[features.cu]
    chosen_P, rejected_P = ends.diff().view(-1, 2).unbind(1)
    sides = [torch.nonzero(chosen_P > rejected_P)[:, 0], torch.nonzero(chosen_P < rejected_P)[:, 0]]
    size = min(map(len, sides))
    draw = torch.Generator().manual_seed(0)
    return torch.cat([side[torch.randperm(len(side), generator=draw)[:size]] for side in sides])


@torch.no_grad()
def outputs(head: Head, model: nn.Module, features: Features, scale: float) -> SentenceRewardOutput:
    """What a trained head says about all responses of `features`."""
    x = getattr(features, head.of).float() / scale
    return model(part_of(features, x, torch.arange(len(features.cu) - 1)))
