"""The reward model as a sequence classifier with one label, for programs that load their reward models as that."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from srm.data.rendered import RenderedConversations
from srm.errors import UserError
from srm.modeling.model import SentenceRewardModel, SentenceRewardOutput
from srm.packing import PackedBatch, PromptGroup
from srm.scoring.guards import check_ids, require_finite
from srm.scoring.run import score_all
from srm.scoring.token_ids import NO_TEXT

__all__ = ["SentenceRewardForSequenceClassification"]


class SentenceRewardForSequenceClassification(SentenceRewardModel):
    """A `SentenceRewardModel` that `AutoModelForSequenceClassification` loads: its logit is the reward that `score` gives.

    It takes conversations that the tokenizer's chat template has written, the assistant's answer at their end. The answer is found behind
    the last header that the template writes before an answer. Text without one is refused, and so is a conversation that goes on behind
    the answer. An answer that spells a whole end of turn and header out is taken for two turns, and what a template strips from an answer
    cannot be scored. An empty answer gets its prompt's share of the reward. It gives no gradients: `srm-train` trains.
    """

    def forward(  # type: ignore[override]  # what programs give to classifiers, beside what its own scoring gives
        self,
        input_ids: Tensor | PackedBatch,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SequenceClassifierOutput | SentenceRewardOutput:
        """The rewards of whole conversations.

        Args:
            input_ids: int [B, L], padded on either side; or a `PackedBatch`, as `SentenceRewardModel.forward` takes it.
            attention_mask: bool or int [B, L], nonzero on tokens; where None, pad tokens at either end are left out.
            token_type_ids: not used.

        Returns:
            `logits`, fp32 [B, 1]; for a `PackedBatch` a `SentenceRewardOutput`.

        Raises:
            UserError: a row in which no answer begins, with more tokens than the model reads, with one that it does not know, or with a
                reward that is no number; or gradients are asked for.
        """
        if isinstance(input_ids, PackedBatch):
            return super().forward(input_ids)
        if self.training and torch.is_grad_enabled():
            raise UserError("this classifier scores, and has no gradients. Train with srm-train, or call it in eval mode.")
        groups = self._groups(_rows(input_ids, attention_mask, self.config.pad_token_id))
        scores = [score for (score,) in score_all(self, groups, tokens_per_batch=8192, packing=None)]
        require_finite(self, scores, map(_place, range(len(scores))))
        return SequenceClassifierOutput(logits=torch.tensor([score.reward for score in scores], device=input_ids.device).view(-1, 1))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As `SentenceRewardModel.from_pretrained`; the config gets the tokenizer's pad token, where programs look for it.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the hub.
            *args: as there.
            **kwargs: as there.

        Returns:
            As there.

        Raises:
            UserError: what is there is no reward model, or more than one label was asked for.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.num_labels != 1:
            raise UserError(f"{pretrained_model_name_or_path}: num_labels is {model.config.num_labels}, and a reward is one number. Set 1.")
        # An adapter's model comes with its backbone's name; programs load the tokenizer from where this one says.
        model.config.name_or_path = str(pretrained_model_name_or_path)
        if model.config.pad_token_id is None and model.tokenizer is not None:
            pad, eos = model.tokenizer.pad_token_id, model.tokenizer.eos_token_id
            model.config.pad_token_id = eos if pad is None else pad
        return loaded

    @cached_property
    def _conversations(self) -> RenderedConversations:
        return RenderedConversations(self.encoder)

    def _groups(self, rows: list[list[int]]) -> list[PromptGroup]:
        split = [self._conversations.split(ids, where=_place(index)) for index, ids in enumerate(rows)]
        encoded = iter(self.encoder.encode_responses([text for _, text in split if text.strip()]))
        groups = []
        for index, (prompt, text) in enumerate(split):
            prompt_ids = np.array([*prompt, *self.encoder.boundary_ids], dtype=np.int32)
            groups.append(PromptGroup(prompt_ids=prompt_ids, responses=[next(encoded) if text.strip() else NO_TEXT]))
            check_ids(self.num_embeddings, _place(index), groups[-1].prompt_ids, groups[-1].responses[0].ids)
            limit = self.config.max_positions
            if limit is not None and groups[-1].longest > limit:
                raise UserError(
                    f"{_place(index)}: the conversation has {groups[-1].longest} tokens, the model reads {limit}. Cut it "
                    "(truncation, max_length), or use a reward model with a longer context."
                )
        return groups


def _place(index: int) -> str:
    return f"row {index} of input_ids"


def _rows(input_ids: Tensor, attention_mask: Tensor | None, pad: int | None) -> list[list[int]]:
    """The ids of each row, without padding."""
    if input_ids.dim() != 2 or (attention_mask is not None and attention_mask.shape != input_ids.shape):
        got = [list(input_ids.shape), None if attention_mask is None else list(attention_mask.shape)]
        raise ValueError(f"input_ids and attention_mask must be [B, L], got {got[0]} and {got[1]}.")
    if attention_mask is None:
        is_token = torch.ones_like(input_ids) if pad is None else (input_ids != pad).int()
        attention_mask = is_token.cummax(1).values & is_token.flip(1).cummax(1).values.flip(1)
    return [ids[keep].tolist() for ids, keep in zip(input_ids.cpu(), attention_mask.bool().cpu(), strict=True)]
