"""Rows of a request to rows that the model runs, and the model's numbers to rewards with spans.

Encoding is a generator that stops between slices of little work: requests take turns, and one whose client has left ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from srm.data import EncodedResponse
from srm.data.messages import check_prompt
from srm.data.schema import RowProblem
from srm.data.settings import with_settings
from srm.data.turns import Turns, read_answers
from srm.errors import UserError
from srm.integrations.openrlhf import encode_request, encode_samples
from srm.packing import PromptGroup
from srm.packing.batch import IntArray
from srm.scoring.guards import check_ids
from srm.scoring.protocol import Reader
from srm.scoring.run import ResponseScore
from srm.scoring.text import read_off, without_sentences
from srm.scoring.token_ids import NO_TEXT, PolicyResponse, encode_ids
from srm.serving.schema import IdsRow, SlimeRequest, TextRow

__all__ = ["BadField", "encode_openrlhf", "encode_rows", "encode_slime", "reward_of"]

# Characters or ids that are encoded without a stop, unless one row has more.
_SLICE = 1 << 16
# What a row counts for beside its text: it is rendered and checked.
_ROW = 256
# Where neither the backbone nor --max_length says how long a row may be.
_LONGEST_ROW = 1 << 17

Slices = Iterator[list[PromptGroup]]
Row = TypeVar("Row")


class BadField(UserError):
    """A request that cannot be scored. field: where in its body, as in `("rows", 3, "response")`."""

    def __init__(self, field: tuple[str | int, ...], problem: str) -> None:
        super().__init__(problem)
        self.field = field


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """A row of text, ready for the tokenizer. answer: "" where there is none."""

    prompt: str
    answer: str | Turns


def _longest_row(model: Reader, max_length: int | None) -> int:
    """The most tokens of a row: what `max_length` and the backbone allow, or 131,072 where neither says."""
    return min((limit for limit in (max_length, model.config.max_positions) if limit is not None), default=_LONGEST_ROW)


def encode_rows(model: Reader, rows: Sequence[TextRow | IdsRow], *, max_length: int | None) -> Slices:
    """`rows` as prompts with one response each, in order: `EncodedResponse` of text, `PolicyResponse` of ids.

    Raises:
        BadField: a row that cannot be scored, or has more tokens than the server reads.
    """
    limit = _longest_row(model, max_length)
    prompts: dict[str, IntArray] = {}
    for part in _slices(list(enumerate(rows)), lambda row: _size(row[1])):
        ready = {index: _ready(model, row, index, limit) for index, row in part}
        for index, row in ready.items():
            if isinstance(row, _Texts):
                yield from _refuse_hopeless(model, row, index, limit)
        encoded = _encode_texts(model, ready, prompts) | _encode_ids(model, ready)
        for index, one in encoded.items():
            if one.longest > limit:
                raise _too_long(index, one.longest, limit)
            _check_ids(model, one, ("rows", index))
        yield [encoded[index] for index, _ in part]


def encode_openrlhf(
    model: Reader, request: Mapping[str, Any], *, max_length: int | None, policy_ends: Sequence[str], on_mended: Callable[[str, int], None]
) -> Slices:
    """As `encode_rows`, for the body of OpenRLHF's remote reward request. No sample is refused.

    policy_ends: as in `srm.integrations.openrlhf.answer_request`.
    on_mended: called, in the thread that encodes, with what keeps samples from being scored whole, and how many they are.

    Raises:
        BadField: lists of different lengths.
    """
    limit = _longest_row(model, max_length)
    try:
        samples = list(zip(*encode_request(request), strict=True))
    except UserError as error:
        raise BadField(("query",), str(error)) from None
    for part in _slices(samples, lambda sample: len(sample[0]) + len(sample[1])):
        queries, prompts = [query for query, _ in part], [prompt for _, prompt in part]
        rows, mended = encode_samples(model, queries, prompts, max_length=limit, policy_ends=policy_ends)
        for what, count in mended.items():
            on_mended(what, count)
        for row in rows:
            _check_ids(model, row, ("query",))
        yield rows


def encode_slime(
    model: Reader, sample: SlimeRequest, *, max_length: int | None, policy_ends: Sequence[str], on_mended: Callable[[str, int], None]
) -> Slices:
    """As `encode_openrlhf`, for the body of slime's `remote_rm`. A prompt that is text is read as it stands.

    Raises:
        BadField: messages that the model's chat template does not take.
    """
    try:
        prompt = sample.prompt if isinstance(sample.prompt, str) else model.encoder.format.render(check_prompt(sample.prompt))
    except Exception as error:
        raise BadField(("prompt",), _reason(error)) from error
    request = {"query": [prompt + sample.response], "prompts": [prompt]}
    yield from encode_openrlhf(model, request, max_length=max_length, policy_ends=policy_ends, on_mended=on_mended)


def _slices(rows: Sequence[Row], size: Callable[[Row], int]) -> Iterator[list[Row]]:
    """`rows` in slices to encode at once: none is much work, and none would be much padding."""
    part: list[Row] = []
    longest = 0
    for row in rows:
        longest = max(longest, size(row) + _ROW)
        if part and (len(part) + 1) * longest > _SLICE:
            yield part
            part, longest = [], size(row) + _ROW
        part.append(row)
    if part:
        yield part


def reward_of(row: PromptGroup, score: ResponseScore) -> dict[str, Any]:
    """`score` as the JSON that `schema.RowReward` describes."""
    response = row.responses[0]
    if isinstance(response, EncodedResponse):
        return read_off(response, score).to_dict()
    opening, ends = (response.policy_opening, (response.policy_ends + 1).tolist()) if isinstance(response, PolicyResponse) else (0, [])
    sentences = [
        {"start": start, "end": end, "reward": reward, "weight": weight, "weighted_reward": weight * reward}
        for (start, end), reward, weight in zip(pairwise([opening, *ends]), score.sentence_reward[1:], score.weight[1:], strict=True)
    ]
    return without_sentences(score).to_dict() | {"sentences": sentences}


def _size(row: TextRow | IdsRow) -> int:
    if isinstance(row, IdsRow):
        return len(row.prompt_ids) + len(row.response_ids)
    return sum(
        len(text if isinstance(text, str) else "".join(str(message.get("content")) for message in text))
        for text in (row.prompt, row.response)
    )


def _ready(model: Reader, row: TextRow | IdsRow, index: int, limit: int) -> _Texts | IdsRow:
    """`row` as far as it needs no tokenizer."""
    if isinstance(row, TextRow):
        return _read(model, row, index)
    size = model.num_embeddings
    for name, ids in (("prompt_ids", row.prompt_ids), ("response_ids", row.response_ids)):
        if ids and max(ids) >= size:
            raise BadField(("rows", index, name), f"the id {max(ids)} is unknown: the reward model has {size} ids.")
    if len(row.prompt_ids) > limit:
        raise _too_long(index, len(row.prompt_ids), limit)
    # Its text may end early; what lies this far behind is padding, or too much.
    return row.model_copy(update={"response_ids": row.response_ids[: limit + 1]})


def _read(model: Reader, row: TextRow, index: int) -> _Texts:
    form, answers = model.encoder.format, model.encoder.answers
    field = "prompt"
    try:
        prompt = with_settings(check_prompt(row.prompt), {"tools": row.tools, "chat_template_kwargs": row.chat_template_kwargs})
        if isinstance(row.response, str) and not answers.without_end(row.response).strip():
            return _Texts(prompt=form.render(prompt), answer="")
        if isinstance(row.response, list):
            form.render(prompt)
            field = "response"
        ((rendered, answer),) = read_answers(form, answers, prompt, [row.response])
        return _Texts(prompt=rendered, answer=answer)
    except Exception as error:
        # Templates are programs: they read whatever keys a message has, and stumble over odd values in ways of their own.
        raise BadField(("rows", index, field), _reason(error)) from error


def _refuse_hopeless(model: Reader, row: _Texts, index: int, limit: int) -> Slices:
    """Stops between pieces of a long text while its tokens are counted."""
    text = row.answer.text if isinstance(row.answer, Turns) else row.answer
    for least in model.encoder.floor.at_least([row.prompt, text], limit=limit):
        if least > limit:
            raise _too_long(index, least, limit)
        yield []


def _encode_texts(model: Reader, ready: Mapping[int, _Texts | IdsRow], prompts: dict[str, IntArray]) -> dict[int, PromptGroup]:
    """prompts: those of this request so far, which are not encoded again."""
    rows = {index: row for index, row in ready.items() if isinstance(row, _Texts)}
    new = [prompt for prompt in dict.fromkeys(row.prompt for row in rows.values()) if prompt not in prompts]
    prompts.update(zip(new, (np.asarray(ids, dtype=np.int32) for ids in model.encoder.encode_prompts(new)), strict=True))
    responses = _encode_responses(model, {index: row.answer for index, row in rows.items() if row.answer})
    return {index: PromptGroup(prompt_ids=prompts[row.prompt], responses=[responses.get(index, NO_TEXT)]) for index, row in rows.items()}


def _encode_responses(model: Reader, answers: Mapping[int, str | Turns]) -> dict[int, EncodedResponse]:
    try:
        return dict(zip(answers, model.encoder.encode_responses(list(answers.values())), strict=True))
    except Exception as error:
        if len(answers) > 1:
            # One by one, to find out which row it was.
            return {index: _encode_responses(model, {index: answer})[index] for index, answer in answers.items()}
        raise BadField(("rows", *answers, "response"), _reason(error)) from error


def _encode_ids(model: Reader, ready: Mapping[int, _Texts | IdsRow]) -> dict[int, PromptGroup]:
    rows = {index: row for index, row in ready.items() if isinstance(row, IdsRow)}
    if not rows:
        return {}
    encoded = encode_ids(model, [row.prompt_ids for row in rows.values()], [row.response_ids for row in rows.values()])
    return dict(zip(rows, encoded, strict=True))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError | RowProblem) else f"cannot be read: {type(error).__name__}: {error}"


def _too_long(index: int, tokens: int, limit: int) -> BadField:
    problem = f"prompt and response are {tokens} tokens or more, and this server reads at most {limit}. Shorten them."
    return BadField(("rows", index), problem)


def _check_ids(model: Reader, row: PromptGroup, field: tuple[str | int, ...]) -> None:
    try:
        check_ids(model.num_embeddings, "row", row.prompt_ids, row.responses[0].ids)
    except UserError as error:
        raise BadField(field, str(error)) from None
