"""ProcessBench's and PRMBench's scores, by hand.

Both were also compared with the benchmarks' own code, on random rewards: `main` of ProcessBench's `code/run_eval_prm_rlhflow.py` from the
predictions on, and `evaluate_function` of PRMBench's `mr_eval/tasks/prmtest_classified/task.py` with `get_prmscore_from_current_res_dict`
of its tables, on the 6,211 rows of its repository. They agree to the last digits.
"""

from __future__ import annotations

import numpy as np
import pytest

from srm.errors import UserError
from srm.evaluation.step_scores import StepResult, _half, check_threshold, evaluate_steps, prm_score
from srm.evaluation.steps import StepRow, StepSuite
from srm.scoring.results import ScoredResponse, ScoredSentence


def solution(name: str, num: int, label: int, *, problem: str | None = None) -> StepRow:
    """A row of ProcessBench, whose steps are "Step 0.", "Step 1." and so on."""
    wrong = tuple(None if -1 < label < index else index == label for index in range(num))
    steps = tuple(f"Step {index}." for index in range(num))
    return StepRow(id=name, prompt=name, steps=steps, wrong=wrong, group=name.split("-")[0], unit=problem or name)


def judged(name: str, group: str, *wrong: bool, problem: str | None = None) -> StepRow:
    """A row of PRMBench."""
    steps = tuple(f"Step {index}." for index in range(len(wrong)))
    return StepRow(id=name, prompt=name, steps=steps, wrong=wrong, group=group, unit=problem or name)


def scored(row: StepRow, *rewards: float) -> ScoredResponse:
    """One sentence a step."""
    texts = [f"{step}\n\n" for step in row.steps[: len(rewards)]]
    parts = tuple(
        ScoredSentence(text=text, start=start, end=start + len(text), reward=reward, weight=0.5, weighted_reward=-reward)
        for text, start, reward in zip(texts, row.starts, rewards, strict=False)
    )
    return ScoredResponse(reward=0.0, prompt_reward=0.0, prompt_weight=1.0, sentences=parts)


def estimates(result: StepResult) -> dict[str, float]:
    return {name: found.estimate for name, found in result.intervals.items()}


def process_bench(*scored_rows: tuple[StepRow, tuple[float, ...]]) -> tuple[StepSuite, list[ScoredResponse]]:
    suite = StepSuite(name="s", rule="first_error", rows=tuple(row for row, _ in scored_rows))
    return suite, [scored(row, *rewards) for row, rewards in scored_rows]


# Thresholds that find each: from -1, and below 1; below 0.5; from -2; and for math from -0.2, and below 0.3; below -0.4.
ROWS = (
    (solution("gsm8k-0", 3, 1), (1.0, -1.0, -5.0)),
    (solution("gsm8k-1", 2, -1), (0.5, 2.0)),
    (solution("gsm8k-2", 2, 0), (-2.0, 1.0)),
    (solution("math-0", 2, 1), (0.3, -0.2)),
    (solution("math-1", 2, -1), (0.1, -0.4)),
)


def test_process_bench_by_hand() -> None:
    """On gsm8k all three are found from -1, and below 0.5: -0.25 is the middle of the two, and lies below math's -0.2.

    So math finds nothing: its wrong step is above the threshold, and in its right solution -0.4 is not.
    """
    suite, model = process_bench(*ROWS)
    result = evaluate_steps(suite, {"m": model}, draws=20)["m"]
    assert result.thresholds == (-0.25,)
    assert estimates(result) == {
        "average F1": 0.5,
        "gsm8k: wrong": 1.0,
        "gsm8k: right": 1.0,
        "gsm8k: F1": 1.0,
        "math: wrong": 0.0,
        "math: right": 0.0,
        "math: F1": 0.0,
    }
    assert result.num_open == 0


def test_a_given_threshold() -> None:
    """At 0.2: gsm8k-0 and gsm8k-2 are found, gsm8k-1 has none below; math-0 is found, and math-1's 0.1 is below."""
    suite, model = process_bench(*ROWS)
    result = evaluate_steps(suite, {"m": model}, threshold=0.2, draws=5)["m"]
    assert result.thresholds == (0.2,)
    found = estimates(result)
    assert (found["math: wrong"], found["math: right"], found["math: F1"], found["average F1"]) == (1.0, 0.0, 0.0, 0.5)


def test_the_first_step_taken_for_wrong_must_be_the_wrong_one() -> None:
    """Step 0 is at 0, and so taken for wrong as well, so that step 1 is not the first; and a wrong step behind a cut is never found."""
    rows = (
        (solution("gsm8k-0", 2, 1), (0.0, -2.0)),
        (solution("gsm8k-1", 3, 2), (1.0, 1.0)),
        (solution("gsm8k-2", 2, 0), (-1.0, 3.0)),
        (solution("gsm8k-3", 1, -1), (1.0,)),
    )
    suite, model = process_bench(*rows)
    found = estimates(evaluate_steps(suite, {"m": model}, threshold=0.0, draws=5)["m"])
    assert found["gsm8k: wrong"] == pytest.approx(1 / 3)
    assert found["gsm8k: right"] == 1.0
    assert found["gsm8k: F1"] == pytest.approx(2 * (1 / 3) / (4 / 3))


def test_position_is_a_baseline_of_process_bench_and_says_nothing_given_position() -> None:
    """Each wrong step is the second of two: "last is bad" finds them all, and calls the right solutions wrong."""
    rows = [(solution(f"gsm8k-{i}", 2, 1 if i < 3 else -1), (0.0, -1.0 if i < 3 else 1.0)) for i in range(6)]
    suite, model = process_bench(*rows)
    results = evaluate_steps(suite, {"m": model}, draws=50)
    assert list(results) == ["m", "first is bad", "last is bad", "shortest is bad", "longest is bad"]
    assert estimates(results["m"])["average F1"] == 1.0
    last = results["last is bad"]
    assert (estimates(last)["gsm8k: wrong"] + estimates(last)["gsm8k: right"], estimates(last)["average F1"]) == (1.0, 0.0)
    assert (results["m"].at_place.auc.estimate, last.at_place.auc.estimate) == (1.0, 0.5)
    assert (results["m"].at_place.verdict, last.at_place.verdict) == ("above", "open")


def test_intervals_are_over_problems() -> None:
    """Three solutions of one problem, all found, are drawn together; of two problems drawn k and l times, 3k of 3k + l are found."""
    rows = [(solution(f"gsm8k-{i}", 2, 1, problem="a" if i < 3 else "b"), (0.0, -1.0 if i < 3 else 1.0)) for i in range(4)]
    suite, model = process_bench(*rows, (solution("gsm8k-9", 1, -1), (0.0,)))
    trace = evaluate_steps(suite, {"m": model}, threshold=-0.5, draws=200)["m"].scores["gsm8k: wrong"]
    assert set(trace[~np.isnan(trace)].round(9).tolist()) == {0.0, 0.6, 0.75, round(6 / 7, 9), 1.0}


def test_prm_score_by_hand() -> None:
    """Four right steps, three of them taken for right; two wrong, one of them found. F1 6/8 and 2/4."""
    counts = [np.array(float(count)) for count in (3, 1, 1, 1)]
    assert prm_score(counts) == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert prm_score(counts, all_right=True) == pytest.approx(6 / 8)
    assert prm_score([np.zeros(1), np.zeros(1), np.zeros(1), np.array([2.0])]) == [0.0]
    assert np.isnan(prm_score([np.zeros(1)] * 4)).all()


def test_prm_bench_by_hand() -> None:
    """At 0: circular has right 1, -1 and wrong -1, 1; deception right 1, wrong -2; multi_solutions right 1, 2, -3."""
    rows = [
        judged("a", "circular", False, False, True, True),
        judged("b", "deception", False, True),
        judged("c", "multi_solutions", False, False, False),
    ]
    model = [scored(rows[0], 1.0, -1.0, -1.0, 1.0), scored(rows[1], 1.0, -2.0), scored(rows[2], 1.0, 2.0, -3.0)]
    suite = StepSuite(name="s", rule="every_step", rows=tuple(rows))
    found = estimates(evaluate_steps(suite, {"m": model}, threshold=0.0, draws=20)["m"])
    # Of six right steps four are taken for right, of three wrong ones two are found.
    assert found["PRMScore"] == pytest.approx((8 / (8 + 1 + 2) + 4 / (4 + 1 + 2)) / 2)
    assert found["circular"] == pytest.approx(0.5)
    assert found["deception"] == 1.0
    # No step of this class is wrong: the F1 of right ones alone, 4/5.
    assert found["multi_solutions"] == pytest.approx(4 / 5)
    assert (found["simplicity"], found["sensitivity"]) == (pytest.approx(0.5), pytest.approx((1 + 4 / 5) / 2))
    assert "soundness" not in found
    # Within circular: -1 beats 1 and ties with -1, 1 ties with 1 and loses to -1; deception is right.
    assert found["AUC within solutions"] == pytest.approx(((1 + 0.5 + 0.5 + 0) / 4 + 1) / 2)


def test_each_half_of_prm_bench_is_judged_by_the_other() -> None:
    """One half's wrong steps are all below -1, the other's all below 9: each is judged by a threshold that was chosen without it."""
    rows = [judged(f"row {i}", "circular", False, True, problem=f"problem {i}") for i in range(12)]
    probe = StepSuite(name="s", rule="every_step", rows=tuple(rows))
    halves = [_half(row) for row in probe.rows]
    assert set(halves) == {0, 1}
    model = [scored(row, *((0.0, -2.0) if half == 0 else (10.0, 8.0))) for row, half in zip(rows, halves, strict=True)]
    result = evaluate_steps(probe, {"m": model}, draws=5)["m"]
    # The half 0 is judged by 9, so that all its steps are called wrong; the half 1 by -1, so that none is.
    assert result.thresholds == (9.0, -1.0)
    zero, one = halves.count(0), halves.count(1)
    expected = prm_score([np.array(float(count)) for count in (one, one, zero, zero)])
    assert estimates(result)["PRMScore"] == pytest.approx(float(expected))


def test_weighted_rewards_may_be_judged() -> None:
    suite, model = process_bench(*ROWS)
    result = evaluate_steps(suite, {"m": model}, measure="weighted_reward", threshold=-0.9, draws=5)["m"]
    # In these scores the weighted reward has the other sign: gsm8k-0 has -1 first, which is not its wrong step.
    assert estimates(result)["gsm8k: wrong"] == 0.0


@pytest.mark.parametrize(
    ("rows", "rule", "message"),
    [
        ([solution("math-0", 2, 1)], "first_error", "s: has no rows of gsm8k"),
        ([judged("a", "circular", True, False)], "every_step", "its problems do not fill two halves"),
    ],
)
def test_nothing_to_choose_a_threshold_on(rows: list[StepRow], rule: str, message: str) -> None:
    suite = StepSuite(name="s", rule=rule, rows=tuple(rows))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        check_threshold(suite, None)
    check_threshold(suite, 0.0)
    # Baselines choose theirs on all rows then.
    assert len(evaluate_steps(suite, {"m": [scored(row, 0.0, 1.0) for row in rows]}, threshold=0.0, draws=5)) == 5


def test_a_model_without_sentences_is_refused() -> None:
    suite, _ = process_bench(*ROWS)
    with pytest.raises(UserError, match="plain: gives one reward a response and none to sentences"):
        evaluate_steps(suite, {"plain": [scored(row, 1.0) for row in suite.rows]})
