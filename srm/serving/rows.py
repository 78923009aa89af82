"""Rows of a request to rows that the model runs, and the model's numbers to rewards with spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from srm.data import EncodedResponse
from srm.data.messages import check_messages, response_text
from srm.data.schema import RowProblem
from srm.errors import UserError
from srm.integrations.openrlhf import encode_request
from srm.scoring.text import max_positions, read_off
from srm.scoring.token_ids import TokenRow, run_rows, token_rows
from srm.serving.schema import IdsRow, TextRow

if TYPE_CHECKING:
    from srm.modeling import SentenceRewardModel
    from srm.packing import PackingMode

__all__ = ["BadField", "EncodedRow", "RowScore", "encode_openrlhf", "encode_rows", "reward_of", "run_batch"]


class BadField(UserError):
    """A request that cannot be scored. field: where in its body, as in `("rows", 3, "response")`."""

    def __init__(self, field: tuple[str | int, ...], problem: str) -> None:
        super().__init__(problem)
        self.field = field


@dataclass(frozen=True, kw_only=True)
class EncodedRow:
    """row: what the model runs. response: text and spans of its sentences; None where the request had ids."""

    row: TokenRow
    response: EncodedResponse | None


@dataclass(frozen=True, kw_only=True)
class RowScore:
    """reward: of the response. sentence_rewards, weight: `[1 + sentences]`, the prompt's first."""

    reward: float
    sentence_rewards: list[float]
    weight: list[float]


def encode_rows(model: SentenceRewardModel, rows: Sequence[TextRow | IdsRow], *, max_length: int | None) -> list[EncodedRow]:
    """`rows` as token ids with boundaries.

    Raises:
        BadField: a row that cannot be scored, or has more than `max_length` tokens (the backbone's limit where None).
    """
    texts = [(index, row) for index, row in enumerate(rows) if isinstance(row, TextRow)]
    ids = [(index, row) for index, row in enumerate(rows) if isinstance(row, IdsRow)]
    encoded = {**_encode_texts(model, texts), **_encode_ids(model, ids)}
    in_order = [encoded[index] for index in range(len(rows))]
    for index, one in enumerate(in_order):
        _check_length(model, one.row, ("rows", index), max_length)
    return in_order


def encode_openrlhf(model: SentenceRewardModel, request: Mapping[str, Any], *, max_length: int | None) -> list[TokenRow]:
    """As `encode_rows`, for the body of OpenRLHF's remote reward request."""
    try:
        rows = encode_request(model, request)
    except UserError as error:
        raise BadField(("query",), str(error)) from None
    for index, row in enumerate(rows):
        _check_length(model, row, ("query", index), max_length)
    return rows


def run_batch(model: SentenceRewardModel, rows: list[TokenRow], *, tokens_per_batch: int, packing: PackingMode) -> list[RowScore]:
    """Scores of `rows`, in order."""
    scored = run_rows(model, rows, tokens_per_batch, packing)
    return [RowScore(reward=reward.item(), sentence_rewards=rewards.tolist(), weight=weight.tolist()) for reward, rewards, weight in scored]


def reward_of(encoded: EncodedRow, score: RowScore) -> dict[str, Any]:
    """`score` as the JSON that `schema.RowReward` describes."""
    prompt = {"prompt_weight": score.weight[0]}
    if encoded.response is not None:
        return read_off(encoded.response, score.reward, score.sentence_rewards, score.weight).to_dict() | prompt
    ends = [end + 1 for end in encoded.row.policy_ends]
    sentences = [
        {"start": start, "end": end, "reward": r, "weight": a, "weighted_reward": a * r}
        for (start, end), r, a in zip(pairwise([0, *ends]), score.sentence_rewards[1:], score.weight[1:], strict=True)
    ]
    return {"reward": score.reward, "prompt_reward": score.sentence_rewards[0], "sentences": sentences} | prompt


def _encode_texts(model: SentenceRewardModel, rows: Sequence[tuple[int, TextRow]]) -> dict[int, EncodedRow]:
    rendered, responses = [], []
    for index, row in rows:
        rendered.append(_render(model, row, index))
        try:
            responses.append(response_text(row.response, "response"))
        except RowProblem as problem:
            raise BadField(("rows", index, "response"), f"{problem}. A reward needs at least one sentence: drop the row.") from None
    distinct = list(dict.fromkeys(rendered))
    prompts = dict(zip(distinct, map(tuple, model.encoder.encode_prompts(distinct)), strict=True))
    return {
        index: EncodedRow(row=_text_row(prompts[text], response), response=response)
        for (index, _), text, response in zip(rows, rendered, model.encoder.encode_responses(responses), strict=True)
    }


def _text_row(prompt: tuple[int, ...], response: EncodedResponse) -> TokenRow:
    return TokenRow(prompt=prompt, ids=response.ids, model_ends=response.sentence_ends, policy_ends=response.sentence_ends)


def _render(model: SentenceRewardModel, row: TextRow, index: int) -> str:
    try:
        prompt = row.prompt if isinstance(row.prompt, str) else check_messages(row.prompt, "prompt")
        return model.encoder.format.render(prompt)
    except (RowProblem, UserError) as problem:
        raise BadField(("rows", index, "prompt"), str(problem)) from None


def _encode_ids(model: SentenceRewardModel, rows: Sequence[tuple[int, IdsRow]]) -> dict[int, EncodedRow]:
    if not rows:
        return {}
    # A backbone may have more rows of embeddings than there are tokens.
    size = len(model.encoder.tokenizer)
    for index, row in rows:
        for name, ids in (("prompt_ids", row.prompt_ids), ("response_ids", row.response_ids)):
            if ids and max(ids) >= size:
                raise BadField(("rows", index, name), f"the id {max(ids)} is unknown: the reward model has {size} ids.")
    encoded = token_rows(model, [row.prompt_ids for _, row in rows], [row.response_ids for _, row in rows])
    return {index: EncodedRow(row=row, response=None) for (index, _), row in zip(rows, encoded, strict=True)}


def _check_length(model: SentenceRewardModel, row: TokenRow, field: tuple[str | int, ...], max_length: int | None) -> None:
    limits = [limit for limit in (max_length, max_positions(model)) if limit is not None]
    length = len(row.prompt) + len(row.ids)
    if limits and length > min(limits):
        raise BadField(field, f"prompt and response are {length} tokens, and this server reads at most {min(limits)}. Shorten them.")
