"""A budget cut to the time there is, by the speed that this machine has shown."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from research.claim.variants import ABLATIONS, GRANULARITIES, PUBLISHED, Budget
from srm.errors import UserError

__all__ = ["Speed", "fit", "measure", "num_runs"]

# Of a run: two starts of Python with torch and transformers, loading the model twice, saving it once.
FIXED_SECONDS = 25.0
# Of what is left: scoring, and for what the speed does not show, such as longer rows than those it was measured on.
SCORING_SHARE, RESERVE = 0.2, 0.1
# Fewer pairs tell no two models apart on one seed, so tuning and further seeds go first.
ENOUGH_PAIRS = 4000


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Pairs a second, of the same model on this device."""

    train: float
    score: float

    @classmethod
    def read(cls, path: Path) -> Speed:
        """From what bench/throughput.py wrote with the modes train and score.

        Raises:
            UserError: no such file, or none of that script with both modes.
        """
        try:
            modes = json.loads(path.read_text(encoding="utf-8"))["modes"]
            train, score = (modes[mode]["providers"]["shared"]["pairs_per_second"] for mode in ("train", "score"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--speed {path}: expected what bench/throughput.py writes with --modes train,score, got {type(error).__name__}: {error}. "
                "Run that first, with the same --model."
            ) from None
        return cls(train=train, score=score)


def measure(model: str, path: Path) -> Speed:
    """The speed that a minute of bench/throughput.py finds; what it writes to `path` is kept.

    Raises:
        UserError: it failed. What it says stands above.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = ["--modes", "train,score", "--providers", "shared", "--batch_size", "16", "--tokens_per_batch", "32768", "--minutes", "1"]
        command = [sys.executable, "bench/throughput.py", "--model", model, "--json", str(path), *flags]
        if code := subprocess.run(command, check=False).returncode:
            raise UserError(f"--seconds: the measurement of the speed failed with exit code {code}. Measure it yourself, and give --speed.")
    return Speed.read(path)


def num_runs(budget: Budget, variants: list[str]) -> int:
    """Trainings of whole runs, without those of tuning."""
    return len(budget.seeds) * sum(name in GRANULARITIES for name in variants) + sum(
        name in ABLATIONS or name in PUBLISHED for name in variants
    )


def fit(budget: Budget, variants: list[str], seconds: float, speed: Speed) -> Budget:
    """`budget` with as many pairs as all runs of `variants` take in `seconds`; all rows of a file where there are fewer.

    Tuning is given up first (the middle learning rate stays), then seeds, down to one, as long as a run would have fewer than
    `ENOUGH_PAIRS` pairs.

    Raises:
        UserError: not even one seed of each variant fits.
    """
    rates = budget.learning_rates
    middle = (rates[len(rates) // 2],)
    fewer_seeds = [(middle, budget.seeds[:count]) for count in range(len(budget.seeds), 0, -1)]
    cut = budget
    for learning_rates, seeds in [(rates, budget.seeds), *fewer_seeds]:
        cut = _with_pairs(dataclasses.replace(budget, learning_rates=learning_rates, seeds=seeds), variants, seconds, speed)
        if cut.train_pairs is not None and cut.train_pairs >= ENOUGH_PAIRS:
            return cut
    if not cut.train_pairs or cut.train_pairs < 1:
        needed = num_runs(cut, variants) * FIXED_SECONDS / (1 - RESERVE)
        raise UserError(f"--seconds {seconds:.0f}: {num_runs(cut, variants)} runs need more than {needed:.0f}. Ask for fewer --variants.")
    return cut


def _with_pairs(budget: Budget, variants: list[str], seconds: float, speed: Speed) -> Budget:
    runs = num_runs(budget, variants)
    tuned = len(GRANULARITIES) * len(budget.learning_rates) if len(budget.learning_rates) > 1 else 0
    left = (1 - RESERVE) * seconds - FIXED_SECONDS * (runs + tuned)
    # A tuning run trains on a third of the pairs, as in the whole budget, and scores the tuning pairs alone.
    train = int(speed.train * (1 - SCORING_SHARE) * left / (runs + tuned / 3))
    scored = int(speed.score * SCORING_SHARE * left / (runs + tuned / 3))
    return dataclasses.replace(
        budget,
        train_pairs=_at_most(budget.train_pairs, train),
        tune_pairs=max(1, train // 3) if tuned else None,
        # Half for the suite; marked responses are few, and each is one response where a pair has two.
        suite_pairs=_at_most(budget.suite_pairs, max(scored // 2, 1)),
        test_pairs=_at_most(budget.test_pairs, max(scored // 4, 1)),
        span_responses=_at_most(budget.span_responses, max(scored // 2, 1)),
    )


def _at_most(whole: int | None, share: int) -> int:
    return share if whole is None else min(whole, share)
