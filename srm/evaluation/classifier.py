"""Plain reward models: `AutoModelForSequenceClassification` with one output, scored on prompt and response in their chat template.

Many published reward models, and those of TRL's `RewardTrainer`, are of this kind. Such a model has no sentences: a `ScoredResponse` from
it holds the response as a single one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

from srm.data import Conversation, OverlongPolicy, Prompt, Response, ResponseRow
from srm.data.boundary import RowCheck
from srm.data.messages import is_prefilled
from srm.data.overlong import length_limit
from srm.data.responses import check_response, own_prompt, words_of
from srm.data.template import ChatFormat
from srm.data.turns import read_turns
from srm.errors import UserError
from srm.modeling.adapter import find_adapter, is_of_classifier, merge_adapter, read_adapter
from srm.modeling.config import positions_of
from srm.modeling.head_start import holds_classifier
from srm.modeling.loading import check_tokenizer_fits, load_tokenizer, load_whole, read_config
from srm.packing import PromptGroup
from srm.packing.backbone import num_embeddings
from srm.scoring.batching import split_passes
from srm.scoring.file import RowSettings, ScoredRows
from srm.scoring.guards import check_ids, not_finite
from srm.scoring.results import ScoredResponse, ScoredSentence
from srm.scoring.token_ids import NO_TEXT

__all__ = ["ClassifierModel", "as_one_sentence", "classifier_check", "is_classifier"]

# What transformers calls the output layer of a classifier.
_OUTPUTS = ("score", "classifier")
# Rows that are sorted by length together, and on disk together.
_WINDOW = 512


def is_classifier(name: str) -> bool:
    """Whether `name`, a folder or a hub name, holds a sequence classifier.

    Raises:
        UserError: no configuration could be loaded.
    """
    folder = find_adapter(name)
    if folder is not None:
        return is_of_classifier(read_adapter(folder))
    return holds_classifier(read_config(name, "Check the name and the path."))


class ClassifierModel:
    """A sequence classifier with one output, and its tokenizer.

    Padding is on the right, with the pad token of the model's configuration. A configuration without one gets the tokenizer's, and a
    tokenizer without one its eos token, as in RewardBench.

    Args:
        name: a folder, or a name on the hub.
        dtype: of the weights; `auto` is the one they were saved in.
        device: where it runs.

    Raises:
        UserError: it has several outputs, or its tokenizer has no chat template.
    """

    def __init__(self, name: str, *, dtype: torch.dtype | str = "auto", device: str = "cpu") -> None:
        self.name = name
        self.tokenizer = load_tokenizer(name)
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{name}: its tokenizer has no chat template, so there is no telling how it reads a prompt with a response. Save one "
                "(chat_template.jinja) beside its tokenizer."
            )
        self.model = _load(name, dtype).eval().to(device)
        if self.model.config.num_labels != 1:
            raise UserError(f"{name}: has {self.model.config.num_labels} outputs, and a reward model has one (num_labels=1).")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        check_tokenizer_fits(name, self.tokenizer, self.model)
        # The model looks for the last token that is not its configuration's, which may be another than its tokenizer's, and reads its
        # reward there.
        config = self.model.config.get_text_config()
        if config.pad_token_id is None or not 0 <= config.pad_token_id < num_embeddings(self.model):
            config.pad_token_id = self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.pad_token_id: int = config.pad_token_id

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        *,
        tokens_per_batch: int = 8192,
        max_length: int | None = None,
        overlong: OverlongPolicy = "error",
        where: Sequence[str] | None = None,
    ) -> list[float]:
        """The reward of each response. Batches are of like lengths.

        Args:
            prompts: one a response, text or chat messages.
            responses: what to score, texts or messages. "" is an empty turn.
            tokens_per_batch: upper bound on the tokens of a batch, padding included.
            max_length: longest prompt + response in tokens, template included; the model's own limit where None.
            overlong: `error`, `truncate_prompt` (cut on the left, as RewardBench does) or `truncate_response` (cut on the right).
            where: what a message calls each row.

        Returns:
            One number a response, in order.

        Raises:
            UserError: a row that is too long, with `overlong="error"`, or has a token without an embedding or a reward that is no number.
        """
        scored = self.score_and_cut(
            prompts, responses, tokens_per_batch=tokens_per_batch, max_length=max_length, overlong=overlong, where=where
        )
        return [reward for reward, _ in scored]

    def score_and_cut(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        *,
        tokens_per_batch: int,
        max_length: int | None,
        overlong: OverlongPolicy,
        where: Sequence[str] | None,
    ) -> list[tuple[float, bool]]:
        """As `score`, which says what the arguments are.

        Args:
            prompts: as in `score`.
            responses: likewise.
            tokens_per_batch: likewise.
            max_length: likewise.
            overlong: likewise.
            where: likewise.

        Returns:
            The reward of each response, and whether it was too long and was cut.
        """
        places = where or [f"score: row {index}" for index in range(len(prompts))]
        positions = positions_of(self.model.config)
        limit = length_limit(max_length, positions)
        ids = [self._encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        truncated = [False] * len(ids)
        for index, row in enumerate(ids):
            check_ids(num_embeddings(self.model), places[index], row)
            if limit is not None and len(row) > limit:
                truncated[index] = True
                ids[index] = _shortened(row, limit, overlong, places[index], "" if limit == positions else ", or raise --max_length")
        rewards = [0.0] * len(ids)
        # Like lengths together, the longest first, so that a batch that does not fit into memory shows at once.
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        rows = (PromptGroup(prompt_ids=np.asarray(ids[index], dtype=np.int32), responses=[NO_TEXT]) for index in order)
        waiting = iter(order)
        for parts in split_passes(rows, tokens_per_batch=tokens_per_batch, packing="none"):
            batch = list(islice(waiting, len(parts)))
            for index, reward in zip(batch, self._run([ids[index] for index in batch]), strict=True):
                if not math.isfinite(reward):
                    raise not_finite(self.model, places[index], reward)
                rewards[index] = reward
        return list(zip(rewards, truncated, strict=True))

    def score_rows(self, rows: Iterable[ResponseRow], settings: RowSettings) -> Iterator[ScoredRows]:
        """`srm.scoring.file.score_rows` for a classifier: a response is one sentence.

        Args:
            rows: taken as they are needed.
            settings: how they are scored.

        Returns:
            Rows with their scores, in order.

        Raises:
            UserError: a row that cannot be scored.
        """
        left = iter(rows)
        while window := list(islice(left, _WINDOW)):
            scored = self.score_and_cut(
                [row.prompt for row in window],
                [row.response for row in window],
                tokens_per_batch=settings.tokens_per_batch,
                max_length=settings.max_length,
                overlong=settings.overlong,
                where=[row.where for row in window],
            )
            yield [
                (row, replace(as_one_sentence(row.response, reward), truncated=truncated))
                for row, (reward, truncated) in zip(window, scored, strict=True)
            ]

    def _encode(self, prompt: Prompt, response: Response) -> list[int]:
        # The template writes the bos token itself.
        return self.tokenizer(_rendered(self.tokenizer, prompt, response), add_special_tokens=False, verbose=False)["input_ids"]

    @torch.no_grad()
    def _run(self, rows: list[list[int]]) -> list[float]:
        ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=self.pad_token_id)
        mask_BT = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        device = self.model.device
        return self.model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).logits.float()[:, 0].tolist()


def classifier_check(name: str) -> RowCheck:
    """What finds rows that the chat template of the classifier `name` refuses.

    Args:
        name: a folder, or a name on the hub.
    """
    tokenizer = load_tokenizer(name)

    def check(prompt: Prompt, responses: Sequence[Response]) -> None:
        for response in responses:
            _rendered(tokenizer, prompt, response).encode()

    return check


def _rendered(tokenizer: Any, prompt: Prompt, response: Response) -> str:
    own, answer = (prompt, response) if response == "" else own_prompt(prompt, check_response(response, "response"))
    messages = [{"role": "user", "content": own}] if isinstance(own, str) else list(own)
    settings = own.settings if isinstance(own, Conversation) else {}
    if isinstance(answer, str):
        turns = [{"role": "assistant", "content": answer}]
    else:
        # Refuses what the template leaves out.
        read_turns(_format(tokenizer), own, answer)
        turns = answer
    if is_prefilled(messages):
        *messages, begun = messages
        turns = [{**begun, **turns[0], "content": begun["content"] + turns[0]["content"]}, *turns[1:]]
    return tokenizer.apply_chat_template([*messages, *turns], tokenize=False, **settings)


@lru_cache(maxsize=4)
def _format(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer)


def _load(name: str, dtype: torch.dtype | str) -> Any:
    """The classifier at `name`; one with a LoRA adapter, as TRL saves it, merged."""
    load = AutoModelForSequenceClassification.from_pretrained
    folder = find_adapter(name)
    if folder is None:
        return load_whole(load, name, dtype=dtype)[0]
    adapter = read_adapter(folder)
    base = str(adapter.base_model_name_or_path)
    # The output layer is the adapter's own, and the model it was trained on need have none.
    saved = adapter.modules_to_save or []
    at = {} if adapter.revision is None else {"revision": adapter.revision}
    model, info = load_whole(load, base, extra_heads=True, new=saved or _OUTPUTS, dtype=dtype, num_labels=1, **at)
    if not saved and info["missing_keys"]:
        raise UserError(
            f"{name}: the adapter was saved without the output layer that gives the reward ({min(info['missing_keys'])}), and {base} has "
            "none. No program can score with it. Train it again with --lora_task_type SEQ_CLS, which saves the layer."
        )
    return merge_adapter(model, folder)


def as_one_sentence(response: Response, reward: float) -> ScoredResponse:
    """A response without sentences, as one.

    Args:
        response: text or messages, of which the sentence is the assistant's words.
        reward: the response's, which is then the sentence's.
    """
    text = words_of(response)
    sentence = ScoredSentence(text=text, start=0, end=len(text), reward=reward, weight=1.0, weighted_reward=reward)
    return ScoredResponse(reward=reward, prompt_reward=0.0, prompt_weight=0.0, sentences=(sentence,))


def _shortened(ids: list[int], limit: int, overlong: OverlongPolicy, where: str, or_raise: str) -> list[int]:
    if overlong == "truncate_prompt":
        return ids[-limit:]
    if overlong == "truncate_response":
        return ids[:limit]
    raise UserError(
        f"{where}: prompt and response are {len(ids)} tokens, the limit is {limit}. Pass --overlong truncate_prompt or "
        f"truncate_response{or_raise}."
    )
