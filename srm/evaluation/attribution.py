"""Sentence rewards from a reward model's response reward alone: it reads the response with sentences cut out.

`leave_one_out` takes what the reward loses without a sentence, `shapley` the sentence's Shapley value, as in SCAR (arXiv 2505.20417). The
sentences are the players of a game. A set of them is worth the reward of the response that holds these sentences and no others. Sets are
bit masks, bit `i` for sentence `i`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, permutations
from random import Random
from typing import Literal, cast

import numpy as np

from srm.data import EncodedResponse, ResponseRow
from srm.data.boundary import RowCheck
from srm.data.overlong import cut_group
from srm.data.schema import Prompt, Response, RowProblem
from srm.errors import UserError
from srm.evaluation.classifier import ClassifierModel
from srm.packing import PromptGroup, ResponseIds
from srm.scoring.file import RowSettings, ScoredRows
from srm.scoring.guards import check_ids, require_finite
from srm.scoring.protocol import RewardModel
from srm.scoring.results import ScoredResponse, ScoredSentence
from srm.scoring.run import score_groups
from srm.scoring.text import encode_groups
from srm.segmentation import Span, make_segmenter

__all__ = ["EXACT", "Attribution", "AttributionModel", "one_text_check", "rewards_of_sentences", "without"]

Attribution = Literal["leave_one_out", "shapley"]
# Up to so many sentences a Shapley value is exact: all sets of them are scored.
EXACT = 6
# Texts that a classifier sorts by length together.
_WINDOW = 512


@dataclass(frozen=True)
class _Game:
    """A response, its sentences, and the sets of them that are scored, all of them first."""

    row: ResponseRow
    text: str
    spans: Sequence[Span]
    masks: Sequence[int]
    truncated: bool = False

    def others(self) -> list[str]:
        """The texts of all sets but the first."""
        return [without(self.text, self.spans, mask) for mask in self.masks[1:]]


class AttributionModel:
    """A reward model whose response reward is attributed to sentences.

    The response's reward is the model's own. What no sentence earns is the result's `prompt_reward`: the reward of the prompt alone, and of
    `leave_one_out` all that does not come from one sentence by itself.

    Args:
        model: a reward model of any granularity, whose sentences are those it reads itself; or a classifier, with `punkt` sentences.
        method: `leave_one_out` or `shapley`.
        num_permutations: orders that sentences join in, for Shapley values of more than `EXACT` sentences.
    """

    def __init__(self, model: RewardModel | ClassifierModel, method: Attribution, *, num_permutations: int = 16) -> None:
        self.model = model
        self.method = method
        self.num_permutations = num_permutations
        self._segmenter = make_segmenter()

    def score_rows(self, rows: Iterable[ResponseRow], settings: RowSettings) -> Iterator[ScoredRows]:
        """Score rows, in order.

        Args:
            rows: taken as they are needed. All texts that come of a row are one group, which runs its prompt once where packing is
                `shared`.
            settings: how they are scored.

        Returns:
            Rows with their scores.

        Raises:
            UserError: a row that cannot be scored, such as a response of several messages.
        """
        if isinstance(self.model, ClassifierModel):
            played = self._by_classifier(self.model, rows, settings)
        else:
            played = self._by_model(self.model, rows, settings)
        for game, rewards in played:
            yield [(game.row, self._read_off(game, rewards))]

    def _by_model(self, model: RewardModel, rows: Iterable[ResponseRow], settings: RowSettings) -> Iterator[tuple[_Game, Sequence[float]]]:
        waiting: deque[_Game] = deque()

        def groups() -> Iterator[PromptGroup]:
            for row in rows:
                _check_is_text(row.response, row.where)
                [whole] = encode_groups(
                    model, row.prompt, [row.response], where=[row.where], max_length=settings.max_length, overlong=settings.overlong
                )
                response = cast(EncodedResponse, whole.responses[0])
                game = replace(self._game(row, response.text, response.spans), truncated=response.truncated)
                waiting.append(game)
                yield _with_others(model, whole, game, settings)

        for scores in score_groups(model, groups(), tokens_per_batch=settings.tokens_per_batch, packing=settings.packing):
            game = waiting.popleft()
            require_finite(model, scores, [game.row.where] * len(scores))
            yield game, [score.reward for score in scores]

    def _by_classifier(
        self, model: ClassifierModel, rows: Iterable[ResponseRow], settings: RowSettings
    ) -> Iterator[tuple[_Game, Sequence[float]]]:
        for games in _windows(self._games(rows)):
            texts = [[game.text, *game.others()] for game in games]
            every = [(game, text) for game, some in zip(games, texts, strict=True) for text in some]
            scored = iter(
                model.score_and_cut(
                    [game.row.prompt for game, _ in every],
                    [text for _, text in every],
                    tokens_per_batch=settings.tokens_per_batch,
                    max_length=settings.max_length,
                    overlong=settings.overlong,
                    where=[game.row.where for game, _ in every],
                )
            )
            for game, some in zip(games, texts, strict=True):
                rewards, truncated = zip(*islice(scored, len(some)), strict=True)
                # The first text is the whole response.
                yield replace(game, truncated=truncated[0]), rewards

    def _games(self, rows: Iterable[ResponseRow]) -> Iterator[_Game]:
        for row in rows:
            text = _check_is_text(row.response, row.where)
            yield self._game(row, text, self._segmenter.segment(text))

    def _game(self, row: ResponseRow, text: str, spans: Sequence[Span]) -> _Game:
        return _Game(row, text, spans, _masks(self.method, len(spans), self.num_permutations))

    def _read_off(self, game: _Game, rewards: Sequence[float]) -> ScoredResponse:
        worth = dict(zip(game.masks, rewards, strict=True))
        earned = rewards_of_sentences(self.method, worth, len(game.spans), self.num_permutations)
        sentences = tuple(
            ScoredSentence(text=game.text[start:end], start=start, end=end, reward=reward, weight=1.0, weighted_reward=reward)
            for (start, end), reward in zip(game.spans, earned, strict=True)
        )
        rest = rewards[0] - math.fsum(earned)
        return ScoredResponse(reward=rewards[0], prompt_reward=rest, prompt_weight=1.0, sentences=sentences, truncated=game.truncated)


def rewards_of_sentences(method: Attribution, worth: Mapping[int, float], num: int, num_permutations: int = 16) -> list[float]:
    """The rewards of a response's sentences, from what sets of them are worth.

    Args:
        method: `leave_one_out` or `shapley`.
        worth: the reward by set.
        num: how many sentences there are.
        num_permutations: of `shapley`, see `AttributionModel`.

    Returns:
        One reward a sentence. Shapley values sum to the reward of all less that of none, however many orders there are.
    """
    everyone = (1 << num) - 1
    if method == "leave_one_out":
        return [worth[everyone] - worth[everyone ^ (1 << sentence)] for sentence in range(num)]
    gains: list[list[float]] = [[] for _ in range(num)]
    for order in _orders(num, num_permutations):
        before = 0
        for sentence in order:
            after = before | (1 << sentence)
            gains[sentence].append(worth[after] - worth[before])
            before = after
    return [math.fsum(gain) / len(gain) for gain in gains]


def without(text: str, spans: Sequence[Span], mask: int) -> str:
    """`text` with only the sentences of a set; the others go with the blank behind them.

    What opens a text and belongs to no sentence stays. Where the last sentence goes, so does the blank before it, and the text ends as it
    did, so that no text ends in a blank of its own.

    Args:
        text: a response.
        spans: its sentences, without gaps.
        mask: the set.

    Returns:
        The text, "" where nothing is left.
    """
    kept = text[: spans[0].start] + "".join(text[start:end] for sentence, (start, end) in enumerate(spans) if mask >> sentence & 1)
    if not kept.strip():
        return ""
    if mask >> (len(spans) - 1) & 1:
        return kept
    whole = text[: spans[-1].end]
    return kept.rstrip() + whole[len(whole.rstrip()) :]


def one_text_check(check: RowCheck) -> RowCheck:
    """`check`, which refuses responses of several messages, too: there are no sentences to cut out of them.

    Args:
        check: of the model that is asked for its reward.
    """

    def checked(prompt: Prompt, responses: Sequence[Response]) -> None:
        for response in responses:
            if not isinstance(response, str):
                raise RowProblem(_NO_TEXT)
        check(prompt, responses)

    return checked


_NO_TEXT = "sentences are cut out of a text, and the response is several messages"


def _check_is_text(response: Response, where: str) -> str:
    if not isinstance(response, str):
        raise UserError(f"{where}: {_NO_TEXT}. Leave such rows out, or score them with the model itself.")
    return response


def _with_others(model: RewardModel, whole: PromptGroup, game: _Game, settings: RowSettings) -> PromptGroup:
    """The group of the whole response, as it was cut where it was too long, joined by those of the other sets."""
    texts = game.others()
    written = iter(model.encoder.encode_responses([answer for _, answer in model.encoder.read_each(game.row.prompt, filter(None, texts))]))
    # A response without tokens has the prompt's own boundary and no other.
    others = [next(written) if text else ResponseIds(ids=_NOTHING, sentence_ends=_NOTHING) for text in texts]
    group = cut_group(
        replace(whole, responses=[*whole.responses, *others]),
        max_length=settings.max_length,
        positions=model.config.max_positions,
        policy=settings.overlong,
        num_closing=len(model.encoder.boundary_ids),
        where=game.row.where,
    )
    check_ids(model.num_embeddings, game.row.where, *(response.ids for response in group.responses))
    return group


_NOTHING = np.zeros(0, dtype=np.int32)


def _windows(games: Iterator[_Game]) -> Iterator[list[_Game]]:
    window: list[_Game] = []
    for game in games:
        window.append(game)
        if sum(len(each.masks) for each in window) >= _WINDOW:
            yield window
            window = []
    if window:
        yield window


@lru_cache(maxsize=256)
def _masks(method: Attribution, num: int, num_permutations: int) -> tuple[int, ...]:
    """The sets that are scored, each once, all sentences first."""
    everyone = (1 << num) - 1
    if method == "leave_one_out":
        return (everyone, *(everyone ^ (1 << sentence) for sentence in range(num)))
    masks = {everyone: None}
    for order in _orders(num, num_permutations):
        mask = 0
        for sentence in order:
            masks.setdefault(mask)
            mask |= 1 << sentence
    return tuple(masks)


@lru_cache(maxsize=256)
def _orders(num: int, num_permutations: int) -> tuple[tuple[int, ...], ...]:
    """Orders in which sentences join: all of them, or drawn, each followed by its reverse, the same for all responses of that length."""
    if num <= EXACT:
        return tuple(permutations(range(num)))
    random = Random(num)
    orders: list[tuple[int, ...]] = []
    while len(orders) < num_permutations:
        order = list(range(num))
        random.shuffle(order)
        orders += [tuple(order), tuple(reversed(order))]
    return tuple(orders[:num_permutations])
