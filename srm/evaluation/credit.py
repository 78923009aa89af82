"""Do low sentence rewards point at the bad sentences? Measured against known bad sentences.

A response with a known truth is a `JudgedResponse`. Credit is right where its bad sentences have lower rewards than its good ones:
an AUC of 1 says always, 0.5 is chance, and below that the credit is inverted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from srm.scoring.results import ScoredResponse

__all__ = ["CreditReport", "CreditSummary", "JudgedResponse", "auc", "credit_report", "judge", "lowest_is_bad"]


@dataclass(frozen=True, kw_only=True)
class JudgedResponse:
    """A response's sentences with the truth about them.

    Attributes:
        rewards: one a sentence.
        kinds: what is wrong with the sentence, None where nothing is.
    """

    rewards: tuple[float, ...]
    kinds: tuple[str | None, ...]

    def __post_init__(self) -> None:
        if len(self.rewards) != len(self.kinds):
            raise ValueError(
                f"JudgedResponse: `rewards` has {len(self.rewards)} sentences and `kinds` {len(self.kinds)}; give one of each."
            )

    @property
    def bad(self) -> list[float]:
        return [reward for reward, kind in zip(self.rewards, self.kinds, strict=True) if kind is not None]

    @property
    def good(self) -> list[float]:
        return [reward for reward, kind in zip(self.rewards, self.kinds, strict=True) if kind is None]


@dataclass(frozen=True, kw_only=True)
class CreditSummary:
    """How well low rewards find the bad sentences of responses that have good and bad ones.

    Attributes:
        num_responses: those responses.
        num_bad: their bad sentences.
        auc: chance that a bad sentence has a lower reward than a good one of the same response, ties half, averaged over responses.
        pooled_auc: the same with the sentences of all responses in one pot, which also asks for rewards on one scale.
        hit_rate: share of responses whose lowest sentence is bad; of tied sentences each counts its part.
        chance_hit_rate: what guessing would reach, the average share of bad sentences.
    """

    num_responses: int
    num_bad: int
    auc: float
    pooled_auc: float
    hit_rate: float
    chance_hit_rate: float


@dataclass(frozen=True, kw_only=True)
class CreditReport:
    """Credit of the sentences of many responses.

    Attributes:
        overall: all bad sentences.
        by_kind: each kind against the good sentences.
        several: responses with more than one bad sentence; None where there are none.
    """

    overall: CreditSummary
    by_kind: dict[str, CreditSummary]
    several: CreditSummary | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a draw from `positive` exceeds one from `negative`, ties half (the Mann-Whitney U over its maximum).

    Args:
        positive: at least one number.
        negative: at least one number.

    Raises:
        ValueError: either is empty, or a value is NaN.
    """
    if not len(positive) or not len(negative):
        raise ValueError(f"auc: both sides need values, got {len(positive)} positive and {len(negative)} negative.")
    high, low = np.asarray(positive, dtype=np.float64), np.sort(np.asarray(negative, dtype=np.float64))
    if np.isnan(high).any() or np.isnan(low).any():
        raise ValueError("auc: a value is NaN, which has no rank.")
    below, not_above = np.searchsorted(low, high, side="left"), np.searchsorted(low, high, side="right")
    return float((below + not_above).mean() / 2 / len(low))


def judge(
    scored: ScoredResponse, bad_spans: Iterable[Mapping[str, Any]], *, measure: Literal["reward", "weighted_reward"] = "reward"
) -> JudgedResponse:
    """Sentences of `scored` with the truth about them: a sentence is bad where it shares a printing character with a bad span.

    Args:
        scored: a response with its sentence rewards.
        bad_spans: `{"start", "end", "kind"}` each, characters of the response, as in the `damaged` column of generated pairs; a
            sentence that meets several takes the kind of the first.
        measure: judge `r_i` or `w_i * r_i`.
    """
    spans = list(bad_spans)
    kinds: list[str | None] = []
    for sentence in scored.sentences:
        end = sentence.start + len(sentence.text.rstrip())
        meets = (span["kind"] for span in spans if sentence.start < span["end"] and span["start"] < end)
        kinds.append(next(meets, None))
    return JudgedResponse(rewards=tuple(getattr(sentence, measure) for sentence in scored.sentences), kinds=tuple(kinds))


def credit_report(judged: Iterable[JudgedResponse]) -> CreditReport:
    """Credit over all responses, by kind of damage, and over those with several bad sentences.

    Responses without a good or without a bad sentence have nothing to compare and are left out.

    Raises:
        ValueError: no response is left.
    """
    usable = [response for response in judged if response.bad and response.good]
    if not usable:
        raise ValueError("credit_report: no response has both a good and a bad sentence, so there is nothing to compare.")
    kinds = sorted({kind for response in usable for kind in response.kinds if kind is not None})
    several = [response for response in usable if len(response.bad) > 1]
    return CreditReport(
        overall=_summary(usable),
        by_kind={kind: _summary([_only(response, kind) for response in usable if kind in response.kinds]) for kind in kinds},
        several=_summary(several) if several else None,
    )


def _only(response: JudgedResponse, kind: str) -> JudgedResponse:
    """The response without the sentences that are bad in another way."""
    kept = [(reward, own) for reward, own in zip(response.rewards, response.kinds, strict=True) if own in (None, kind)]
    return JudgedResponse(rewards=tuple(reward for reward, _ in kept), kinds=tuple(own for _, own in kept))


def _summary(responses: list[JudgedResponse]) -> CreditSummary:
    bad = [reward for response in responses for reward in response.bad]
    good = [reward for response in responses for reward in response.good]
    return CreditSummary(
        num_responses=len(responses),
        num_bad=len(bad),
        # The good ones are the positive side: they should have the higher reward.
        auc=float(np.mean([auc(response.good, response.bad) for response in responses])),
        pooled_auc=auc(good, bad),
        hit_rate=float(np.mean([lowest_is_bad(response) for response in responses])),
        chance_hit_rate=float(np.mean([len(response.bad) / len(response.rewards) for response in responses])),
    )


def lowest_is_bad(response: JudgedResponse) -> float:
    """1 where the sentence with the lowest reward is bad; of tied sentences each counts its part."""
    lowest = min(response.rewards)
    tied = [kind is not None for reward, kind in zip(response.rewards, response.kinds, strict=True) if reward == lowest]
    return sum(tied) / len(tied)
