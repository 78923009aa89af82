"""Everything that is said about models on one suite: scores, length bias, calibration, and which differences are real.

`evaluate_suite` takes rewards, wherever they come from, adds the baselines, and draws the same prompts for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from srm.evaluation.diagnostics import Calibration, LengthReport, calibration, length_report, pair_table
from srm.evaluation.intervals import Bootstrap, Interval, interval, mcnemar_exact
from srm.evaluation.score_suite import BASELINES, baseline_rewards
from srm.evaluation.sections import SuiteScores, rows_won, suite_scores
from srm.evaluation.suites import Suite

__all__ = ["ModelResult", "SuiteComparison", "SuiteReport", "evaluate_suite", "paired_difference"]


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One model or baseline on a suite of `R` rows.

    Attributes:
        scores: by the suite's rule.
        length: how its rewards go with length.
        calibration: None for baselines, whose rewards are lengths.
        won: bool [R], rows where every right response is above every wrong one.
        num_tied: rows where the best right and the best wrong response have the same reward; they are not won.
    """

    scores: SuiteScores
    length: LengthReport
    calibration: Calibration | None
    won: np.ndarray
    num_tied: int

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as JSON takes them."""
        result = {**self.scores.to_dict(), "tied_rows": self.num_tied, "length": self.length.to_dict()}
        return result if self.calibration is None else {**result, "calibration": self.calibration.to_dict()}


@dataclass(frozen=True, kw_only=True)
class SuiteComparison:
    """Two models or baselines on the same rows. Differences are first minus second.

    Attributes:
        first: a model's name.
        second: the other's.
        average: the difference of their averages, with its paired interval.
        sections: the same by section.
        only_first: rows that only the first won.
        only_second: rows that only the second won.
        p: of McNemar's exact test over rows won.
    """

    first: str
    second: str
    average: Interval
    sections: dict[str, Interval]
    only_first: int
    only_second: int
    p: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SuiteReport:
    """All models and baselines on a suite.

    Attributes:
        suite: what they were scored on.
        draws: of the bootstrap over prompts.
        seed: of the draws.
        results: by name, models first, then the baselines.
        comparisons: every two models, and every model with `longer`.
    """

    suite: Suite
    draws: int
    seed: int
    results: dict[str, ModelResult]
    comparisons: tuple[SuiteComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as JSON takes them."""
        return {
            "suite": self.suite.name,
            "rule": self.suite.rule,
            "rows": len(self.suite.rows),
            "prompts": len({row.unit for row in self.suite.rows}),
            "weights": self.suite.weights,
            "average": "mean of the sections" if self.suite.overall == "sections" else "mean over the rows",
            "ties_left_out": self.suite.num_ties,
            "interval": {"level": 0.95, "unit": "prompt", "draws": self.draws, "seed": self.seed},
            "models": {name: result.to_dict() for name, result in self.results.items()},
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
        }


def evaluate_suite(suite: Suite, rewards: Mapping[str, Sequence[Sequence[float]]], *, draws: int = 1000, seed: int = 0) -> SuiteReport:
    """Evaluate models by their rewards.

    Args:
        suite: from `read_suite`.
        rewards: by name of the model, the rewards of each row's responses.
        draws: of the bootstrap over prompts; the same draws serve all models.
        seed: of the draws.

    Returns:
        Scores, length bias and calibration of each, and the differences.

    Raises:
        ValueError: rewards that do not fit the suite, or a model that is called like a baseline.
    """
    taken = sorted(set(rewards) & set(BASELINES))
    if taken:
        raise ValueError(f"evaluate_suite: {', '.join(taken)} is the name of a baseline. Call the model something else.")
    bootstrap = Bootstrap([row.unit for row in suite.rows], draws=draws, seed=seed)
    everything = {**rewards, **{name: baseline_rewards(suite, name) for name in BASELINES}}
    results: dict[str, ModelResult] = {}
    for name, values in everything.items():
        scores = suite_scores(suite, values, bootstrap)
        pairs = pair_table(suite, values)
        results[name] = ModelResult(
            scores=scores,
            length=length_report(suite, values, pairs, draws=draws, seed=seed),
            calibration=calibration(pairs) if name in rewards else None,
            won=rows_won(suite, values),
            num_tied=_num_tied(suite, values),
        )
    pairs_of_names = [*combinations(rewards, 2), *((name, BASELINES[0]) for name in rewards)]
    comparisons = tuple(_compare(first, second, results) for first, second in pairs_of_names)
    return SuiteReport(suite=suite, draws=draws, seed=seed, results=results, comparisons=comparisons)


def paired_difference(first: SuiteScores, second: SuiteScores) -> Interval:
    """The difference of two averages, first minus second, draw by draw.

    Args:
        first: scores of one model.
        second: scores of another, from the same `Bootstrap`.
    """
    return interval(first.average - second.average)


def _compare(first: str, second: str, results: Mapping[str, ModelResult]) -> SuiteComparison:
    one, two = results[first], results[second]
    only_first, only_second, p = mcnemar_exact(one.won, two.won)
    return SuiteComparison(
        first=first,
        second=second,
        average=paired_difference(one.scores, two.scores),
        sections={name: interval(trace - two.scores.sections[name]) for name, trace in one.scores.sections.items()},
        only_first=only_first,
        only_second=only_second,
        p=p,
    )


def _num_tied(suite: Suite, rewards: Sequence[Sequence[float]]) -> int:
    return sum(max(r[: row.num_correct]) == max(r[row.num_correct :]) for row, r in zip(suite.rows, rewards, strict=True))
