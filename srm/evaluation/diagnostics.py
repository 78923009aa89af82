"""What accuracy does not say: does the model rank by length, and does sigmoid(dR) mean what it claims?

All over pairs of a right and a wrong response to a prompt. A row with several such pairs counts as one, so each of its pairs weighs its
share. Lengths are characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from srm.data.responses import num_chars
from srm.evaluation.intervals import Bootstrap, Interval, interval
from srm.evaluation.suites import Suite

__all__ = ["Calibration", "LengthReport", "PairTable", "calibration", "length_report", "pair_table", "ranks", "spearman"]

# Edges of log2(chosen length / rejected length). The middle stratum is within ten per cent.
_CLOSE = float(np.log2(1.1))
_STRATA = {
    "less than half as long": (-np.inf, -1.0),
    "shorter": (-1.0, -_CLOSE),
    "within 10 %": (-_CLOSE, _CLOSE),
    "longer": (_CLOSE, 1.0),
    "more than twice as long": (1.0, np.inf),
}
_BINS = 10


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """Pairs of a right and a wrong response, as arrays [P].

    Attributes:
        row: int [P], the suite's row.
        difference: float [P], reward of the right one minus that of the wrong one.
        log_ratio: float [P], log2 of the right one's length over the wrong one's.
        weight: float [P], 1 over the row's number of pairs.
    """

    row: np.ndarray
    difference: np.ndarray
    log_ratio: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, kw_only=True)
class LengthReport:
    """How rewards go with length.

    Attributes:
        strata: accuracy of the pairs whose right response is so long beside the wrong one, with the number of pairs.
        balanced: the mean of two accuracies, that where the right response is the longer one and that where it is the shorter. Ranking by
            length in either direction has 50 % there.
        pearson: correlation over responses of the reward and of log length.
        spearman: correlation over responses of their ranks.
        prefers_longer: how often the longer response of a pair gets the higher reward; equal lengths are left out, equal rewards count
            half.
    """

    strata: dict[str, tuple[Interval, int]]
    balanced: Interval
    pearson: float
    spearman: float
    prefers_longer: Interval

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        strata = {name: {**accuracy.to_dict(), "pairs": count} for name, (accuracy, count) in self.strata.items()}
        return {**asdict(self), "strata": strata}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Does the model's confidence sigmoid(|dR|) match how often it is right?

    Attributes:
        bins: equal steps of confidence from 0.5 to 1 with `low`, `high`, `pairs` (weighted), mean `confidence`, and `accuracy` (ties half).
        error: the expected calibration error, the mean gap between the two over pairs (Guo et al., 2017).
        log_loss: mean of -log sigmoid(dR), the training loss; log 2 = 0.693 without any knowledge.
    """

    bins: list[dict[str, float]]
    error: float
    log_loss: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def pair_table(suite: Suite, rewards: Sequence[Sequence[float]]) -> PairTable:
    """Every right response of a row against every wrong one.

    Args:
        suite: from `read_suite`.
        rewards: of each row's responses.
    """
    columns: list[tuple[int, float, float, float]] = []
    for index, (row, values) in enumerate(zip(suite.rows, rewards, strict=True)):
        right, wrong = range(row.num_correct), range(row.num_correct, len(row.responses))
        share = 1 / (len(right) * len(wrong))
        length = [np.log2(num_chars(response)) for response in row.responses]
        columns += [(index, values[i] - values[j], length[i] - length[j], share) for i in right for j in wrong]
    index_P, difference_P, ratio_P, weight_P = (np.array(column) for column in zip(*columns, strict=True))
    return PairTable(row=index_P, difference=difference_P, log_ratio=ratio_P, weight=weight_P)


def length_report(suite: Suite, rewards: Sequence[Sequence[float]], pairs: PairTable, *, draws: int = 1000, seed: int = 0) -> LengthReport:
    """How rewards go with length.

    Args:
        suite: from `read_suite`.
        rewards: of each row's responses.
        pairs: `pair_table` of the two.
        draws: of the bootstrap over prompts.
        seed: of the draws.
    """
    bootstrap = Bootstrap([suite.rows[index].unit for index in pairs.row], draws=draws, seed=seed)
    won = (pairs.difference > 0).astype(np.float64)

    def accuracy(where: np.ndarray) -> np.ndarray:
        return bootstrap.mean(np.where(where, won, np.nan), pairs.weight)

    strata = {}
    for name, (low, high) in _STRATA.items():
        # A ratio on an edge belongs to the stratum that is nearer to equal length.
        inside = (pairs.log_ratio >= low) & (pairs.log_ratio <= high)
        if low >= 0:
            inside &= pairs.log_ratio > low
        if high <= 0:
            inside &= pairs.log_ratio < high
        strata[name] = (interval(accuracy(inside)), int(inside.sum()))
    balanced = (accuracy(pairs.log_ratio > 0) + accuracy(pairs.log_ratio < 0)) / 2
    agrees = (np.sign(pairs.difference) * np.sign(pairs.log_ratio) + 1) / 2
    reward = np.array([value for values in rewards for value in values])
    length = np.array([np.log(num_chars(response)) for row in suite.rows for response in row.responses])
    return LengthReport(
        strata=strata,
        balanced=interval(balanced),
        pearson=_correlation(reward, length),
        spearman=spearman(reward, length),
        prefers_longer=interval(bootstrap.mean(np.where(pairs.log_ratio == 0, np.nan, agrees), pairs.weight)),
    )


def calibration(pairs: PairTable) -> Calibration:
    """The reliability table of sigmoid(dR)."""
    confidence = 1 / (1 + np.exp(-np.abs(pairs.difference)))
    right = (np.sign(pairs.difference) + 1) / 2
    number = np.minimum((2 * _BINS * (confidence - 0.5)).astype(int), _BINS - 1)
    bins, error = [], 0.0
    for index in range(_BINS):
        inside = number == index
        weight = pairs.weight * inside
        if not inside.any():
            continue
        mean_confidence, accuracy = (float((weight * value).sum() / weight.sum()) for value in (confidence, right))
        error += float(weight.sum() / pairs.weight.sum()) * abs(accuracy - mean_confidence)
        edges = {"low": 0.5 + index / (2 * _BINS), "high": 0.5 + (index + 1) / (2 * _BINS)}
        bins.append({**edges, "pairs": float(weight.sum()), "confidence": mean_confidence, "accuracy": accuracy})
    log_loss = np.logaddexp(0.0, -pairs.difference)
    return Calibration(bins=bins, error=error, log_loss=float(np.average(log_loss, weights=pairs.weight)))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[inverse]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one side does not vary.

    Args:
        first: [R].
        second: [R].
    """
    return _correlation(ranks(first), ranks(second))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
