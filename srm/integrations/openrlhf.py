"""OpenRLHF: the answer to its remote reward request, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srm.errors import UserError
from srm.modeling import SentenceRewardModel
from srm.packing import PromptGroup
from srm.scoring.guards import require_finite
from srm.scoring.run import score_all
from srm.scoring.token_ids import NO_TEXT

__all__ = ["answer_request", "answer_rows", "encode_request"]


def answer_request(model: SentenceRewardModel, request: Mapping[str, Any], *, tokens_per_batch: int = 8192) -> dict[str, Any]:
    """Rewards for OpenRLHF's `{"query": [...], "prompts": [...], "labels": [...]}`.

    The prompt is read as it stands, in the policy's template; the response without the end-of-turn token behind it, as in training. A
    policy may end its turn at once: a response without text gets what its prompt alone gets, as in `score_tokens`. Samples with one prompt
    share a pass over it.

    Args:
        model: the reward model.
        request: `query`: prompt and response as one text, the policy's template and end token included. `prompts`: the prompts within, in
            the same order. `labels` is not asked.
        tokens_per_batch: bound on the tokens of one forward pass.

    Returns:
        `{"rewards": [...], "scores": [...], "extra_logs": {"num_sentences": [...]}}`: a number a sample, in order.

    Raises:
        UserError: a field that is missing or of another type, lists of different lengths, or a query that does not begin with its prompt.
    """
    rows = encode_request(model, request)
    scored = score_all(model, rows, tokens_per_batch=tokens_per_batch, packing=None)
    require_finite(model, [score for (score,) in scored], [f"request: query {index}" for index in range(len(rows))])
    return answer_rows(rows, [score.reward for (score,) in scored])


def encode_request(model: SentenceRewardModel, request: Mapping[str, Any]) -> list[PromptGroup]:
    """The samples of a request as prompts with one response each.

    Args:
        model: the reward model, for its tokenizer.
        request: as in `answer_request`.

    Raises:
        UserError: as `answer_request`.
    """
    queries, prompts = _texts(request, "query"), _texts(request, "prompts")
    if len(queries) != len(prompts):
        raise UserError(f"request: `query` has {len(queries)} entries and `prompts` {len(prompts)}; each query needs its prompt.")
    for index, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
        if not query.startswith(prompt):
            raise UserError(f"request: query {index} does not begin with its prompt. Send both with the same template.")
    answers = model.encoder.answers
    pairs = zip(queries, prompts, strict=True)
    parted = [answers.split_header_text(prompt, query.removeprefix(prompt)) for query, prompt in pairs]
    prompts, responses = [prompt for prompt, _ in parted], [answers.up_to_end(answer) for _, answer in parted]
    encoded = iter(model.encoder.encode_responses([response for response in responses if response.strip()]))
    distinct = list(dict.fromkeys(prompts))
    ids = dict(zip(distinct, (np.array(ids, dtype=np.int32) for ids in model.encoder.encode_prompts(distinct)), strict=True))
    return [
        PromptGroup(prompt_ids=ids[prompt], responses=[next(encoded) if response.strip() else NO_TEXT])
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def answer_rows(rows: Sequence[PromptGroup], rewards: Sequence[float]) -> dict[str, Any]:
    """The answer to a request.

    Args:
        rows: what `encode_request` made of it.
        rewards: one a row.

    Returns:
        As `answer_request`.
    """
    num_sentences = [len(row.responses[0].sentence_ends) for row in rows]
    return {"rewards": list(rewards), "scores": list(rewards), "extra_logs": {"num_sentences": num_sentences}}


def _texts(request: Mapping[str, Any], name: str) -> list[str]:
    value = request.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise UserError(f"request: `{name}` must be a list of strings, got {type(value).__name__}.")
    return value
