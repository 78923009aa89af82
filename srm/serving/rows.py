"""Rows of a request to rows that the model runs, and the model's numbers to rewards with spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from srm.data import EncodedResponse
from srm.data.messages import check_prompt, response_text
from srm.data.schema import RowProblem
from srm.data.settings import with_settings
from srm.errors import UserError
from srm.integrations.openrlhf import encode_request
from srm.modeling import SentenceRewardModel
from srm.packing import PromptGroup
from srm.packing.backbone import num_embeddings
from srm.scoring.guards import check_ids
from srm.scoring.run import ResponseScore
from srm.scoring.text import read_off
from srm.scoring.token_ids import PolicyResponse, encode_ids
from srm.serving.schema import IdsRow, TextRow

__all__ = ["BadField", "encode_openrlhf", "encode_rows", "reward_of"]


class BadField(UserError):
    """A request that cannot be scored. field: where in its body, as in `("rows", 3, "response")`."""

    def __init__(self, field: tuple[str | int, ...], problem: str) -> None:
        super().__init__(problem)
        self.field = field


def encode_rows(model: SentenceRewardModel, rows: Sequence[TextRow | IdsRow], *, max_length: int | None) -> list[PromptGroup]:
    """`rows` as prompts with one response each: an `EncodedResponse` of text, a `PolicyResponse` of ids.

    Raises:
        BadField: a row that cannot be scored, or has more than `max_length` tokens (the backbone's limit where None).
    """
    texts = [(index, row) for index, row in enumerate(rows) if isinstance(row, TextRow)]
    ids = [(index, row) for index, row in enumerate(rows) if isinstance(row, IdsRow)]
    encoded = {**_encode_texts(model, texts), **_encode_ids(model, ids)}
    in_order = [encoded[index] for index in range(len(rows))]
    for index, one in enumerate(in_order):
        _check_length(model, one, ("rows", index), max_length)
        _check_ids(model, one, ("rows", index))
    return in_order


def encode_openrlhf(model: SentenceRewardModel, request: Mapping[str, Any], *, max_length: int | None) -> list[PromptGroup]:
    """As `encode_rows`, for the body of OpenRLHF's remote reward request."""
    try:
        rows = encode_request(model, request)
    except UserError as error:
        raise BadField(("query",), str(error)) from None
    for index, row in enumerate(rows):
        _check_length(model, row, ("query", index), max_length)
        _check_ids(model, row, ("query", index))
    return rows


def reward_of(row: PromptGroup, score: ResponseScore) -> dict[str, Any]:
    """`score` as the JSON that `schema.RowReward` describes."""
    prompt = {"prompt_weight": score.weight[0]}
    response = row.responses[0]
    if isinstance(response, EncodedResponse):
        return read_off(response, score).to_dict() | prompt
    assert isinstance(response, PolicyResponse)
    ends = (response.policy_ends + 1).tolist()
    sentences = [
        {"start": start, "end": end, "reward": reward, "weight": weight, "weighted_reward": weight * reward}
        for (start, end), reward, weight in zip(
            pairwise([response.policy_opening, *ends]), score.sentence_reward[1:], score.weight[1:], strict=True
        )
    ]
    return {"reward": score.reward, "prompt_reward": score.sentence_reward[0], "sentences": sentences} | prompt


def _encode_texts(model: SentenceRewardModel, rows: Sequence[tuple[int, TextRow]]) -> dict[int, PromptGroup]:
    rendered, responses = [], []
    for index, row in rows:
        rendered.append(_render(model, row, index))
        try:
            responses.append(response_text(row.response, "response"))
        except RowProblem as problem:
            raise BadField(("rows", index, "response"), f"{problem}. A reward needs at least one sentence: drop the row.") from None
    distinct = list(dict.fromkeys(rendered))
    prompts = dict(zip(distinct, model.encoder.encode_prompts(distinct), strict=True))
    return {
        index: PromptGroup(prompt_ids=np.asarray(prompts[text], dtype=np.int32), responses=[response])
        for (index, _), text, response in zip(rows, rendered, model.encoder.encode_responses(responses), strict=True)
    }


def _render(model: SentenceRewardModel, row: TextRow, index: int) -> str:
    try:
        prompt = check_prompt(row.prompt)
        return model.encoder.format.render(with_settings(prompt, {"tools": row.tools, "chat_template_kwargs": row.chat_template_kwargs}))
    except (RowProblem, UserError) as problem:
        raise BadField(("rows", index, "prompt"), str(problem)) from None


def _encode_ids(model: SentenceRewardModel, rows: Sequence[tuple[int, IdsRow]]) -> dict[int, PromptGroup]:
    if not rows:
        return {}
    # A backbone may have more rows of embeddings than there are tokens, or fewer.
    size = min(len(model.encoder.tokenizer), num_embeddings(model.backbone))
    for index, row in rows:
        for name, ids in (("prompt_ids", row.prompt_ids), ("response_ids", row.response_ids)):
            if ids and max(ids) >= size:
                raise BadField(("rows", index, name), f"the id {max(ids)} is unknown: the reward model has {size} ids.")
    encoded = encode_ids(model, [row.prompt_ids for _, row in rows], [row.response_ids for _, row in rows])
    return {index: group for (index, _), group in zip(rows, encoded, strict=True)}


def _check_ids(model: SentenceRewardModel, row: PromptGroup, field: tuple[str | int, ...]) -> None:
    try:
        check_ids(model.backbone, "row", row.prompt_ids, row.responses[0].ids)
    except UserError as error:
        raise BadField(field, str(error)) from None


def _check_length(model: SentenceRewardModel, row: PromptGroup, field: tuple[str | int, ...], max_length: int | None) -> None:
    limits = [limit for limit in (max_length, model.config.max_positions) if limit is not None]
    if limits and row.longest > min(limits):
        raise BadField(field, f"prompt and response are {row.longest} tokens, and this server reads at most {min(limits)}. Shorten them.")
