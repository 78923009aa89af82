"""What ProcessBench and PRMBench say of a model's step rewards, with intervals over problems, beside position and length.

Both ask whether each step is wrong, and a reward has no natural zero: a step is taken for right where its reward is above a threshold, else
for wrong. The threshold is chosen as ProcessBench chooses it for models with scores, as the best on the rows of GSM8K, and then holds for
all rows. PRMBench has no part to choose it on, so each half of the problems is judged by the best threshold of the other half. Draws of the
bootstrap keep it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srm.errors import UserError
from srm.evaluation.credit import auc
from srm.evaluation.intervals import Bootstrap, Interval, harmonic_mean, interval, mean_of_traces
from srm.evaluation.position import PlaceCredit, credit_given_position
from srm.evaluation.spans import SPAN_BASELINES, Measure
from srm.evaluation.steps import StepRow, StepSuite, open_steps, steps_of
from srm.scoring.results import ScoredResponse

__all__ = ["OVERALL", "PRM_CLASSES", "TUNING_GROUP", "WITHIN", "StepResult", "check_threshold", "evaluate_steps", "prm_score"]

# The split on which ProcessBench chooses thresholds, says its paper.
TUNING_GROUP = "gsm8k"
# PRMBench's dimensions and their classes, as in its table (`mr_visualize/eval_res_view/draw_tabs/form_latex_strs.ipynb`).
PRM_CLASSES = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
# In its solutions of this class no step is wrong, so that its score is the F1 of right steps alone.
_ALL_RIGHT = "multi_solutions"
OVERALL = {"first_error": "average F1", "every_step": "PRMScore"}
# The name of the AUC of wrong steps against the right ones of the same solution. ProcessBench has none: all its right steps come before.
WITHIN = "AUC within solutions"


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One model or baseline on a suite with steps.

    Attributes:
        scores: by name, traces [1 + S]: `OVERALL[rule]` first; ProcessBench's `<split>: wrong`, `<split>: right`, `<split>: F1`, or
            PRMBench's classes and dimensions.
        at_place: AUC among steps at the same place of other solutions.
        thresholds: above which a step is taken for right: one, or one for each half of the problems.
        num_open: steps in which no sentence of the model ends, so that they have no reward of their own; None for baselines.
    """

    scores: dict[str, np.ndarray]
    at_place: PlaceCredit
    thresholds: tuple[float, ...]
    num_open: int | None

    @property
    def intervals(self) -> dict[str, Interval]:
        """The scores, by name."""
        return {name: interval(trace) for name, trace in self.scores.items()}

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the draws."""
        scores = {name: found.to_dict() for name, found in self.intervals.items()}
        numbers = {"scores": scores, "given_position": self.at_place.to_dict(), "thresholds": list(self.thresholds)}
        return {**numbers, "steps_without_a_sentence_end": self.num_open} if self.num_open is not None else numbers


def check_threshold(suite: StepSuite, threshold: float | None) -> None:
    """Raise where there is nothing to choose a threshold on.

    Args:
        suite: from `read_steps`.
        threshold: that the user has given.

    Raises:
        UserError: ProcessBench's rows without those of GSM8K, or PRMBench's with a single problem.
    """
    if threshold is not None:
        return
    if suite.rule == "first_error" and not any(row.group == TUNING_GROUP for row in suite.rows):
        raise UserError(
            f"{suite.name}: has no rows of {TUNING_GROUP} (ids `{TUNING_GROUP}-0`), on which ProcessBench chooses the threshold. Add them, "
            "or pass --threshold."
        )
    if suite.rule == "every_step" and len({_half(row) for row in suite.rows}) < 2:
        raise UserError(f"{suite.name}: its problems do not fill two halves, to choose a threshold on one for the other. Pass --threshold.")


def evaluate_steps(
    suite: StepSuite,
    scored: Mapping[str, Sequence[ScoredResponse]],
    *,
    token_level: Collection[str] = (),
    measure: Measure = "reward",
    threshold: float | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, StepResult]:
    """The published scores of each model and of the baselines, and their credit given position.

    Args:
        suite: from `read_steps`.
        scored: by name of the model, its scores of the rows.
        token_level: names of the models that are token-level.
        measure: judge `r_i` or `w_i * r_i`.
        threshold: above which a step of a model is right; chosen as this module says where None. Baselines always choose theirs.
        draws: of the bootstrap over problems.
        seed: of the draws.

    Raises:
        UserError: a model that has no sentence rewards, or nothing to choose a threshold on.
    """
    check_threshold(suite, threshold)
    bootstrap = Bootstrap([row.unit for row in suite.rows], draws=draws, seed=seed)
    results: dict[str, StepResult] = {}
    for name, responses in scored.items():
        if all(len(response.sentences) < 2 for response in responses):
            raise UserError(f"{name}: gives one reward a response and none to sentences, so its credit cannot be measured. Leave it out.")
        steps = [steps_of(row, whole, token_level=name in token_level) for row, whole in zip(suite.rows, responses, strict=True)]
        rewards = [[float(getattr(step, measure)) for step in response.sentences] for response in steps]
        num_open = sum(open_steps(row, whole) for row, whole in zip(suite.rows, responses, strict=True))
        results[name] = _result(suite, rewards, threshold, bootstrap, num_open=num_open)
    first = [steps_of(row, whole) for row, whole in zip(suite.rows, next(iter(scored.values())), strict=True)]
    return results | {name: _result(suite, [of(whole) for whole in first], None, bootstrap) for name, of in SPAN_BASELINES.items()}


def prm_score(counts: Sequence[np.ndarray], *, all_right: bool = False) -> np.ndarray:
    """PRMBench's score: the mean of the F1 of right steps and the F1 of wrong ones. An F1 of 0/0 is 0.

    Args:
        counts: right steps taken for right, wrong ones taken for right, wrong ones taken for wrong, right ones taken for wrong.
        all_right: no step is wrong, so that only the F1 of right ones is left.

    Returns:
        One number for each of the counts; NaN where they are all 0.
    """
    true_right, false_right, true_wrong, false_wrong = counts
    missed = false_right + false_wrong
    right, wrong = (2 * true / np.maximum(2 * true + missed, 1e-300) for true in (true_right, true_wrong))
    score = right if all_right else (right + wrong) / 2
    return np.where(true_right + true_wrong + missed == 0, np.nan, score)


_Rewards = Sequence[Sequence[float]]


def _result(
    suite: StepSuite, rewards: _Rewards, threshold: float | None, bootstrap: Bootstrap, *, num_open: int | None = None
) -> StepResult:
    wrong = [row.wrong[: len(values)] for row, values in zip(suite.rows, rewards, strict=True)]
    if suite.rule == "first_error":
        thresholds, scores = _first_error_scores(suite.rows, rewards, threshold, bootstrap)
    else:
        thresholds, scores = _every_step_scores(suite.rows, rewards, wrong, threshold, bootstrap)
    at_place = credit_given_position(rewards, wrong, bootstrap)
    return StepResult(scores=scores, at_place=at_place, thresholds=thresholds, num_open=num_open)


def _first_error_scores(
    rows: Sequence[StepRow], rewards: _Rewards, threshold: float | None, bootstrap: Bootstrap
) -> tuple[tuple[float, ...], dict[str, np.ndarray]]:
    is_wrong_R, group_R = np.array([row.first_wrong >= 0 for row in rows]), np.array([row.group for row in rows])
    low_R, high_R = (np.array(ends) for ends in zip(*map(_won_between, rows, rewards), strict=True))
    if threshold is None:
        tuning_R = group_R == TUNING_GROUP
        chosen_R = tuning_R if tuning_R.any() else np.ones_like(tuning_R)
        threshold = _best_for_first_error(low_R[chosen_R], high_R[chosen_R], is_wrong_R[chosen_R])
    won_R = ((low_R <= threshold) & (threshold < high_R)).astype(np.float64)
    scores: dict[str, np.ndarray] = {}
    for group in dict.fromkeys(group_R.tolist()):
        wrong, right = (bootstrap.mean(np.where((group_R == group) & side, won_R, np.nan)) for side in (is_wrong_R, ~is_wrong_R))
        scores |= {f"{group}: wrong": wrong, f"{group}: right": right, f"{group}: F1": harmonic_mean(wrong, right)}
    average = mean_of_traces([trace for name, trace in scores.items() if name.endswith(": F1")])
    return (threshold,), {OVERALL["first_error"]: average, **scores}


def _won_between(row: StepRow, values: Sequence[float]) -> tuple[float, float]:
    """The thresholds at which the first step taken for wrong is the first wrong one, or none where none is: low <= threshold < high."""
    first = row.first_wrong
    if first < 0:
        return -np.inf, min(values, default=np.inf)
    if first >= len(values):
        # The step is behind a cut.
        return np.inf, np.inf
    return values[first], min(values[:first], default=np.inf)


def _best_for_first_error(low_R: np.ndarray, high_R: np.ndarray, is_wrong_R: np.ndarray) -> float:
    """The threshold of the highest F1, the lowest of several."""
    threshold_C = _between(np.concatenate([low_R, high_R]))
    won_CR = (low_R <= threshold_C[:, None]) & (threshold_C[:, None] < high_R)
    sides = [won_CR[:, side].mean(axis=1) for side in (is_wrong_R, ~is_wrong_R) if side.any()]
    return float(threshold_C[np.argmax(harmonic_mean(sides[0], sides[-1]))])


def _every_step_scores(
    rows: Sequence[StepRow],
    rewards: _Rewards,
    wrong: Sequence[Sequence[bool | None]],
    threshold: float | None,
    bootstrap: Bootstrap,
) -> tuple[tuple[float, ...], dict[str, np.ndarray]]:
    reward_T, is_wrong_T = (np.array([value for values in side for value in values], dtype=np.float64) for side in (rewards, wrong))
    row_T = np.repeat(np.arange(len(rows)), [len(values) for values in rewards])
    half_T = np.array([_half(row) for row in rows])[row_T]
    if threshold is not None:
        thresholds: tuple[float, ...] = (threshold,)
    elif len(set(half_T.tolist())) == 2:
        # The first judges the half 0, so it is chosen on the half 1.
        thresholds = tuple(_best_for_every_step(reward_T[half_T == other], is_wrong_T[half_T == other]) for other in (1, 0))
    else:
        thresholds = (_best_for_every_step(reward_T, is_wrong_T),)
    called_T = reward_T <= np.array(thresholds)[half_T if len(thresholds) == 2 else np.zeros_like(half_T)]
    outcomes = [(is_wrong_T == wrong) & (called_T == called) for wrong, called in ((0, False), (1, False), (1, True), (0, True))]
    counts = [np.bincount(row_T, weights=outcome, minlength=len(rows)) for outcome in outcomes]
    group_R = np.array([row.group for row in rows])

    def score(inside_R: np.ndarray, *, all_right: bool = False) -> np.ndarray:
        return prm_score([bootstrap.total(count * inside_R) for count in counts], all_right=all_right)

    classes = {group: score(group_R == group, all_right=group == _ALL_RIGHT) for group in _in_order(group_R.tolist())}
    dimensions = {
        name: mean_of_traces([classes[group] for group in groups if group in classes])
        for name, groups in PRM_CLASSES.items()
        if any(group in classes for group in groups)
    }
    within = [_auc_within(values, marks) for values, marks in zip(rewards, wrong, strict=True)]
    scores = {OVERALL["every_step"]: score(np.ones(len(rows))), **classes, **dimensions, WITHIN: bootstrap.mean(within)}
    return thresholds, scores


def _best_for_every_step(reward_T: np.ndarray, is_wrong_T: np.ndarray) -> float:
    """The threshold of the highest PRMScore, the lowest of several."""
    threshold_C = _between(reward_T)
    order_T = np.argsort(reward_T)
    below_C = np.searchsorted(reward_T[order_T], threshold_C, side="right")
    wrong_below_C = np.concatenate([[0], np.cumsum(is_wrong_T[order_T])])[below_C]
    num_wrong = is_wrong_T.sum()
    counts = (len(reward_T) - num_wrong - (below_C - wrong_below_C), num_wrong - wrong_below_C, wrong_below_C, below_C - wrong_below_C)
    return float(threshold_C[np.argmax(prm_score(counts))])


def _between(values: np.ndarray) -> np.ndarray:
    """A threshold below all finite values, between every two that follow each other, and above them all."""
    known = np.unique(values[np.isfinite(values)])
    return np.concatenate([[known[0] - 1], (known[:-1] + known[1:]) / 2, [known[-1] + 1]]) if len(known) else np.zeros(1)


def _auc_within(values: Sequence[float], wrong: Sequence[bool | None]) -> float:
    sides = [[value for value, mark in zip(values, wrong, strict=True) if mark is side] for side in (False, True)]
    return auc(*sides) if all(sides) else float("nan")


def _in_order(groups: Sequence[str]) -> list[str]:
    """PRMBench's classes in the order of its table, then others."""
    known = [group for classes in PRM_CLASSES.values() for group in classes]
    return sorted(set(groups), key=lambda group: (known.index(group) if group in known else len(known), group))


def _half(row: StepRow) -> int:
    """0 or 1, by the problem: whatever else is in the suite, a problem stays in its half."""
    return hashlib.sha256(row.unit.encode()).digest()[0] % 2
