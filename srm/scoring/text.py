"""Score responses: encode, batch by tokens, run, and read off what the head says about each sentence.

Shape letters: `N` boundaries, `B` responses.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from srm.data import EncodedComparison, EncodedResponse, OverlongPolicy
from srm.data.overlong import ResponseArrays, shorten
from srm.errors import UserError
from srm.packing import PackingMode, PromptGroup, ResponseIds, pack
from srm.scoring.results import ScoredResponse, ScoredSentence

if TYPE_CHECKING:
    from srm.data import Prompt
    from srm.modeling.model import SentenceRewardModel

__all__ = ["EncodedGroup", "encode_groups", "read_off", "score", "score_groups", "sentence_means"]


@dataclass(frozen=True, kw_only=True)
class EncodedGroup:
    """One prompt and its responses as ids, ready to be packed."""

    prompt_ids: Sequence[int]
    responses: list[EncodedResponse]


def score(
    model: SentenceRewardModel,
    prompts: Sequence[Prompt],
    responses: Sequence[str] | Sequence[Sequence[str]],
    *,
    tokens_per_batch: int,
    max_length: int | None,
    packing: PackingMode,
    show_progress: bool,
) -> list[ScoredResponse] | list[list[ScoredResponse]]:
    """See `SentenceRewardModel.score`."""
    if isinstance(prompts, str) or isinstance(responses, str):
        raise ValueError("score: `prompts` and `responses` must be lists, got a string. Write score([prompt], [response]).")
    if len(prompts) != len(responses):
        raise ValueError(
            f"score: `prompts` has {len(prompts)} entries and `responses` {len(responses)}; each prompt needs its response(s)."
        )
    nested = [not isinstance(entry, str) for entry in responses]
    if any(nested) and not all(nested):
        raise ValueError(f"score: `responses` mixes strings and lists (entry {nested.index(not nested[0])}); use one form for all.")
    groups: list[EncodedGroup] = []
    texts = [[entry] if isinstance(entry, str) else list(entry) for entry in responses]
    for row, (prompt, answers) in enumerate(zip(prompts, texts, strict=True)):
        groups += encode_groups(model, prompt, answers, where=[f"score: row {row}"] * len(answers), max_length=max_length)
    order = _frugal_order(groups, packing)
    scored = score_groups(model, [groups[i] for i in order], tokens_per_batch=tokens_per_batch, packing=packing)
    by_group = dict(zip(order, _progress(scored, total=len(groups)) if show_progress else scored, strict=True))
    flat = iter([response for i in range(len(groups)) for response in by_group[i]])
    result = [[next(flat) for _ in answers] for answers in texts]
    return result if any(nested) else [group[0] for group in result]


def encode_groups(
    model: SentenceRewardModel,
    prompt: Prompt,
    responses: Sequence[str],
    *,
    where: Sequence[str],
    max_length: int | None,
    overlong: OverlongPolicy = "error",
) -> list[EncodedGroup]:
    """Ids and boundaries of a prompt and its responses: one group, or several where the prompt had to be cut for some of them.

    Args:
        where: what a message calls each response.
        max_length: longest prompt + response in tokens; the backbone's own limit where None.
        overlong: `error`, `truncate_prompt` or `truncate_response`, as in `srm.data`. Sentences behind the cut get no reward. Each
            response is cut by itself: what it shares its prompt with must not change its score.

    Raises:
        UserError: an empty response, one that no tokens come from, or one that is too long with its prompt.
    """
    for text, place in zip(responses, where, strict=True):
        if not text.strip():
            raise UserError(f"{place}: the response is empty. A reward needs at least one sentence: drop the row.")
    prompt_ids = np.asarray(model.encoder.encode_prompt(prompt), dtype=np.int32)
    if max_length is None:
        max_length = max_positions(model)
    num_closing = 1 if model.config.boundary_token else 0
    groups: list[EncodedGroup] = []
    for whole, place in zip(model.encoder.encode_responses(list(responses)), where, strict=True):
        row = EncodedComparison(prompt_ids=prompt_ids, responses=(_arrays(whole),), pairs=(), where=place)
        cut = shorten(row, max_length=max_length, policy=overlong, num_closing=num_closing).row
        assert cut is not None, "only the policy `drop` loses rows, and scoring has no such policy"
        response = _from_arrays(cut.responses[0], whole)
        if groups and len(groups[-1].prompt_ids) == len(cut.prompt_ids):
            groups[-1].responses.append(response)
        else:
            groups.append(EncodedGroup(prompt_ids=cut.prompt_ids.tolist(), responses=[response]))
    return groups


def _arrays(response: EncodedResponse) -> ResponseArrays:
    return ResponseArrays(ids=np.asarray(response.ids, dtype=np.int32), sentence_ends=np.asarray(response.sentence_ends, dtype=np.int32))


def _from_arrays(cut: ResponseArrays, whole: EncodedResponse) -> EncodedResponse:
    spans = whole.spans[: len(cut.sentence_ends)]
    return EncodedResponse(ids=cut.ids.tolist(), sentence_ends=cut.sentence_ends.tolist(), spans=spans, text=whole.text)


def max_positions(model: SentenceRewardModel) -> int | None:
    """The longest sequence the backbone's positions reach, or None where it states none."""
    backbone_config = model.config.backbone_config
    assert backbone_config is not None, "a model cannot be built without one"
    return getattr(backbone_config.get_text_config(), "max_position_embeddings", None)


def score_groups(
    model: SentenceRewardModel, groups: Iterable[EncodedGroup], *, tokens_per_batch: int, packing: PackingMode
) -> Iterator[list[ScoredResponse]]:
    """Scores of each group's responses, in order, run in batches of at most `tokens_per_batch` tokens.

    A group with more tokens than that is run in parts; a single response with more is a batch of its own.
    """
    was_training = model.training
    model.eval()
    waiting: list[ScoredResponse] = []
    try:
        for batch in _batches(groups, tokens_per_batch, packing):
            for part, scored in zip(batch, _score_batch(model, [part.group for part in batch], packing), strict=True):
                waiting += scored
                if part.is_last:
                    yield waiting
                    waiting = []
    finally:
        model.train(was_training)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some of a group's responses, with its prompt; `is_last` where no more of them follow."""

    group: EncodedGroup
    is_last: bool


class _Cost:
    """Tokens that a batch runs, padding included, as groups join it."""

    def __init__(self, packing: PackingMode) -> None:
        self.packing = packing
        self.tokens = self.rows = self.longest = 0
        self.prompts: set[tuple[int, ...]] = set()

    def after(self, prompt: tuple[int, ...], responses: Sequence[EncodedResponse]) -> int:
        """Tokens of the batch with these responses to `prompt` added."""
        lengths = [len(response.ids) for response in responses]
        if self.packing == "none":
            return (self.rows + len(lengths)) * max(self.longest, len(prompt) + max(lengths))
        if self.packing == "packed":
            return self.tokens + sum(lengths) + len(lengths) * len(prompt)
        return self.tokens + sum(lengths) + (0 if prompt in self.prompts else len(prompt))

    def add(self, prompt: tuple[int, ...], responses: Sequence[EncodedResponse]) -> None:
        self.tokens = self.after(prompt, responses)
        self.rows += len(responses)
        self.longest = max(self.longest, len(prompt) + max(len(response.ids) for response in responses))
        self.prompts.add(prompt)


def _batches(groups: Iterable[EncodedGroup], tokens_per_batch: int, packing: PackingMode) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    cost = _Cost(packing)
    for group in groups:
        prompt = tuple(group.prompt_ids)
        start = 0
        while start < len(group.responses):
            rest = group.responses[start:]
            # A group goes into one batch where it can: what is split runs its prompt again.
            if batch and cost.after(prompt, rest) > tokens_per_batch:
                yield batch
                batch, cost = [], _Cost(packing)
            stop = start + _how_many_fit(cost, prompt, rest, tokens_per_batch)
            part = replace(group, responses=group.responses[start:stop])
            cost.add(prompt, part.responses)
            batch.append(_Part(group=part, is_last=stop == len(group.responses)))
            start = stop
    if batch:
        yield batch


def _how_many_fit(cost: _Cost, prompt: tuple[int, ...], responses: Sequence[EncodedResponse], limit: int) -> int:
    """The largest number of the first `responses` that stay within `limit`, at least one."""
    if cost.after(prompt, responses) <= limit:
        return len(responses)
    return max(1, bisect_right(range(1, len(responses)), limit, key=lambda count: cost.after(prompt, responses[:count])))


def _frugal_order(groups: Sequence[EncodedGroup], packing: PackingMode) -> list[int]:
    """The order of groups that runs the fewest tokens: equal prompts together, or, padded, like lengths together."""
    if packing == "none":
        return sorted(range(len(groups)), key=lambda i: len(groups[i].prompt_ids) + max(len(r.ids) for r in groups[i].responses))
    first: dict[tuple[int, ...], int] = {}
    return sorted(range(len(groups)), key=lambda i: first.setdefault(tuple(groups[i].prompt_ids), i))


@torch.no_grad()
def _score_batch(model: SentenceRewardModel, groups: list[EncodedGroup], packing: PackingMode) -> Iterator[list[ScoredResponse]]:
    by_token = model.config.granularity == "token"
    packed = pack(
        [
            PromptGroup(prompt_ids=group.prompt_ids, responses=[_response_ids(response, by_token=by_token) for response in group.responses])
            for group in groups
        ],
        mode=packing,
        pad_token_id=model.encoder.tokenizer.pad_token_id or 0,
    )
    output = model(packed.to(model.device))
    cu = packed.cu_boundaries.tolist()
    reward_B = output.reward.tolist()
    reward_N, weight_N = output.sentence_reward.cpu(), output.weight.cpu()
    index = 0
    for group in groups:
        scored = []
        for response in group.responses:
            rows = slice(cu[index], cu[index + 1])
            rewards, weight = reward_N[rows], weight_N[rows]
            if by_token:
                rewards, weight = sentence_means(rewards, weight, response.sentence_ends)
            scored.append(read_off(response, reward_B[index], rewards.tolist(), weight.tolist()))
            index += 1
        yield scored


def _response_ids(response: EncodedResponse, *, by_token: bool) -> ResponseIds:
    ends = range(len(response.ids)) if by_token else response.sentence_ends
    return ResponseIds(ids=response.ids, sentence_ends=ends)


def sentence_means(value: Tensor, weight: Tensor, sentence_ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A token-level model's values [1 + tokens], as sentence means and each sentence's share of the tokens, index 0 kept."""
    lengths = torch.tensor([1, sentence_ends[0] + 1, *(b - a for a, b in pairwise(sentence_ends))])
    segment = torch.repeat_interleave(lengths)
    total = value.new_zeros(len(lengths)).scatter_add(0, segment, value)
    share = weight.new_zeros(len(lengths)).scatter_add(0, segment, weight)
    return total / lengths, share


def read_off(response: EncodedResponse, reward: float, rewards: list[float], weight: list[float]) -> ScoredResponse:
    """The score of `response` from what the head says: `rewards` and `weight` [1 + n], index 0 the prompt's."""
    sentences = tuple(
        ScoredSentence(
            text=response.text[span.start : span.end],
            start=span.start,
            end=span.end,
            reward=r,
            weight=a,
            weighted_reward=a * r,
        )
        for span, r, a in zip(response.spans, rewards[1:], weight[1:], strict=True)
    )
    return ScoredResponse(reward=reward, prompt_reward=rewards[0], sentences=sentences)


def _progress(scored: Iterable[list[ScoredResponse]], total: int) -> Iterable[list[ScoredResponse]]:
    from rich.console import Console
    from rich.progress import track

    return track(scored, description="Scoring", total=total, console=Console(stderr=True))
