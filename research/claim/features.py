"""What a frozen backbone says about every sentence of a file of responses: computed once, then any number of heads train on it.

Shape letters: `B` responses, `N` boundaries (of each response the prompt, then its sentences), `D` hidden size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from srm import SentenceRewardModel
from srm.data.encode import EncodedResponse
from srm.evaluation.suites import SuiteRow
from srm.packing import PromptGroup, pack, run_backbone
from srm.scoring.batching import split_passes
from srm.scoring.text import encode_groups

__all__ = ["Features", "cached_features", "frozen_model"]


@dataclass(frozen=True, kw_only=True)
class Features:
    """Of every response, in order.

    last: fp16 [N, D], hidden states of the boundaries: last token of the prompt, last token of each sentence.
    mean: fp16 [N, D], their means over each sentence's tokens; the prompt's is its last token again.
    tokens: int64 [N], tokens of each sentence, 0 for the prompt.
    cu_boundaries: int64 [B + 1], where each response's boundaries begin.
    responses: texts and their sentences.
    """

    last: Tensor
    mean: Tensor
    tokens: Tensor
    cu_boundaries: Tensor
    responses: list[EncodedResponse]

    @property
    def scale(self) -> float:
        """Root of the mean square of `last`: divided by it, one grid of learning rates fits any backbone."""
        return float(self.last.float().square().mean().sqrt())


def frozen_model(name: str) -> SentenceRewardModel:
    """The backbone `name` in bf16, on the GPU where there is one."""
    return SentenceRewardModel.from_backbone(name, dtype=torch.bfloat16).eval().to("cuda" if torch.cuda.is_available() else "cpu")


def cached_features(path: Path, model: SentenceRewardModel, rows: Sequence[SuiteRow], *, max_length: int) -> Features:
    """Read from `path`, or computed and written there; longer responses are cut to `max_length` tokens, prompt included."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(_features(model, rows, max_length), part)
        part.rename(path)
    return torch.load(path, weights_only=False)


@torch.inference_mode()
def _features(model: SentenceRewardModel, rows: Sequence[SuiteRow], max_length: int) -> Features:
    groups = [
        group
        for row in rows
        for group in encode_groups(
            model, row.prompt, row.responses, where=[row.id] * len(row.responses), max_length=max_length, overlong="truncate_response"
        )
    ]
    last, mean, tokens, done = [], [], [], 0
    for parts in split_passes(groups, tokens_per_batch=4096, packing="shared"):
        batch = [part.group for part in parts]
        responses = [response for group in batch for response in group.responses]
        for response, hidden in zip(responses, _hidden(model, batch), strict=True):
            lengths = torch.tensor([-2, -1, *response.sentence_ends.tolist()]).diff()
            last.append(hidden[lengths.cumsum(0) - 1].half())
            mean.append(torch.segment_reduce(hidden.float(), "mean", lengths=lengths.to(hidden.device)).half())
            tokens.append(torch.cat([torch.zeros(1, dtype=torch.int64), lengths[1:]]))
        done += sum(part.is_last for part in parts)
        print(f"\r{done} of {len(groups)} rows", end="" if done < len(groups) else "\n", file=sys.stderr, flush=True)
    return Features(
        last=torch.cat(last).cpu(),
        mean=torch.cat(mean).cpu(),
        tokens=torch.cat(tokens),
        cu_boundaries=torch.tensor([0, *map(len, tokens)]).cumsum(0),
        responses=[response for group in groups for response in group.responses],
    )


def _hidden(model: SentenceRewardModel, groups: Sequence[PromptGroup]) -> Iterator[Tensor]:
    """[1 + tokens, D] of each response: the prompt's last token, then all of its own."""
    every_token = [replace(group, responses=[response.every_token() for response in group.responses]) for group in groups]
    packed = pack(every_token, mode="shared", pad_token_id=0).to(model.device)
    hidden = run_backbone(model.backbone, packed)[packed.boundaries]
    yield from hidden.split(packed.cu_boundaries.diff().tolist())
