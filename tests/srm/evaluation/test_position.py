"""Credit given position: cases by hand, and that neither place nor response gets more than 0.5."""

from __future__ import annotations

import numpy as np
import pytest

from srm.evaluation.intervals import Bootstrap
from srm.evaluation.position import credit_given_position


def test_by_hand() -> None:
    """Distances from the means, with bad ones marked: [1, -1*], [-2*, 2], [0, 0], [0*, 0], and three sentences that have no match.

    First of two: -2 is below 1 and 0; 0 is below 1 and ties with 0. Second of two: -1 is below 2 and both zeros.
    """
    rewards = [[0.0, -2.0], [-3.0, 1.0], [0.0, 0.0], [5.0, 5.0], [1.0, 2.0, 3.0]]
    bad = [[False, True], [True, False], [False, False], [True, False], [True, False, False]]
    found = credit_given_position(rewards, bad, Bootstrap(range(5), draws=20))
    assert found.auc.estimate == pytest.approx((1 + 0.75 + 1) / 3)
    assert (found.num_bad, found.num_compared) == (4, 3)


def test_what_nobody_has_judged_is_on_no_side() -> None:
    """The unknown sentence still counts for the mean of its response, and for how many sentences it has."""
    rewards = [[0.0, -3.0, -9.0], [0.0, 0.0, 0.0]]
    found = credit_given_position(rewards, [[False, True, None], [False, False, False]], Bootstrap(range(2), draws=5))
    # -3 + 4 is above 0.
    assert found.auc.estimate == 0.0
    assert (found.num_bad, found.num_compared) == (1, 1)


@pytest.mark.parametrize(
    "reward_of",
    [
        pytest.param(lambda index, num, level: float(index), id="first is bad"),
        pytest.param(lambda index, num, level: -float(index), id="last is bad"),
        pytest.param(lambda index, num, level: abs(index - num / 3), id="some place in the middle is bad"),
        pytest.param(lambda index, num, level: level, id="all of a bad response is bad"),
    ],
)
def test_place_and_response_alone_get_exactly_half(reward_of: object) -> None:
    """Errors sit at the end here, and responses with errors have low levels: within responses "last is bad" would get nearly 1."""
    generator = np.random.default_rng(0)
    nums = generator.integers(1, 6, size=60)
    bad = [[bool(generator.random() < 0.1 + 0.8 * (index == num - 1)) for index in range(num)] for num in nums]
    # Levels that add and average without rounding.
    rewards = [[reward_of(index, num, -4.0 * sum(marks)) for index in range(num)] for num, marks in zip(nums, bad, strict=True)]  # type: ignore[operator]
    found = credit_given_position(rewards, bad, Bootstrap(range(60), draws=50))
    assert found.num_compared > 20
    assert np.nanmin(found.trace) == np.nanmax(found.trace) == 0.5
    assert found.verdict == "open"


def test_noise_gets_half_and_a_judge_more() -> None:
    generator = np.random.default_rng(1)
    bad = [[bool(generator.random() < 0.4) for _ in range(4)] for _ in range(400)]
    noise = [generator.normal(size=4) for _ in bad]
    bootstrap = Bootstrap(range(400), draws=200)
    nothing = credit_given_position([list(row) for row in noise], bad, bootstrap)
    assert nothing.auc.low < 0.5 < nothing.auc.high
    judge = credit_given_position([list(row - np.array(marks)) for row, marks in zip(noise, bad, strict=True)], bad, bootstrap)
    assert judge.verdict == "above"
    inverted = credit_given_position([list(row + np.array(marks)) for row, marks in zip(noise, bad, strict=True)], bad, bootstrap)
    assert inverted.verdict == "below"


def test_draws_are_those_of_the_rows_drawn_so_often() -> None:
    """Each draw's number is that of the rows themselves, written down as often as they were drawn."""
    generator = np.random.default_rng(2)
    rewards = [list(generator.normal(size=int(num))) for num in generator.integers(1, 4, size=12)]
    bad = [[bool(generator.random() < 0.5) for _ in values] for values in rewards]
    bootstrap = Bootstrap([f"prompt {row % 5}" for row in range(12)], draws=8, seed=3)
    found = credit_given_position(rewards, bad, bootstrap)
    for draw, counts in enumerate(bootstrap.counts(range(12)).astype(int)):
        rows = np.repeat(np.arange(12), counts)
        again = credit_given_position([rewards[row] for row in rows], [bad[row] for row in rows], Bootstrap(range(len(rows)), draws=1))
        assert found.trace[draw] == pytest.approx(again.auc.estimate, nan_ok=True)


def test_no_good_sentence_at_any_place() -> None:
    found = credit_given_position([[1.0], [2.0, 3.0]], [[True], [False, False]], Bootstrap(range(2), draws=5))
    assert np.isnan(found.auc.estimate)
    assert (found.num_bad, found.num_compared, found.verdict) == (1, 0, "open")
