"""The sign of meaningless credit: told when the mean value is far behind the reward, once, and not before enough pairs were seen."""

from __future__ import annotations

import logging

import pytest

from srm.training.credit_watch import CreditWatch


@pytest.mark.parametrize(("mean_value_correct", "warnings"), [(40, 1), (100, 0)])
def test_a_window_is_judged_once_it_is_full(caplog: pytest.LogCaptureFixture, mean_value_correct: int, warnings: int) -> None:
    watch = CreditWatch(window=128)
    with caplog.at_level(logging.WARNING):
        watch.add(127, 119, mean_value_correct, step=3)
        assert not caplog.records
        watch.add(1, 1, 0, step=4)
        # A second bad window says nothing new.
        watch.add(128 * warnings, 128 * warnings, 0, step=5)
    assert len(caplog.records) == warnings
    if warnings:
        assert "step 4" in caplog.text
        assert "94%" in caplog.text
        assert "31%" in caplog.text


def test_windows_are_judged_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    watch = CreditWatch(window=10, limit=0.2)
    with caplog.at_level(logging.WARNING):
        watch.add(10, 9, 8, step=1)
        watch.add(10, 9, 6, step=2)
    (record,) = caplog.records
    assert record.getMessage().startswith("step 2: ")


@pytest.mark.parametrize(("correct", "mean_value_correct"), [(64, 64), (70, 64), (64, 128)])
def test_noise_and_a_better_mean_value_are_healthy(caplog: pytest.LogCaptureFixture, correct: int, mean_value_correct: int) -> None:
    with caplog.at_level(logging.WARNING):
        CreditWatch(window=128).add(128, correct, mean_value_correct, step=1)
    assert not caplog.records
