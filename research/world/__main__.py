"""Reinforcement learning where the truth is known: how many responses does sentence credit save, and how much survives a learned reward?

    python -m research.world --json research/results/world_cpu.json

A tiny policy writes 6 to 12 short sentences; an oracle knows every fault (grammar.py). It learns from the oracle's rewards per sentence and
per response, and from reward models of this library; what counts is the oracle's score. Runs go in the order of their importance; each is
kept in --work, and the same command goes on. After --minutes it stops with exit code 75, and the JSON has what is there.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from bench import environment
from research.world.policy import Speech, pretrain
from research.world.rewards import MODELS, SOURCES, Scorer, model_scorer, train_reward_model
from research.world.summary import by_cell, compare, final_score, mean_score, plot, summarise
from research.world.train import Algorithm, Cell, Plan, run
from srm import SentenceRewardModel

# 90 thousand weights, and 1.3 million.
SHAPES = {
    "small": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "large": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
}
PRETRAIN = {"steps": 1200, "batch_size": 64, "rate": 3e-3}
REWARD_MODEL = {
    "num_pairs": 1000,
    "num_eval_pairs": 300,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-3,
    # A quarter of the backbone's, as the defaults are.
    "attention_learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
}
RATES = {"small": (3e-4, 1e-3, 2e-3), "large": (1e-4, 3e-4, 1e-3)}
# Four updates a step are too many for a rate that suits one.
PPO_RATES = (1e-4, 3e-4, 1e-3)
TUNING_SEEDS = (1000, 1001)
ORACLES = ("oracle_sentence", "oracle_response")
LEARNED = ("model_sentence", "model_response")
# A sentence model per sentence and per response, and a response model.
PAID = ("model_sentence", "model_sentence_total", "model_response")
OPTIONS = (
    *({"to_go": value} for value in ("min", "own")),
    {"placement": "even"},
    *({"whitening": value} for value in ("scale", "full", "position")),
)
# Algorithm, sources, options, price of KL, and how many seeds; the most important first, and wide before deep.
Row = tuple[Algorithm, tuple[str, ...], tuple[dict[str, str], ...], float, int]
# Learned rewards are hacked without it (the rows at 0). Of 0.1 and 0.3 the better one for the sentence model on two seeds of a pilot.
KL_COEF = 0.3
# Of 0.03, 0.1, 0.3, 0.6 and 1, likewise. It weighs against advantages of variance 1, that of `reinforce` against rewards.
GRPO_KL_COEF = 0.6
GRID: tuple[Row, ...] = (
    ("reinforce", ORACLES, ({},), 0.0, 10),
    ("grpo", ORACLES, ({},), 0.0, 10),
    ("reinforce", PAID, ({},), KL_COEF, 10),
    ("grpo", PAID, ({},), GRPO_KL_COEF, 10),
    ("grpo", ("oracle_sentence",), ({"baseline": "steps"},), 0.0, 5),
    ("grpo", ("model_sentence",), ({"baseline": "steps"}, {"kl_estimator": "k3"}), GRPO_KL_COEF, 5),
    ("reinforce", ("differences", "paper"), ({},), KL_COEF, 10),
    ("reinforce", LEARNED, ({},), 0.0, 5),
    ("reinforce", ORACLES, ({},), KL_COEF, 5),
    ("ppo", ORACLES, ({},), 0.0, 10),
    ("ppo", PAID, ({},), KL_COEF, 10),
    *(("reinforce", ("oracle_sentence",), (option,), 0.0, 5) for option in OPTIONS),
    *(("reinforce", ("model_sentence",), (option,), KL_COEF, 5) for option in OPTIONS),
    ("grpo", ("oracle_sentence",), ({"to_go": "min"}, {"to_go": "own"}), 0.0, 5),
    ("reinforce", LEARNED, ({},), 0.1, 5),
    ("reinforce", ("model_sentence_r",), ({},), KL_COEF, 5),
    ("grpo", LEARNED, ({},), 0.0, 5),
)
LEVELS = (0.5, 0.6, 0.7, 0.8)
PRICED, GRPO_PRICED = f"kl_{KL_COEF:g}", f"kl_{GRPO_KL_COEF:g}"
SHOWN = {
    "reinforce-oracle_sentence": "oracle, per sentence",
    "reinforce-oracle_response": "oracle, per response",
    f"reinforce-model_sentence-{PRICED}": "sentence model",
    f"reinforce-model_response-{PRICED}": "response model",
    f"reinforce-differences-{PRICED}": "response model, differences",
    f"reinforce-paper-{PRICED}": "the paper's a_i r_i",
    "reinforce-model_sentence": "sentence model, KL free",
    "grpo-oracle_sentence-baseline_steps": "oracle, per sentence, steps normalised",
}
_FORMS = (("reinforce", PRICED), ("grpo", GRPO_PRICED), ("ppo", PRICED))
COMPARED = (
    *((f"{form}-oracle_sentence", f"{form}-oracle_response") for form in ("reinforce", "grpo", "ppo")),
    *(
        (f"{form}-{ours}-{price}", f"{form}-{theirs}-{price}")
        for form, price in _FORMS
        for ours, theirs in (
            ("model_sentence", "model_response"),
            ("model_sentence", "model_sentence_total"),
            ("model_sentence_total", "model_response"),
        )
    ),
    *((f"reinforce-{source}-{PRICED}", f"reinforce-model_response-{PRICED}") for source in ("differences", "paper")),
    ("grpo-oracle_sentence", "reinforce-oracle_sentence"),
    ("grpo-oracle_sentence", "grpo-oracle_sentence-baseline_steps"),
    ("grpo-oracle_sentence-baseline_steps", "grpo-oracle_response"),
    (f"grpo-model_sentence-{GRPO_PRICED}", f"grpo-model_sentence-baseline_steps-{GRPO_PRICED}"),
    (f"grpo-model_sentence-baseline_steps-{GRPO_PRICED}", f"grpo-model_response-{GRPO_PRICED}"),
    (f"grpo-model_sentence-kl_estimator_k3-{GRPO_PRICED}", f"grpo-model_sentence-{GRPO_PRICED}"),
    (f"grpo-model_sentence-{GRPO_PRICED}", f"reinforce-model_sentence-{PRICED}"),
    ("reinforce-oracle_sentence", f"reinforce-model_sentence-{PRICED}"),
    *((f"reinforce-{source}-{PRICED}", f"reinforce-{source}") for source in LEARNED),
    (f"reinforce-oracle_sentence-{PRICED}", f"reinforce-oracle_response-{PRICED}"),
    *((f"reinforce-{source}-{PRICED}", f"reinforce-{source}-kl_0.1") for source in LEARNED),
    (f"reinforce-model_sentence_r-{PRICED}", f"reinforce-model_sentence-{PRICED}"),
    *((f"grpo-oracle_sentence-to_go_{value}", "grpo-oracle_sentence") for value in ("min", "own")),
    *(
        (f"reinforce-{source}-{name}_{value}{price}", f"reinforce-{source}{price}")
        for source, price in (("oracle_sentence", ""), ("model_sentence", f"-{PRICED}"))
        for option in OPTIONS
        for name, value in option.items()
    ),
)


class Study:
    """The folder of a study: the start, reward models, and runs that are done with these settings."""

    def __init__(self, arguments: Any) -> None:
        self.work: Path = arguments.work
        self.plan = Plan(steps=arguments.steps)
        self.pretraining = {**PRETRAIN, "steps": arguments.pretrain_steps}
        self.training = {**REWARD_MODEL, "num_pairs": arguments.num_pairs}
        self.shape, self.learning_rates = SHAPES[arguments.size], RATES[arguments.size]
        self.grid = GRID[: arguments.rows]
        self.seeds: int = arguments.seeds
        self.deadline = time.monotonic() + 60 * arguments.minutes
        self.speech = Speech()
        self.settings = {"plan": asdict(self.plan), "shape": self.shape, "start": self.pretraining, "reward models": self.training}
        self.found: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """The start policy, trained where the folder has none with these settings."""
        mark, wanted = self.work / "settings.json", json.loads(json.dumps(self.settings))
        if mark.exists() and json.loads(mark.read_text()) != wanted:
            sys.exit(f"research.world: {self.work} has runs with other settings. Pass another --work, or delete it.")
        environment.write(mark, wanted)
        if not (self.work / "start" / "loss.json").exists():
            loss = pretrain(self.speech, self.work / "start", **self.pretraining, **self.shape)
            environment.write(self.work / "start" / "loss.json", {"loss": loss})
        self.start = LlamaForCausalLM.from_pretrained(self.work / "start").eval()

    def rate(self, algorithm: Algorithm) -> float:
        """The learning rate with the best mean score on the tuning seeds, over both of the oracle's rewards.

        One for both, so that nothing but the rewards differs. grpo differs from reinforce in its baseline alone, and takes its rate.
        """
        tuned, rates = ("ppo", PPO_RATES) if algorithm == "ppo" else ("reinforce", self.learning_rates)
        return max(rates, key=lambda rate: self._tuned([Cell(source, tuned, rate) for source in ORACLES]))

    def _tuned(self, cells: Sequence[Cell]) -> float:
        return statistics.fmean(mean_score(run) for cell in cells for run in self.runs(cell, TUNING_SEEDS))

    def tuning(self) -> dict[str, dict[str, float]]:
        """What `rate` chose from, as far as it has run."""
        found: dict[str, dict[str, list[float]]] = {}
        for file in sorted((self.work / "runs").glob("*.json")):
            record = json.loads(file.read_text())
            if record["seed"] in TUNING_SEEDS:
                found.setdefault(record["cell"], {}).setdefault(f"{record['rate']:g}", []).append(mean_score(record))
        return {cell: {rate: statistics.fmean(scores) for rate, scores in of.items()} for cell, of in found.items()}

    def go(self) -> None:
        """All runs of `GRID`; raises TimeoutError where the time is over."""
        for algorithm, sources, options, price, count in self.grid:
            rate = self.rate(algorithm)
            for source in sources:
                for option in options:
                    cell = Cell(source, algorithm, rate, option, price)
                    found = self.runs(cell, range(min(count, self.seeds)))
                    self.found += [record for record in found if record not in self.found]

    def runs(self, cell: Cell, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """A record a seed, from the folder, or all those that are missing now and together."""
        files = {seed: self.work / "runs" / f"{cell.name}-rate_{cell.rate:g}-seed_{seed}.json" for seed in seeds}
        missing = [seed for seed, file in files.items() if not file.exists()]
        if missing:
            scorers = [self._scorer(cell.source, seed) for seed in missing]
            self._check_time()
            began = time.process_time()
            for record in run(cell, missing, self.plan, start=self.start, speech=self.speech, scorers=scorers):
                environment.write(files[record["seed"]], record)
            records = [json.loads(file.read_text()) for file in files.values()]
            score = statistics.fmean(map(final_score, records))
            environment.say(
                f"{cell.name}, {len(missing)} seeds, rate {cell.rate:g}: {score:.3f} ({time.process_time() - began:.0f} s of CPU)"
            )
        return [json.loads(file.read_text()) for file in files.values()]

    def _scorer(self, source: str, seed: int) -> Scorer | None:
        """Of the source's reward model, trained where the folder has none: each seed has its own pairs and its own model."""
        name = SOURCES[source].model
        if name is None:
            return None
        folder = self.work / "models" / f"{name}-{seed}"
        if not (folder / "quality.json").exists():
            self._check_time()
            quality = train_reward_model(name, self.speech, self.work / "start", folder, seed=seed, **self.training)
            environment.say(f"reward model {name}, seed {seed}: " + ", ".join(f"{key} {value:.3f}" for key, value in quality.items()))
        return model_scorer(SentenceRewardModel.from_pretrained(folder).eval())

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError

    def qualities(self) -> dict[str, list[dict[str, float]]]:
        """Of the reward models that are there, by seed."""
        files = {name: sorted((self.work / "models").glob(f"{name}-*/quality.json"), key=_seed_of) for name in MODELS}
        return {name: [json.loads(file.read_text()) for file in found] for name, found in files.items()}

    def result(self) -> dict[str, Any]:
        """What is there, as far as the grid has come."""
        return {
            "start": json.loads((self.work / "start" / "loss.json").read_text()),
            "tuning, mean score by learning rate": self.tuning(),
            "reward models": self.qualities(),
            "summary": summarise(self.found, LEVELS),
            "comparisons": comparisons(self.found),
            "runs": self.found,
        }


def _seed_of(quality: Path) -> int:
    return int(quality.parent.name.rsplit("-", 1)[1])


def main() -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path("outputs/world"), help="folder of start, reward models and runs")
    parser.add_argument("--size", choices=SHAPES, default="small", help="of the policy: 90 thousand weights or 1.3 million")
    parser.add_argument("--rows", type=int, help="of GRID, from the first on; all where not given")
    parser.add_argument("--seeds", type=int, default=10, help="most seeds of a cell")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--pretrain_steps", type=int, default=PRETRAIN["steps"])
    parser.add_argument("--num_pairs", type=int, default=REWARD_MODEL["num_pairs"], help="that a reward model is trained on")
    parser.add_argument("--minutes", type=float, default=1e6, help="start nothing more after so long")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(arguments)
    result: dict[str, Any] = {**environment.describe(), "settings": study.settings}
    study.prepare()
    try:
        study.go()
        is_done = True
    except TimeoutError:
        is_done = False
    result |= study.result()
    environment.write(arguments.json, result)
    print(table(result))
    if arguments.json and result["runs"]:
        plot(result["runs"], SHOWN, arguments.json.with_suffix(".png"), f"Means over seeds, and 95 % intervals. {result['device']}")
    if not is_done:
        sys.exit(environment.UNFINISHED)


def comparisons(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of `COMPARED`, those that have runs: the first cell against the second."""
    cells = by_cell(runs)
    return {
        f"{ours} against {theirs}": compare(cells[ours], cells[theirs], LEVELS)
        for ours, theirs in COMPARED
        if {ours, theirs} <= cells.keys()
    }


def table(result: dict[str, Any]) -> str:
    """A line a cell, and a line a comparison."""

    def show(interval: dict[str, Any]) -> str:
        return f"{interval['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]" if "value" in interval else "-"

    lines = [f"{'':44}{'final score':>22}{'mean score':>22}" + "".join(f"{f'responses to {level:g}':>30}" for level in LEVELS)]
    for name, found in result["summary"].items():
        cells = [show(found["final score"]), show(found["mean score"])]
        lines.append(f"{name:44}" + "".join(f"{cell:>22}" for cell in cells) + "".join(f"{_needed(found, level):>30}" for level in LEVELS))
    lines.append("the first against the second: difference of scores, and responses of the second over those of the first")
    for name, found in result["comparisons"].items():
        lines.append(f"{name}: final score {show(found['final score'])}, mean score {show(found['mean score'])}")
        for level in LEVELS:
            factor = found[f"responses to {level:g}"]
            lines.append(f"    to {level:g}: {show(factor)}, never reached by {factor['never']['ours']} and {factor['never']['theirs']}")
    return "\n".join(lines)


def _needed(found: dict[str, Any], level: float) -> str:
    interval = found[f"responses to {level:g}"]
    mean = f"{interval['value']:.0f} [{interval['low']:.0f}, {interval['high']:.0f}]" if "value" in interval else "-"
    return mean + (f", {interval['never']} never" if interval["never"] else "")


if __name__ == "__main__":
    main()
