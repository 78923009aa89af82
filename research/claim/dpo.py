"""A rival on the same activations: a policy that DPO trains on the same pairs, its implicit reward split by sentence.

After arXiv 2305.18290. The policy is the decoder itself. Its last layers and final norm train, the layers below and the output's weights
are frozen; the reference is what it starts from. The response reward is `beta * (log pi - log pi_ref)` over the response's tokens, a
sentence's over its own.

Shape letters: `B` responses, `M` response tokens, `D` hidden size, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, logsigmoid

from bench import environment
from research.claim.activations import Activations, is_fast_at_bf16, upper_model, with_table
from srm import ScoredResponse, SentenceRewardModel
from srm.data import EncodedComparison, EncodedResponse
from srm.packing import PromptGroup, pack, run_backbone
from srm.scoring.batching import split_passes
from srm.scoring.run import ResponseScore
from srm.scoring.text import read_off

__all__ = ["BETA", "Texts", "implicit_rewards", "policy", "reference_logprobs", "scored", "train_policy"]

BETA = 0.1
# Tokens whose logits are worked out together: [512, V] in fp32 are 100 MB.
_ROWS = 512


@dataclass(frozen=True)
class Texts:
    """Groups of text, their activations, and the log-probabilities [M] of each response's tokens under the reference."""

    groups: Sequence[PromptGroup]
    activations: Activations
    reference: list[Tensor]

    def first(self, count: int | None) -> Texts:
        """Those of the first `count` groups; of all where None."""
        some = Activations(table=self.activations.table, starts=self.activations.starts[:count])
        groups = self.groups[:count]
        return Texts(groups, some, self.reference[: sum(len(group.responses) for group in groups)])


def policy(whole: SentenceRewardModel, num_trained: int, table: Tensor) -> SentenceRewardModel:
    """The upper layers of the decoder, as `upper_model` has them; their head is not used."""
    return upper_model(whole, num_trained, table, granularity="token")


def train_policy(model: SentenceRewardModel, weight: Tensor, pairs: Texts, *, rate: float, seed: int, batch: int) -> None:
    """DPO on (chosen, rejected): AdamW, linear decay, one epoch, in the order of `seed`.

    Args:
        model: from `policy`.
        weight: [V, D], of the output.
        pairs: groups of two responses, the chosen one first.
        rate: learning rate.
        seed: of the order.
        batch: pairs a step.
    """
    if any(cast(EncodedComparison, group).pairs != ((0, 1, None),) for group in pairs.groups):
        raise ValueError("train_policy: each group must be a chosen and a rejected response.")
    rows = pairs.activations.rows_of(pairs.groups)
    reference_P2 = torch.stack([one.sum() for one in pairs.reference]).view(-1, 2)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).split(batch)
    optimizer = torch.optim.AdamW([one for one in model.backbone.parameters() if one.requires_grad], lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(order))
    model.train()
    for step, picked in enumerate(order):
        with _autocast(model):
            found = _logprobs(model, weight, [rows[i] for i in picked], [pairs.groups[i] for i in picked])
        ratio_P2 = torch.stack([one.sum() for one in found]).view(-1, 2) - reference_P2[picked]
        loss = -logsigmoid(BETA * (ratio_P2[:, 0] - ratio_P2[:, 1])).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.backbone.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            environment.say(f"step {step} of {len(order)}: loss {loss.item():.4f}")
    model.eval()


@torch.inference_mode()
def reference_logprobs(
    path: Path, model: SentenceRewardModel, weight: Tensor, groups: Sequence[PromptGroup], table: Activations
) -> list[Tensor]:
    """Log-probabilities [M] of every response's tokens under `model`, read from `path` or computed and written there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_all_logprobs(with_table(model, table.table), weight, groups, table), path)
    return torch.load(path)


@torch.inference_mode()
def implicit_rewards(model: SentenceRewardModel, weight: Tensor, texts: Texts) -> list[Tensor]:
    """`beta * (log pi - log pi_ref)` of every response's tokens, [M] each."""
    found = _all_logprobs(with_table(model, texts.activations.table), weight, texts.groups, texts.activations)
    return [BETA * (one - other) for one, other in zip(found, texts.reference, strict=True)]


def scored(groups: Sequence[PromptGroup], rewards: Sequence[Tensor]) -> list[ScoredResponse]:
    """Implicit rewards by sentence, in the form that `score` gives."""
    responses = [cast(EncodedResponse, response) for group in groups for response in group.responses]
    return [_read_off(response, reward.double()) for response, reward in zip(responses, rewards, strict=True)]


def _read_off(response: EncodedResponse, reward: Tensor) -> ScoredResponse:
    edges = [0, response.opening, *(end + 1 for end in response.sentence_ends.tolist())]
    parts = [math.fsum(reward[start:end].tolist()) for start, end in pairwise(edges)]
    return read_off(response, ResponseScore(reward=math.fsum(parts), sentence_reward=parts, weight=[1.0] * len(parts)))


def _all_logprobs(model: SentenceRewardModel, weight: Tensor, groups: Sequence[PromptGroup], table: Activations) -> list[Tensor]:
    rows = table.rows_of(groups)
    found: list[Tensor] = []
    done = 0
    for parts in split_passes(rows, tokens_per_batch=4096, packing="shared"):
        # A group is never split: `cached_activations` refuses those that would be.
        texts = groups[done : done + len(parts)]
        with _autocast(model):
            found += _logprobs(model, weight, [part.group for part in parts], texts)
        done += len(parts)
    return found


def _logprobs(model: SentenceRewardModel, weight: Tensor, rows: Sequence[PromptGroup], texts: Sequence[PromptGroup]) -> list[Tensor]:
    """fp32 [M] of each response: the log-probabilities of its tokens. rows: the same groups, with rows of the table for ids."""
    every_token = [replace(group, responses=[response.every_token() for response in group.responses]) for group in rows]
    packed = pack(every_token, mode="shared", pad_token_id=0).to(model.device)
    # Each boundary says what comes next: the prompt's last token and all of a response's, of which the last one says nothing here.
    says = torch.ones(len(packed.boundaries), dtype=torch.bool)
    says[packed.cu_boundaries[1:].long() - 1] = False
    hidden = run_backbone(model.backbone, packed)[packed.boundaries[says]]
    responses = [response.ids for group in texts for response in group.responses]
    ids = torch.from_numpy(np.concatenate(responses)).long()
    parts = [_of_rows(some, chosen, weight) for some, chosen in zip(hidden.split(_ROWS), ids.split(_ROWS), strict=True)]
    return list(torch.cat(parts).split([len(one) for one in responses]))


def _of_rows(hidden: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
    return -cross_entropy(linear(hidden, weight).float(), ids, reduction="none")


def _autocast(model: SentenceRewardModel) -> torch.autocast:
    return torch.autocast(model.device.type, torch.bfloat16, enabled=is_fast_at_bf16(model.device))
