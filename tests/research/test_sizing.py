"""research/claim/sizing.py: a budget that fits the time, and nothing given up that need not be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from research.claim import compare
from research.claim.sizing import ENOUGH_PAIRS, FIXED_SECONDS, Speed, fit, measure, num_runs
from research.claim.variants import BUDGETS, Budget
from srm.errors import UserError

VARIANTS = ["sentence", "response", "token"]
FAST = Speed(train=300.0, score=800.0)


def seconds_of(budget: Budget, variants: list[str], speed: Speed) -> float:
    runs = num_runs(budget, variants)
    tuned = 3 * len(budget.learning_rates) if len(budget.learning_rates) > 1 else 0
    scored = budget.test_pairs + budget.suite_pairs + budget.span_responses / 2
    trained = runs * budget.train_pairs + tuned * (budget.tune_pairs or 0)
    return FIXED_SECONDS * (runs + tuned) + trained / speed.train + runs * scored / speed.score


@pytest.mark.parametrize("seconds", [150, 240, 600, 3600, 36000])
def test_it_fits_and_uses_the_time(seconds: float) -> None:
    cut = fit(BUDGETS["gpu"], VARIANTS, seconds, FAST)
    assert 0.75 * seconds < seconds_of(cut, VARIANTS, FAST) <= seconds


def test_tuning_goes_first_then_seeds() -> None:
    gpu = BUDGETS["gpu"]
    found = [fit(gpu, VARIANTS, seconds, FAST) for seconds in (36000, 700, 400, 240)]
    assert [(len(cut.learning_rates), len(cut.seeds)) for cut in found] == [(3, 3), (1, 3), (1, 2), (1, 1)]
    assert found[1].learning_rates == (2e-5,)
    assert found[-1].seeds == gpu.seeds[:1]
    assert all(cut.train_pairs >= ENOUGH_PAIRS for cut in found)
    assert found[0].test_pairs == gpu.test_pairs, "with time, never more than was asked for"
    assert {cut.flags for cut in found} == {gpu.flags}


def test_ablations_run_on_one_seed() -> None:
    assert num_runs(BUDGETS["gpu"], [*VARIANTS, "paper", "no RoPE"]) == 3 * 3 + 2


def test_no_time_at_all_is_said() -> None:
    with pytest.raises(UserError, match=r"--seconds 60: 3 runs need more than 83"):
        fit(BUDGETS["gpu"], VARIANTS, 60, FAST)


def test_the_speed_is_read_from_a_measurement(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    modes = {mode: {"providers": {"shared": {"pairs_per_second": value}}} for mode, value in (("train", 3.0), ("score", 8.0))}
    file.write_text(json.dumps({"modes": modes}))
    assert Speed.read(file) == Speed(train=3.0, score=8.0)
    del modes["score"]
    for text in (json.dumps({"modes": modes}), "{", "[]"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"--speed .*speed.json: expected what bench/throughput.py writes"):
            Speed.read(file)
    with pytest.raises(UserError, match="expected"):
        Speed.read(tmp_path / "absent.json")


def test_a_measurement_is_kept_and_one_that_fails_says_so(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    modes = {"modes": {mode: {"providers": {"shared": {"pairs_per_second": 8.0}}} for mode in ("train", "score")}}
    file.write_text(json.dumps(modes))
    assert measure("any", file) == Speed(train=8.0, score=8.0)
    with pytest.raises(UserError, match=r"measurement of the speed failed with exit code \d+. Measure it yourself, and give --speed"):
        measure(str(tmp_path / "no_model"), tmp_path / "other.json")


def test_a_run_that_goes_on_keeps_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def budget(words: str, speed: Speed) -> Budget:
        monkeypatch.setattr(Speed, "read", classmethod(lambda cls, path: speed))
        monkeypatch.setattr("sys.argv", ["compare.py", "--data", "d", "--budget", "gpu", "--output_dir", str(tmp_path), *words.split()])
        return compare._budget(compare._arguments())

    first = budget("--seconds 240 --speed a.json --variants sentence token", FAST)
    again = budget("--seconds 500 --speed a.json --variants sentence token", dataclasses.replace(FAST, train=1.0))
    assert first == again
    with pytest.raises(SystemExit):
        budget("--speed a.json", FAST)
    # A finished run is kept by its name, which says neither model nor budget.
    for other in ("--model_name_or_path other --seconds 500 --speed a.json", "--budget cpu --seconds 500 --speed a.json", ""):
        with pytest.raises(SystemExit, match=r"holds runs of \{.*\}, got \{.*\}\. Use another --output_dir\."):
            budget(other, FAST)
