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
RATES, EPOCHS = (3e-4, 1e-3, 3e-3), (2, 6)
BATCH = 32
# Of the value's learning rate, as srm-train has it by default: 5e-6 beside 2e-4.
ATTENTION_SHARE = 1 / 40
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
    """The library's head; with `gate`, mixed with the value at the response's end by one learned weight that starts at a half."""

    def __init__(self, width: int, *, gate: bool = False, **arguments: Any) -> None:
        super().__init__()
        self.head = SentenceRewardHead(width, **arguments)
        self.gate = nn.Parameter(torch.zeros(())) if gate else None

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
    arguments: of `Pooled`. loss: weights of `reward_loss`'s terms. last_value_loss: weight of a pair loss on the value at the end.
    """

    of: str = "last"
    by_token: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    last_value_loss: float = 0.0

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
    "mean of values, no attention": Head(arguments={"pooling": "mean", "difference": False}, loss={"sentence_reward_l2": 0.01}),
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
    groups = [{"params": fast, "lr": rate}] + ([{"params": slow, "lr": rate * ATTENTION_SHARE}] if slow else [])
    optimizer = torch.optim.AdamW(groups)
    num_pairs = (len(features.cu) - 1) // 2
    steps = epochs * -(-num_pairs // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(epochs):
        for pairs in torch.randperm(num_pairs).split(BATCH):
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
    return loss


@torch.no_grad()
def outputs(head: Head, model: nn.Module, features: Features, scale: float) -> SentenceRewardOutput:
    """What a trained head says about all responses of `features`."""
    x = getattr(features, head.of).float() / scale
    return model(part_of(features, x, torch.arange(len(features.cu) - 1)))
