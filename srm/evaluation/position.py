"""Credit given position: are bad sentences found among sentences at the same place, where their place says nothing?

A place is a sentence's number in a response of so many sentences, such as the third of five. A bad sentence is compared with the good ones
at its place in other responses, each as its distance from the mean reward of its own response. So whatever depends on the place alone, and
whatever is said of a response as a whole, gets exactly 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srm.evaluation.intervals import Bootstrap, Interval, interval

__all__ = ["PlaceCredit", "credit_given_position"]


@dataclass(frozen=True, kw_only=True)
class PlaceCredit:
    """Credit given position of one model or baseline.

    Attributes:
        auc: chance that a bad sentence has a lower centred reward than a good one at its place, averaged over bad sentences, ties half.
        num_bad: bad sentences.
        num_compared: those of them that have a good sentence at their place.
        trace: of `auc`, for paired differences.
    """

    auc: Interval
    num_bad: int
    num_compared: int
    trace: np.ndarray

    @property
    def verdict(self) -> str:
        """Where the interval is: `above` 0.5, `below` it, or `open`, which is on both sides of it."""
        if self.auc.low > 0.5:
            return "above"
        return "below" if self.auc.high < 0.5 else "open"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.auc.to_dict(), "verdict": self.verdict, "bad_sentences": self.num_bad, "compared": self.num_compared}


def credit_given_position(
    rewards: Sequence[Sequence[float]], bad: Sequence[Sequence[bool | None]], bootstrap: Bootstrap, *, at_random: bool = False
) -> PlaceCredit:
    """Credit among sentences at the same place.

    Args:
        rewards: of each row's sentences.
        bad: which of them are bad; None where nobody knows.
        bootstrap: over the rows' prompts.
        at_random: what random rewards get on average, in place of what `rewards` get.
    """
    bad_at, good_at = _by_place(rewards, bad)
    num_bad = sum(len(found) for found in bad_at.values())
    places = [place for place in bad_at if place in good_at]
    won_S, weight_S = np.zeros(bootstrap.num_draws + 1), np.zeros(bootstrap.num_draws + 1)
    for place in places:
        bad_B, good_G = (np.array([value for _, value in side[place]]) for side in (bad_at, good_at))
        count_SB, count_SG = (bootstrap.counts([row for row, _ in side[place]]) for side in (bad_at, good_at))
        lower_BG = (bad_B[:, None] < good_G) + 0.5 * (bad_B[:, None] == good_G)
        if at_random:
            lower_BG = np.full_like(lower_BG, 0.5)
        num_good_S = count_SG.sum(axis=1)
        # A draw without a good sentence here has nothing to compare its bad ones with.
        there_S = num_good_S > 0
        won_S += ((count_SG @ lower_BG.T) * count_SB).sum(axis=1) / np.where(there_S, num_good_S, 1.0)
        weight_S += np.where(there_S, count_SB.sum(axis=1), 0.0)
    with np.errstate(invalid="ignore"):
        trace = won_S / weight_S
    return PlaceCredit(auc=interval(trace), num_bad=num_bad, num_compared=sum(len(bad_at[place]) for place in places), trace=trace)


_Found = dict[tuple[int, int], list[tuple[int, float]]]


def _by_place(rewards: Sequence[Sequence[float]], bad: Sequence[Sequence[bool | None]]) -> tuple[_Found, _Found]:
    """Bad and good sentences, each a row's number and a centred reward, by how many sentences the response has and which this is."""
    bad_at: _Found = {}
    good_at: _Found = {}
    for row, (values, marks) in enumerate(zip(rewards, bad, strict=True)):
        mean = float(np.mean(values)) if len(values) else 0.0
        for index, (value, mark) in enumerate(zip(values, marks, strict=True)):
            if mark is not None:
                (bad_at if mark else good_at).setdefault((len(values), index), []).append((row, value - mean))
    return bad_at, good_at
