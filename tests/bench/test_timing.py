"""Timing: what counts, what does not, and that all jobs take turns."""

import time

import pytest
import torch


@pytest.fixture
def timing(load):
    return load("timing")


def test_only_the_run_counts(timing):
    jobs = {
        "fast": timing.Job(run=lambda seconds: time.sleep(seconds), prepare=lambda: time.sleep(0.02) or 0.001),
        "slow": timing.Job(run=lambda _: time.sleep(0.01)),
    }
    times = timing.time_interleaved(jobs, device="cpu", min_rounds=3, max_rounds=3)
    assert 1 <= times["fast"].median_ms < 9
    assert 10 <= times["slow"].p20_ms <= times["slow"].median_ms <= times["slow"].p80_ms
    assert times["slow"].rounds == 3


def test_jobs_take_turns_and_the_first_one_changes(timing):
    order = []
    jobs = {name: timing.Job(run=lambda _, name=name: order.append(name)) for name in "abc"}
    timing.time_interleaved(jobs, device="cpu", min_rounds=4, max_rounds=4)
    assert "".join(order) == "abc" * 2 + "abc" + "bca" + "cab" + "abc"  # Two warm-up rounds first.


def test_rounds_follow_the_budget(timing):
    job = {"a": timing.Job(run=lambda _: time.sleep(0.01))}
    assert timing.time_interleaved(job, device="cpu", min_rounds=2, max_rounds=50, budget_s=0.0)["a"].rounds == 2
    assert 3 <= timing.time_interleaved(job, device="cpu", min_rounds=2, max_rounds=50, budget_s=0.1)["a"].rounds <= 10


def test_no_peak_memory_without_a_gpu(timing):
    assert timing.peak_bytes(timing.Job(run=lambda _: None), "cpu") is None


def test_peak_is_what_the_block_held(timing):
    for megabytes in (80, 20):  # a later, smaller one is not blamed for an earlier one
        with timing.measure_peak(torch.device("cpu")) as peak:
            torch.ones(megabytes * 250_000)
        if peak.bytes is None:
            pytest.skip("this system does not let a process reset its peak memory")
        assert peak.bytes == pytest.approx(megabytes * 1e6, rel=0.2)
