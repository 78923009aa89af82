"""Activations of a decoder's lower layers, computed once; the layers above them then train and score as a model of their own.

A token's activation is a row of one table. The upper model's embedding is that table, and its token ids are row numbers: so packing, the
trainer and the scorer run on it as on any other decoder, and every level of the comparison reads the same numbers.

Shape letters: `T` tokens of all rows, `D` hidden size.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from srm import SentenceRewardConfig, SentenceRewardModel
from srm.cli.demo import cpu_is_fast_at_bf16
from srm.packing import PromptGroup, pack, run_backbone
from srm.scoring.batching import split_passes

__all__ = [
    "Activations",
    "cached_activations",
    "is_fast_at_bf16",
    "lower_layers",
    "upper_model",
    "upper_weights",
    "whole_model",
    "with_table",
]

TOKENS_PER_BATCH = 4096
DTYPE = torch.bfloat16
_LAYER = re.compile(r"layers\.(\d+)\.")
Group = TypeVar("Group", bound=PromptGroup)


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Of every token of some groups. table: bf16 [T, D]. starts: for each group, the rows of its prompt and of each response."""

    table: Tensor
    starts: list[list[int]]

    def rows_of(self, groups: Sequence[Group]) -> list[Group]:
        """`groups`, which the table was made of, with each token's row in the table for its id."""
        placed = []
        for group, (prompt, *responses) in zip(groups, self.starts, strict=True):
            answers = [replace(one, ids=_rows(start, one.ids)) for start, one in zip(responses, group.responses, strict=True)]
            placed.append(replace(group, prompt_ids=_rows(prompt, group.prompt_ids), responses=answers))
        return placed


def _rows(start: int, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.arange(start, start + len(ids), dtype=np.int32)


def is_fast_at_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 matrices in hardware."""
    return device.type != "cpu" or cpu_is_fast_at_bf16()


def lower_layers(backbone: PreTrainedModel, num_trained: int) -> PreTrainedModel:
    """A copy of `backbone` without its last `num_trained` layers and its final norm; in bf16 where the device has units for it."""
    number = len(backbone.layers) - num_trained
    lower = _like(backbone, num_hidden_layers=number)
    lower.load_state_dict({name: weight for name, weight in backbone.state_dict().items() if _layer(name) < number})
    lower.norm = nn.Identity()
    return lower.to(device=backbone.device, dtype=DTYPE if is_fast_at_bf16(backbone.device) else torch.float32).eval()


def _like(backbone: PreTrainedModel, **changes: Any) -> PreTrainedModel:
    config = copy.deepcopy(backbone.config)
    config.update(changes)
    return AutoModel.from_config(config, dtype=torch.float32)


def _layer(name: str) -> int:
    """The number of the layer that a weight is in; -1 for those outside."""
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def cached_activations(folder: Path, groups: Sequence[PromptGroup], make_lower: Callable[[], PreTrainedModel]) -> Activations:
    """Read from `folder`, or computed and written there, which takes about as long as scoring the groups.

    make_lower: gives `lower_layers`, where they are needed.
    """
    table, starts = folder / "table.pt", folder / "starts.json"
    if not starts.exists():
        folder.mkdir(parents=True, exist_ok=True)
        values, places = _compute(make_lower(), groups)
        torch.save(values, table)
        starts.write_text(json.dumps(places))
    # Mapped, because several runs at once read it.
    return Activations(table=torch.load(table, mmap=True), starts=json.loads(starts.read_text()))


@torch.inference_mode()
def _compute(lower: PreTrainedModel, groups: Sequence[PromptGroup]) -> tuple[Tensor, list[list[int]]]:
    total = sum(len(group.prompt_ids) + sum(len(response.ids) for response in group.responses) for group in groups)
    table = torch.empty(total, lower.config.hidden_size, dtype=DTYPE)
    starts: list[list[int]] = []
    done = 0
    for parts in split_passes(groups, tokens_per_batch=TOKENS_PER_BATCH, packing="shared"):
        if not all(part.is_last for part in parts):
            raise ValueError(f"a group of more than {TOKENS_PER_BATCH:,} tokens would be split; leave it out.")
        batch = [part.group for part in parts]
        packed = pack(batch, mode="shared", pad_token_id=0).to(lower.device)
        hidden = run_backbone(lower, packed)
        table[done : done + len(hidden)] = hidden.to(table)
        starts += _places(batch, done)
        done += len(hidden)
        print(f"\r{len(starts):,} of {len(groups):,} rows", end="" if len(starts) < len(groups) else "\n", file=sys.stderr, flush=True)
    # Groups of one pass that share a prompt share its rows.
    return table[:done].clone(), starts


def _places(batch: Sequence[PromptGroup], start: int) -> Iterator[list[int]]:
    """Where `pack` puts each group's prompt and responses: one segment a distinct prompt, then one a response."""
    prompts: dict[bytes, int] = {}
    for group in batch:
        if group.prompt_key not in prompts:
            prompts[group.prompt_key] = start
            start += len(group.prompt_ids)
        lengths = [len(response.ids) for response in group.responses]
        yield [prompts[group.prompt_key], *itertools.accumulate(lengths[:-1], initial=start)]
        start += sum(lengths)


class _Table(nn.Embedding):
    """Rows of the table, widened: the upper layers keep their residual stream in float32, as the whole model does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


def upper_model(whole: SentenceRewardModel, num_trained: int, table: Tensor, **variant: Any) -> SentenceRewardModel:
    """A copy of the last `num_trained` layers of `whole`'s backbone with a fresh head; its token ids are rows of `table`.

    Args:
        whole: the decoder as it was loaded, in float32.
        num_trained: layers that can be trained.
        table: of `Activations`.
        **variant: fields of `SentenceRewardConfig`.
    """
    first = len(whole.backbone.layers) - num_trained
    # The table takes the place of the embedding, so there is no need to draw one of its size.
    backbone = _like(whole.backbone, num_hidden_layers=num_trained, vocab_size=1, pad_token_id=0)
    weights = {_shifted(name, -first): weight for name, weight in whole.backbone.state_dict().items() if _is_upper(name, first)}
    backbone.load_state_dict(weights | {"embed_tokens.weight": backbone.embed_tokens.weight})
    model = SentenceRewardModel(SentenceRewardConfig(backbone_config=backbone.config, **variant), backbone=backbone)
    model.tokenizer = whole.tokenizer
    return with_table(model, table)


def with_table(upper: SentenceRewardModel, table: Tensor) -> SentenceRewardModel:
    """`upper` itself, reading the rows of `table`."""
    upper.backbone.embed_tokens = _Table.from_pretrained(table.to(upper.device), freeze=True)
    return upper


def upper_weights(upper: SentenceRewardModel) -> dict[str, Tensor]:
    """What training may have changed: all weights but the table's."""
    return {name: weight for name, weight in upper.state_dict().items() if "embed_tokens" not in name}


def whole_model(whole: SentenceRewardModel, upper: SentenceRewardModel) -> SentenceRewardModel:
    """A copy of `whole` with `upper`'s layers and head: a reward model for text."""
    first = len(whole.backbone.layers) - len(upper.backbone.layers)
    trained = {_shifted(name, first): weight for name, weight in upper.backbone.state_dict().items() if "embed_tokens" not in name}
    backbone = _like(whole.backbone)
    backbone.load_state_dict(whole.backbone.state_dict() | trained)
    config = copy.deepcopy(upper.config)
    config.backbone_config = backbone.config
    model = SentenceRewardModel(config, backbone=backbone)
    model.head.load_state_dict(upper.head.state_dict())
    model.tokenizer = whole.tokenizer
    return model.to(whole.device).eval()


def _is_upper(name: str, first: int) -> bool:
    return _layer(name) >= first or name.startswith("norm.")


def _shifted(name: str, by: int) -> str:
    return name if _layer(name) < 0 else _LAYER.sub(lambda found: f"layers.{int(found[1]) + by}.", name)
