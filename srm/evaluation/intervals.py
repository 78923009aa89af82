"""Intervals by resampling prompts, differences between models on the same resamples, and McNemar's exact test.

Pairs that share a prompt rise and fall together, so whole prompts are drawn, never pairs: Cameron, Gelbach and Miller (2008), "cluster
bootstrap". Every statistic here is a weighted mean over rows, or made of such means, and is computed for all draws at once. A *trace* holds
it: index 0 is the statistic of the data themselves, the rest those of the draws. Traces of one `Bootstrap` add and subtract draw by draw,
which is what makes differences paired.

`R` rows, `G` prompts (or other units that are drawn whole), `S` draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["Bootstrap", "Interval", "harmonic_mean", "interval", "mcnemar_exact", "mean_of_traces"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its 95 % percentile interval over draws. All NaN where no row carries the statistic.

    Attributes:
        estimate: the number on all rows.
        low: the lower end.
        high: the upper end.
    """

    estimate: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """As JSON."""
        return asdict(self)


class Bootstrap:
    """Draws of whole prompts with replacement, the same for every statistic that is asked of them.

    Args:
        units: for each row what it is drawn with, its prompt as a rule.
        draws: `S`, how many.
        seed: of the draws.

    Raises:
        ValueError: no rows, or fewer than one draw.
    """

    def __init__(self, units: Sequence[Hashable], *, draws: int = 1000, seed: int = 0) -> None:
        if not units or draws < 1:
            raise ValueError(f"Bootstrap: needs rows and at least 1 draw, got {len(units)} rows and draws={draws}.")
        number: dict[Hashable, int] = {}
        self._unit_R = np.array([number.setdefault(unit, len(number)) for unit in units])
        self.num_units = len(number)
        self.num_draws = draws
        generator = np.random.default_rng(seed)
        drawn = generator.multinomial(self.num_units, np.full(self.num_units, 1 / self.num_units), size=draws)
        self._count_SG = np.concatenate([np.ones((1, self.num_units)), drawn])

    def mean(self, values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
        """The weighted mean of a number a row. Rows that are NaN are no part of it; a draw without any other is NaN.

        Args:
            values: [R].
            weights: [R]; all alike where None.

        Returns:
            Its trace [1 + S]: on all rows, then on each draw.
        """
        value_R = np.asarray(values, dtype=np.float64)
        if value_R.shape != self._unit_R.shape:
            raise ValueError(f"Bootstrap.mean: expected {len(self._unit_R)} values, one a row, got shape {value_R.shape}.")
        there = ~np.isnan(value_R)
        weight_R = np.where(there, 1.0 if weights is None else np.asarray(weights, dtype=np.float64), 0.0)
        total_G = np.bincount(self._unit_R, weights=weight_R * np.where(there, value_R, 0.0), minlength=self.num_units)
        weight_G = np.bincount(self._unit_R, weights=weight_R, minlength=self.num_units)
        with np.errstate(invalid="ignore"):
            return (self._count_SG @ total_G) / (self._count_SG @ weight_G)

    def total(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """The sum of a number a row.

        Args:
            values: [R].

        Returns:
            Its trace [1 + S].
        """
        return self._count_SG @ np.bincount(self._unit_R, weights=np.asarray(values, dtype=np.float64), minlength=self.num_units)

    def counts(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """How often each of some rows is drawn.

        Args:
            rows: [K], numbers of rows, each as often as one likes.

        Returns:
            [1 + S, K]; the first line, of the data themselves, is 1.
        """
        return self._count_SG[:, self._unit_R[np.asarray(rows, dtype=np.int64)]]


def harmonic_mean(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of two traces, draw by draw; 0 where both are 0.

    Args:
        first: [1 + S].
        second: [1 + S].
    """
    total = first + second
    return 2 * first * second / np.where(total == 0, 1.0, total)


def mean_of_traces(traces: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """The weighted mean of traces, draw by draw. A trace that is NaN in a draw, for want of rows, is left out of that draw.

    Args:
        traces: [1 + S] each.
        weights: one a trace; all alike where None.
    """
    trace_KS = np.stack(traces)
    weight_K1 = np.ones((len(traces), 1)) if weights is None else np.asarray(weights, dtype=np.float64)[:, None]
    there = ~np.isnan(trace_KS)
    with np.errstate(invalid="ignore"):
        return (np.where(there, trace_KS, 0.0) * weight_K1).sum(axis=0) / (there * weight_K1).sum(axis=0)


def interval(trace: np.ndarray) -> Interval:
    """The statistic of the data and the 2.5th and 97.5th percentile over the draws."""
    drawn = trace[1:][~np.isnan(trace[1:])]
    if np.isnan(trace[0]) or not len(drawn):
        return Interval(estimate=float(trace[0]), low=math.nan, high=math.nan)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(estimate=float(trace[0]), low=float(low), high=float(high))


def mcnemar_exact(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test of two models on the same rows.

    Args:
        first: [R], rows that the first got right.
        second: [R], rows that the second got right.

    Returns:
        Rows that only the first got right, rows that only the second got right, and the two-sided p: how likely a fair coin splits
        their sum as unevenly. It takes rows for independent, which those that share a prompt are not; the interval of the difference
        does not.
    """
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if one.shape != two.shape:
        raise ValueError(f"mcnemar_exact: both models need the same rows, got {one.shape} and {two.shape}.")
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    total, fewer = only_first + only_second, min(only_first, only_second)
    # Logarithms, because 2 ** -2739 is zero in floating point.
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2) for k in range(fewer + 1)]
    tail = math.fsum(math.exp(value) for value in logs)
    return only_first, only_second, min(1.0, 2 * tail)
