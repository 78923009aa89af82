"""What scoring asks of a model. `srm.modeling.SentenceRewardModel` is one, and `srm.modeling.ModelReader` the half that reads."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from srm.data import ResponseEncoder
from srm.data.schema import Granularity
from srm.packing import PackedBatch, PackingMode

__all__ = ["HeadOutput", "Reader", "RewardModel", "RewardModelConfig"]


class HeadOutput(Protocol):
    """What a forward pass returns: reward [B], sentence_reward [N] and weight [N], fp32."""

    @property
    def reward(self) -> Tensor | None: ...

    @property
    def sentence_reward(self) -> Tensor | None: ...

    @property
    def weight(self) -> Tensor | None: ...


class RewardModelConfig(Protocol):
    """The settings that scores depend on; see `srm.modeling.SentenceRewardConfig`."""

    @property
    def granularity(self) -> Granularity: ...

    @property
    def max_positions(self) -> int | None: ...


class Reader(Protocol):
    """What turns text and ids into what the model reads. It needs no weights."""

    @property
    def config(self) -> RewardModelConfig: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None: ...

    @property
    def encoder(self) -> ResponseEncoder: ...

    @property
    def num_embeddings(self) -> int: ...


class RewardModel(Reader, Protocol):
    """A backbone with a sentence reward head."""

    @property
    def backbone(self) -> nn.Module: ...

    @property
    def head(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def training(self) -> bool: ...

    def packing_mode(self, asked: PackingMode | None = None) -> PackingMode:
        """The mode that runs where `asked` was asked for by name, or nothing was (None)."""
        ...

    def eval(self) -> Any:
        """Evaluation mode, as `torch.nn.Module.eval`."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Training mode, or evaluation mode where `mode` is False, as `torch.nn.Module.train`."""
        ...

    def __call__(self, batch: PackedBatch) -> HeadOutput: ...
