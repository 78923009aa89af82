"""Scores of suites against numbers worked out by hand from what the benchmarks published."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from srm.evaluation.intervals import Bootstrap
from srm.evaluation.rewardbench import REWARD_BENCH_SECTIONS, best_of_result, style_cells, ties_parts
from srm.evaluation.sections import rows_won, section_scores, suite_scores
from srm.evaluation.suites import Rule, Suite, SuiteRow


def row(id: str, *, subset: str = "s", section: str = "S", num_correct: int = 1, count: int = 2, unit: str | None = None) -> SuiteRow:
    return SuiteRow(
        id=id,
        prompt=f"prompt {id}",
        responses=tuple(f"response {i}" for i in range(count)),
        num_correct=num_correct,
        section=section,
        subset=subset,
        unit=unit or id,
    )


def scores(rule: Rule, rows: Sequence[SuiteRow], rewards: Sequence[Sequence[float]], weights: dict[str, dict[str, float]]):
    suite = Suite(name="suite", rule=rule, rows=tuple(rows), weights=weights)
    return suite_scores(suite, rewards, Bootstrap([r.unit for r in rows], draws=20))


def test_published_counts() -> None:
    """The numbers of pairs in the sections of RewardBench, and math-prm's 447 pairs standing for as many as six subsets of code have."""
    assert {section: sum(subsets.values()) for section, subsets in REWARD_BENCH_SECTIONS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1968,
    }
    assert REWARD_BENCH_SECTIONS["Reasoning"]["math-prm"] == 6 * 164
    assert sum(map(len, REWARD_BENCH_SECTIONS.values())) == 23
    assert 358 + 456 + 740 + 1968 - 984 + 447 == 2985, "the pairs of the filtered split"


def test_section_scores_from_published_counts() -> None:
    subsets = {name: 0.0 for group in REWARD_BENCH_SECTIONS.values() for name in group}
    subsets |= {"alpacaeval-easy": 1.0, "mt-bench-med": 0.5, "mt-bench-hard": 1.0, "llmbar-adver-GPTOut": 1.0}
    subsets |= {"xstest-should-respond": 1.0, "donotanswer": 0.5, "math-prm": 0.5, "hep-cpp": 1.0, "hep-rust": 0.25}
    found = section_scores(subsets, REWARD_BENCH_SECTIONS)
    assert found == pytest.approx(
        {
            "Chat": (100 + 0.5 * 40) / 358,
            "Chat Hard": (37 + 47) / 456,
            "Safety": (250 + 0.5 * 136) / 740,
            "Reasoning": (0.5 * 984 + 164 + 0.25 * 164) / 1968,
        }
    )


def test_missing_subsets_are_left_out_as_in_the_published_code() -> None:
    assert section_scores({"hep-go": 0.5, "math-prm": 1.0}, REWARD_BENCH_SECTIONS) == pytest.approx(
        {"Reasoning": (0.5 * 164 + 984) / (164 + 984)}
    )


def test_a_tie_is_not_won() -> None:
    rows = [row("a"), row("b"), row("c", subset="t"), row("d", subset="u", section="T")]
    found = scores("pairs", rows, [(2, 1), (1, 1), (1, 2), (3, 2)], {"S": {"s": 2, "t": 6}, "T": {"u": 1}})
    assert {name: trace[0] for name, trace in found.subsets.items()} == {("S", "s"): 0.5, ("S", "t"): 0.0, ("T", "u"): 1.0}
    assert found.sections["S"][0] == pytest.approx((2 * 0.5 + 6 * 0.0) / 8)
    assert found.average[0] == pytest.approx((0.125 + 1) / 2)
    assert found.to_dict()["average"]["estimate"] == pytest.approx(0.5625)


def test_sections_as_means_over_rows() -> None:
    """Section S wins 1 of 2 rows of weight 2 and none of one row of weight 6: 1/8 by weight, 1/3 by row."""
    rows = [row("a"), row("b"), row("c", subset="t"), row("d", subset="u", section="T")]
    found = scores("pairs", rows, [(2, 1), (1, 1), (1, 2), (3, 2)], {"S": {"s": 2, "t": 6}, "T": {"u": 1}})
    assert {name: trace[0] for name, trace in found.row_sections.items()} == {"S": pytest.approx(1 / 3), "T": 1.0}
    assert found.row_average[0] == pytest.approx((1 / 3 + 1) / 2)
    assert found.average[0] == pytest.approx((1 / 8 + 1) / 2)
    assert found.to_dict()["means_over_rows"]["sections"]["S"]["estimate"] == pytest.approx(1 / 3)


def test_rewardbench_over_rows_has_math_prm_at_its_own_size() -> None:
    """Of Reasoning's rows two are of math-prm, both won, and one of hep-go is lost: 984 to 164 by the published weights, 2 to 1 by row."""
    rows = [row(f"m{i}", subset="math-prm", section="Reasoning") for i in range(2)] + [row("g", subset="hep-go", section="Reasoning")]
    found = scores("pairs", rows, [(2, 1), (2, 1), (1, 2)], {"Reasoning": {"math-prm": 984, "hep-go": 164}})
    assert found.sections["Reasoning"][0] == pytest.approx(984 / (984 + 164))
    assert found.row_sections["Reasoning"][0] == pytest.approx(2 / 3)


def test_rows_of_the_other_rules() -> None:
    """A row of RM-Bench is the share of its nine cells, one of RewardBench 2 what it earns; a form of the Ties subset is won or not."""
    styles = scores("styles", [row("a", num_correct=3, count=6)], [(2, 2, 0, 1, 1, 1)], {"S": {"s": 1}})
    assert styles.row_sections["S"][0] == pytest.approx(6 / 9)
    rows = [
        row("x", subset="Math", section="Math", count=4),
        row("tied:1", subset="Ties", section="Ties", num_correct=2, count=3, unit="q"),
        row("ref:1", subset="Ties", section="Ties", count=2, unit="q"),
    ]
    # Two share the highest reward; the tied form's second right answer is below the wrong one; the reference form is won.
    found = scores("best_of", rows, [(1, 1, 0, 0), (3, 1, 2), (1, 0)], {"Math": {"Math": 1}, "Ties": {"Ties": 2}})
    assert {name: trace[0] for name, trace in found.row_sections.items()} == {"Math": 0.5, "Ties": 0.5}


def test_a_suite_may_count_each_row_once() -> None:
    rows = [row("a"), row("b"), row("c", subset="u", section="T")]
    suite = Suite(name="s", rule="pairs", rows=tuple(rows), weights={"S": {"s": 2}, "T": {"u": 1}}, overall="rows")
    found = suite_scores(suite, [(2, 1), (1, 2), (2, 1)], Bootstrap([r.unit for r in rows], draws=20))
    assert found.average[0] == pytest.approx(2 / 3)


def test_a_subset_of_two_sections_is_two() -> None:
    rows = [row("a", section="S"), row("b", section="T")]
    found = scores("pairs", rows, [(2, 1), (1, 2)], {"S": {"s": 1}, "T": {"s": 1}})
    assert {name: trace[0] for name, trace in found.sections.items()} == {"S": 1.0, "T": 0.0}
    assert found.to_dict()["subsets"]["T"]["s"]["estimate"] == 0.0


@pytest.mark.parametrize(
    ("rewards", "result"), [((3, 2, 1, 0), 1), ((2, 3, 1, 0), 0), ((3, 3, 1, 0), 1 / 2), ((3, 3, 3, 3), 1 / 4), ((2, 3, 3, 1), 0)]
)
def test_best_of_four(rewards: tuple[float, ...], result: float) -> None:
    assert best_of_result(rewards) == result


def test_ties_parts() -> None:
    """Tied form: right 5 and 4, wrong 1: spread 1, gap 3. Reference: right 4, wrong 3.5: gap 0.5. Smaller gap 0.5."""
    assert ties_parts(((5, 4, 1, 0), 2), ((4, 3.5, 2), 1)) == (1.0, 0.0, pytest.approx(math.tanh(0.5 / 1 - 1)))
    assert ties_parts(((5, 4, 1, 0), 2), ((4, 2, 2), 1)) == (1.0, 1.0, pytest.approx(math.tanh(2 / 1 - 1)))
    assert ties_parts(((5, 1, 2, 0), 2), ((4, 2, 2), 1)) == (0.0, 0.0, pytest.approx(math.tanh(-1 / 4 - 1)))
    # No spread: any gap above 0 is infinitely many times as large, one below 0 too, and 0/0 is 0.
    assert ties_parts(((5, 5, 1), 2), ((4, 2), 1)) == (1.0, 1.0, 1.0)
    assert ties_parts(((5, 5, 6), 2), ((4, 2), 1)) == (0.0, 0.0, -1.0)
    assert ties_parts(((5, 5, 5), 2), ((4, 2), 1)) == (0.0, 0.0, 0.0)


def test_ties_subset_and_average_of_rewardbench2() -> None:
    rows = [
        row("1", subset="Math", section="Math", count=4),
        row("2", subset="Math", section="Math", count=4),
        row("ref:0", subset="Ties", section="Ties", count=2, unit="Ties 0"),
        row("tied:0", subset="Ties", section="Ties", num_correct=2, count=3, unit="Ties 0"),
        row("ref:1", subset="Ties", section="Ties", count=2, unit="Ties 1"),
        row("tied:1", subset="Ties", section="Ties", num_correct=2, count=3, unit="Ties 1"),
    ]
    rewards = [(3, 1, 1, 1), (2, 2, 1, 0), (4, 3.5), (5, 4, 1), (1, 2), (3, 2, 1.5)]
    found = scores("best_of", rows, rewards, {"Math": {"Math": 2}, "Ties": {"Ties": 4}})
    # Tied forms won: both. References won: the first. Preferred: gap 3 > spread 1, and 0.5 < 1. Hard: 0.5 < 1, and -1 < 1.
    margin = (math.tanh(0.5 - 1) + math.tanh(-1 - 1)) / 2
    ties = 0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * margin
    assert found.subsets["Ties", "Ties"][0] == pytest.approx(ties)
    assert found.subsets["Math", "Math"][0] == pytest.approx((1 + 0.5) / 2)
    assert found.average[0] == pytest.approx((0.75 + ties) / 2)


def test_style_cells() -> None:
    """Right 1, 2, 3 against wrong 2, 0, 2: row i, column j says right i > wrong j."""
    assert style_cells((1, 2, 3, 2, 0, 2)).tolist() == [[0, 1, 0], [0, 1, 0], [1, 1, 1]]


def test_rm_bench_columns() -> None:
    """Chat: the matrix above has easy (0 + 1 + 1) / 3, normal (0 + 1 + 1) / 3, hard (1 + 0 + 0) / 3. Math: all lost."""
    rows = [
        row("a", subset="chat", section="chat", num_correct=3, count=6),
        row("b", subset="math", section="math", num_correct=3, count=6),
    ]
    found = scores("styles", rows, [(1, 2, 3, 2, 0, 2), (0, 0, 0, 0, 0, 0)], {"chat": {"chat": 1}, "math": {"math": 1}})
    assert {name: trace[0] for name, trace in found.styles.items()} == pytest.approx({"easy": 1 / 3, "normal": 1 / 3, "hard": 1 / 6})
    assert found.sections["chat"][0] == pytest.approx(5 / 9)
    assert found.average[0] == pytest.approx(5 / 18)
    assert np.array(found.to_dict()["matrix"]) * 2 == pytest.approx(style_cells((1, 2, 3, 2, 0, 2)))


def test_rows_won_needs_all_right_above_all_wrong() -> None:
    suite = Suite(name="s", rule="best_of", rows=(row("a", num_correct=2, count=3), row("b", num_correct=2, count=3)), weights={})
    assert rows_won(suite, [(3, 2, 1), (3, 1, 1)]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([(1, 2)], "`rewards` has 1 rows and the suite 2"),
        ([(1, 2), (1, 2, 3)], "row 'b' has 2 responses, got 3"),
        ([(1, 2), (1, math.nan)], "row 'b' has a reward that is NaN"),
    ],
)
def test_rewards_must_fit(rewards: list[tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores("pairs", [row("a"), row("b")], rewards, {"S": {"s": 2}})
