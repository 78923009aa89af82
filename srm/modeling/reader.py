"""The half of a reward model that needs no weights: text and ids to what the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from srm.data import ResponseEncoder
from srm.modeling.config import SentenceRewardConfig
from srm.segmentation import make_segmenter

__all__ = ["ModelReader", "make_encoder"]


def make_encoder(config: SentenceRewardConfig, tokenizer: PreTrainedTokenizerBase) -> ResponseEncoder:
    """Turns prompts and responses into ids and boundaries, exactly as in training.

    Args:
        config: of the reward model.
        tokenizer: the reward model's.
    """
    return ResponseEncoder(
        tokenizer, make_segmenter(**config.segmenter), boundary_token=config.boundary_token, listed_ends=config.end_token_ids
    )


@dataclass(frozen=True)
class ModelReader:
    """Reads for a reward model whose weights lie elsewhere, as in an inference engine.

    Attributes:
        config: of the reward model.
        tokenizer: the reward model's.
    """

    config: SentenceRewardConfig
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def encoder(self) -> ResponseEncoder:
        """See `make_encoder`."""
        return make_encoder(self.config, self.tokenizer)

    @property
    def num_embeddings(self) -> int:
        """How many token ids the backbone has an embedding for."""
        assert self.config.backbone_config is not None
        return int(self.config.backbone_config.get_text_config().vocab_size)
