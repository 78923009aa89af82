"""Score responses from text: encode, run, and put rewards on the sentences' characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import numpy as np

from srm.data import EncodedResponse, OverlongPolicy, Prompt, Response
from srm.data.messages import check_prompt, is_message_list
from srm.data.overlong import cut_group, refuse_hopeless
from srm.data.schema import RowProblem
from srm.data.turns import Turns
from srm.errors import UserError, check_choice
from srm.packing import PackingMode, PromptGroup
from srm.packing.batch import IntArray
from srm.scoring.guards import check_ids, require_finite
from srm.scoring.protocol import Reader, RewardModel
from srm.scoring.results import ScoredResponse, ScoredSentence
from srm.scoring.run import ResponseScore, score_all

__all__ = ["OVERLONG", "encode_groups", "read_off", "read_off_group", "score"]

OVERLONG = ("error", "truncate_prompt", "truncate_response")
"""What may become of a response that is too long: every one has to have a score, so that none is dropped."""


def score(
    model: RewardModel,
    prompts: Sequence[Prompt],
    responses: Sequence[Response] | Sequence[Sequence[Response]],
    *,
    tokens_per_batch: int,
    max_length: int | None,
    overlong: OverlongPolicy,
    packing: PackingMode | None,
    show_progress: bool,
) -> list[ScoredResponse] | list[list[ScoredResponse]]:
    """See `SentenceRewardModel.score`."""
    if isinstance(prompts, str) or isinstance(responses, str):
        raise ValueError("score: `prompts` and `responses` must be lists, got a string. Write score([prompt], [response]).")
    check_choice("score: `overlong`", overlong, OVERLONG)
    if len(prompts) != len(responses):
        raise ValueError(
            f"score: `prompts` has {len(prompts)} entries and `responses` {len(responses)}; each prompt needs its response(s)."
        )
    nested = [isinstance(entry, (list, tuple, np.ndarray)) and not is_message_list(entry) for entry in responses]
    if any(nested) and not all(nested):
        raise ValueError(f"score: `responses` mixes strings and lists (entry {nested.index(not nested[0])}); use one form for all.")
    groups: list[PromptGroup] = []
    places: list[list[str]] = []
    texts: list[list[Any]] = [list(entry) if is_nested else [entry] for entry, is_nested in zip(responses, nested, strict=True)]
    for row, (prompt, answers) in enumerate(zip(prompts, texts, strict=True)):
        try:
            checked = _checked(prompt, answers)
        except RowProblem as problem:
            raise UserError(f"score: row {row}: {problem}. {problem.fix}.") from None
        where = [f"score: row {row}" if len(answers) == 1 else f"score: row {row}, response {number}" for number in range(len(answers))]
        encoded = encode_groups(model, checked, answers, where=where, max_length=max_length, overlong=overlong)
        groups += encoded
        named = iter(where)
        places += [list(islice(named, len(group.responses))) for group in encoded]
    scored = score_all(model, groups, tokens_per_batch=tokens_per_batch, packing=packing, show_progress=show_progress)
    for scores, place in zip(scored, places, strict=True):
        require_finite(model, scores, place)
    flat = iter([one for group, scores in zip(groups, scored, strict=True) for one in read_off_group(group, scores)])
    result = [[next(flat) for _ in answers] for answers in texts]
    return result if any(nested) else [group[0] for group in result]


def encode_groups(
    model: Reader,
    prompt: Prompt,
    responses: Sequence[Response],
    *,
    where: Sequence[str],
    max_length: int | None,
    overlong: OverlongPolicy = "error",
) -> list[PromptGroup]:
    """Ids and boundaries of a prompt and its responses: one group, or several where some answer more than the prompt or had it cut.

    Args:
        model: the reward model, or the half of one that reads.
        prompt: text or chat messages, as `srm.data.messages.check_prompt` returns them; no message where each response brings its own.
        responses: what answers it, texts or messages.
        where: what a message calls each response.
        max_length: longest prompt + response in tokens; never more than the backbone's own limit.
        overlong: `error`, `truncate_prompt` or `truncate_response`, as in `srm.data`. Sentences behind the cut get no reward. Each
            response is cut by itself: what it shares its prompt with must not change its score.

    Returns:
        Groups of `EncodedResponse`, the responses in order.

    Raises:
        UserError: an empty response, one that no tokens come from or that has tokens the model does not know, or one that is too long with
            its prompt.
    """
    read = list(_read(model, prompt, responses, where))
    positions = model.config.max_positions
    for (rendered, answer), place in zip(read, where, strict=True):
        text = answer.text if isinstance(answer, Turns) else answer
        refuse_hopeless(model.encoder.floor, rendered, text, max_length=max_length, positions=positions, policy=overlong, where=place)
    rendered_once = list(dict.fromkeys(rendered for rendered, _ in read))
    ids_of = zip(rendered_once, model.encoder.encode_prompts(rendered_once), strict=True)
    prompt_ids = {rendered: np.asarray(ids, dtype=np.int32) for rendered, ids in ids_of}
    num_closing = len(model.encoder.boundary_ids)
    cut: list[tuple[IntArray, list[EncodedResponse]]] = []
    encoded = model.encoder.encode_responses([answer for _, answer in read])
    for (rendered, _), whole, place in zip(read, encoded, where, strict=True):
        uncut = PromptGroup(prompt_ids=prompt_ids[rendered], responses=[whole])
        group = cut_group(uncut, max_length=max_length, positions=positions, policy=overlong, num_closing=num_closing, where=place)
        check_ids(model.num_embeddings, place, group.prompt_ids, *(response.ids for response in group.responses))
        if not cut or not np.array_equal(cut[-1][0], group.prompt_ids):
            cut.append((group.prompt_ids, []))
        response = cast(EncodedResponse, group.responses[0])
        # `cut_group` gives back the very group where nothing is too long.
        cut[-1][1].append(response if group is uncut else replace(response, truncated=True))
    return [PromptGroup(prompt_ids=ids, responses=responses) for ids, responses in cut]


def _checked(prompt: Prompt, responses: Sequence[Response]) -> Prompt:
    """`prompt`, which may hold no message where each response opens with those that it answers."""
    if isinstance(prompt, list) and not prompt and responses and all(map(is_message_list, responses)):
        return prompt
    return check_prompt(prompt)


def _read(model: Reader, prompt: Prompt, responses: Sequence[Response], where: Sequence[str]) -> Iterator[tuple[str, str | Turns]]:
    reading = model.encoder.read_each(prompt, responses)
    for place in where:
        try:
            yield next(reading)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None


def read_off_group(group: PromptGroup, scores: Sequence[ResponseScore]) -> list[ScoredResponse]:
    """`read_off` of each response of a group.

    Args:
        group: from `encode_groups`.
        scores: one a response.
    """
    return [read_off(cast(EncodedResponse, response), score) for response, score in zip(group.responses, scores, strict=True)]


def read_off(response: EncodedResponse, score: ResponseScore) -> ScoredResponse:
    """The score of a response with its sentences' text.

    Args:
        response: from `encode_groups`.
        score: what the head says about it.
    """
    sentences = tuple(
        ScoredSentence(
            text=response.text[span.start : span.end],
            start=span.start,
            end=span.end,
            reward=reward,
            weight=weight,
            weighted_reward=weight * reward,
        )
        for span, reward, weight in zip(response.spans, score.sentence_reward[1:], score.weight[1:], strict=True)
    )
    return replace(without_sentences(score), sentences=sentences, truncated=response.truncated)


def without_sentences(score: ResponseScore) -> ScoredResponse:
    """The score of a response, without what it says of each sentence.

    Args:
        score: what the head says about it.
    """
    return ScoredResponse(reward=score.reward, prompt_reward=score.sentence_reward[0], prompt_weight=score.weight[0], sentences=())
