"""The scores of a suite: subsets, sections, and their mean, with intervals over prompts.

`section_scores` adds up given accuracies of subsets as RewardBench does. `suite_scores` starts from rewards, and also has each section as
the plain mean over its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srm.errors import UserError
from srm.evaluation.intervals import Bootstrap, Interval, interval, mean_of_traces
from srm.evaluation.rewardbench import best_of_result, style_cells, ties_parts
from srm.evaluation.suites import TIES, Suite, SuiteRow

__all__ = ["SuiteScores", "rows_won", "section_scores", "suite_scores"]

Rewards = Sequence[Sequence[float]]
_TIES_WEIGHTS = {"tied": 0.3, "reference": 0.3, "preferred": 0.2, "hard": 0.2, "margin": 0.01}


@dataclass(frozen=True, kw_only=True)
class SuiteScores:
    """The scores of one model on a suite, as traces [1 + S] over `S` draws (see `srm.evaluation.intervals`).

    Attributes:
        average: the suite's score: the plain mean of the sections, or the mean over all rows (`Suite.overall`).
        sections: by name.
        row_sections: the same as plain means over their rows, whatever weights the suite has.
        subsets: by section and name.
        styles: RM-Bench's easy, normal, hard, each the mean of the domains.
        matrix: RM-Bench's 3 x 3 accuracies over all rows, chosen style by rejected style; None for other suites.
    """

    average: np.ndarray
    sections: dict[str, np.ndarray]
    row_sections: dict[str, np.ndarray]
    subsets: dict[tuple[str, str], np.ndarray]
    styles: dict[str, np.ndarray]
    matrix: np.ndarray | None

    @property
    def row_average(self) -> np.ndarray:
        """The plain mean of `row_sections`."""
        return mean_of_traces(list(self.row_sections.values()))

    @property
    def intervals(self) -> dict[str, Interval]:
        """The average and the sections, by name."""
        return {name: interval(trace) for name, trace in {**self.sections, "average": self.average}.items()}

    def to_dict(self) -> dict[str, Any]:
        """Intervals, without the draws."""
        result: dict[str, Any] = {"average": interval(self.average).to_dict(), "sections": _intervals(self.sections), "subsets": {}}
        result["means_over_rows"] = {"average": interval(self.row_average).to_dict(), "sections": _intervals(self.row_sections)}
        for (section, subset), trace in self.subsets.items():
            result["subsets"].setdefault(section, {})[subset] = interval(trace).to_dict()
        return result if self.matrix is None else {**result, "styles": _intervals(self.styles), "matrix": self.matrix.tolist()}


def section_scores(subset_scores: Mapping[str, Any], weights: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The weighted mean of each section's subsets; a subset without a score is left out, and so is a section without any.

    Args:
        subset_scores: numbers, or traces of the same draws.
        weights: section, subset, weight: `REWARD_BENCH_SECTIONS` or a suite's own.
    """
    sections: dict[str, Any] = {}
    for section, subsets in weights.items():
        there = [subset for subset in subsets if subset in subset_scores]
        if there:
            traces = [np.atleast_1d(np.asarray(subset_scores[subset], dtype=np.float64)) for subset in there]
            score = mean_of_traces(traces, [subsets[subset] for subset in there])
            sections[section] = score if np.ndim(subset_scores[there[0]]) else float(score[0])
    return sections


def suite_scores(suite: Suite, rewards: Rewards, bootstrap: Bootstrap) -> SuiteScores:
    """Score a suite by its rule.

    Args:
        suite: from `read_suite`.
        rewards: of each row's responses, in their order.
        bootstrap: over `[row.unit for row in suite.rows]`.

    Raises:
        ValueError: rewards that do not fit the rows.
        UserError: a reward is NaN.
    """
    _check(suite, rewards)
    matrices = np.stack([style_cells(row) for row in rewards]) if suite.rule == "styles" else None
    value_R = _results(suite, rewards) if matrices is None else matrices.mean(axis=(1, 2))
    place_R = [(row.section, row.subset) for row in suite.rows]
    subsets: dict[tuple[str, str], np.ndarray] = {}
    sections: dict[str, np.ndarray] = {}
    for section, weights in suite.weights.items():
        for subset in weights:
            is_ties = suite.rule == "best_of" and subset == TIES
            inside_R = np.array([place == (section, subset) for place in place_R])
            subsets[section, subset] = _ties(suite, rewards, bootstrap) if is_ties else bootstrap.mean(np.where(inside_R, value_R, np.nan))
        sections |= section_scores({subset: subsets[section, subset] for subset in weights}, {section: weights})
    # A form of a question of the Ties subset is won or not; elsewhere a row earns what its rule says.
    earned_R = np.where([row.subset == TIES and suite.rule == "best_of" for row in suite.rows], rows_won(suite, rewards), value_R)
    section_R = np.array([row.section for row in suite.rows])
    return SuiteScores(
        average=bootstrap.mean(earned_R) if suite.overall == "rows" else mean_of_traces(list(sections.values())),
        sections=sections,
        row_sections={name: bootstrap.mean(np.where(section_R == name, earned_R, np.nan)) for name in sections},
        subsets=subsets,
        styles={} if matrices is None else _styles(suite, matrices, bootstrap),
        matrix=None if matrices is None else matrices.mean(axis=0),
    )


def rows_won(suite: Suite, rewards: Rewards) -> np.ndarray:
    """Rows whose every right response is above every wrong one, strictly. For pairs that is accuracy.

    Args:
        suite: from `read_suite`.
        rewards: of each row's responses.

    Returns:
        bool [R].
    """
    return np.array([min(r[: row.num_correct]) > max(r[row.num_correct :]) for row, r in zip(suite.rows, rewards, strict=True)])


def _intervals(traces: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {name: interval(trace).to_dict() for name, trace in traces.items()}


def _check(suite: Suite, rewards: Rewards) -> None:
    if len(rewards) != len(suite.rows):
        raise ValueError(f"suite_scores: `rewards` has {len(rewards)} rows and the suite {len(suite.rows)}.")
    for row, values in zip(suite.rows, rewards, strict=True):
        if len(values) != len(row.responses):
            raise ValueError(f"suite_scores: row {row.id!r} has {len(row.responses)} responses, got {len(values)} rewards.")
        if np.isnan(values).any():
            raise UserError(f"row {row.id!r} has a reward that is NaN, which has no rank. Score it again in another dtype, say float32.")


def _results(suite: Suite, rewards: Rewards) -> np.ndarray:
    if suite.rule == "best_of":
        return np.array([best_of_result(row) for row in rewards])
    return rows_won(suite, rewards).astype(np.float64)


def _ties(suite: Suite, rewards: Rewards, bootstrap: Bootstrap) -> np.ndarray:
    """The published mixture of five means. The parts that compare a question's two forms stand at the row of its tied form."""
    forms: dict[str, dict[str, tuple[int, SuiteRow]]] = {"tied": {}, "ref": {}}
    for index, row in enumerate(suite.rows):
        if row.subset == TIES:
            form, number = row.id.split(":")
            forms[form][number] = (index, row)
    won_R = rows_won(suite, rewards)
    parts = {name: np.full(len(suite.rows), np.nan) for name in _TIES_WEIGHTS}
    for form, name in (("tied", "tied"), ("ref", "reference")):
        for index, _ in forms[form].values():
            parts[name][index] = won_R[index]
    for number, (index, row) in forms["tied"].items():
        if number in forms["ref"]:
            other, reference = forms["ref"][number]
            found = ties_parts((rewards[index], row.num_correct), (rewards[other], reference.num_correct))
            parts["preferred"][index], parts["hard"][index], parts["margin"][index] = found
    # A part without rows counts 0, as in the published code.
    traces = {name: np.nan_to_num(bootstrap.mean(values)) for name, values in parts.items()}
    return np.sum([_TIES_WEIGHTS[name] * trace for name, trace in traces.items()], axis=0)


def _styles(suite: Suite, matrices: np.ndarray, bootstrap: Bootstrap) -> dict[str, np.ndarray]:
    """RM-Bench's three columns: the mean of the domains, each the mean of its rows' cells of that kind."""
    cells = {"easy": np.tril(np.ones((3, 3)), -1), "normal": np.eye(3), "hard": np.triu(np.ones((3, 3)), 1)}
    section_R = np.array([row.section for row in suite.rows])
    return {
        name: mean_of_traces(
            [
                bootstrap.mean(np.where(section_R == section, (matrices * cell).sum(axis=(1, 2)) / cell.sum(), np.nan))
                for section in suite.weights
            ]
        )
        for name, cell in cells.items()
    }
