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
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from bench import environment
from research.world.policy import Speech, pretrain
from research.world.rewards import MODELS, SOURCES, Scorer, model_scorer, train_reward_model
from research.world.summary import by_cell, compare, mean_score, plot, summarise
from research.world.train import Plan, Run, run
from srm import SentenceRewardModel

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
PRETRAIN = {"steps": 1200, "batch_size": 64, "rate": 3e-3}
REWARD_MODEL = {"num_pairs": 1000, "num_eval_pairs": 300, "learning_rate": 1e-3, "attention_learning_rate": 2.5e-4, "num_train_epochs": 2}
RATES = (1e-3, 3e-3, 1e-2)
TUNING_SEEDS = (1000, 1001)
ORACLES = ("oracle_sentence", "oracle_response")
# Algorithm, sources, options, and how many of the seeds; the most important first.
GRID: tuple[tuple[str, tuple[str, ...], tuple[dict[str, str], ...], int], ...] = (
    ("grpo", ORACLES, ({},), 10),
    ("grpo", ("model_sentence", "model_response", "differences", "paper"), ({},), 10),
    ("grpo", ("oracle_sentence", "model_sentence"), ({"to_go": "min"}, {"to_go": "own"}), 5),
    ("reinforce", (*ORACLES, "model_sentence", "model_response"), ({},), 5),
    (
        "reinforce",
        ("oracle_sentence", "model_sentence"),
        ({"placement": "even"}, {"whitening": "scale"}, {"whitening": "full"}, {"whitening": "position"}),
        5,
    ),
    ("ppo", (*ORACLES, "model_sentence", "model_response"), ({},), 5),
    ("grpo", ("model_sentence_r", "model_sentence_total"), ({},), 5),
)
LEVELS, KLS = (0.5, 0.65, 0.8), (2.0, 5.0, 10.0)
SHOWN = {
    "grpo-oracle_sentence": "oracle, per sentence",
    "grpo-oracle_response": "oracle, per response",
    "grpo-model_sentence": "sentence model",
    "grpo-model_response": "response model",
    "grpo-differences": "response model, differences",
    "grpo-paper": "the paper's a_i r_i",
}
COMPARED = (
    ("grpo-oracle_sentence", "grpo-oracle_response"),
    ("grpo-model_sentence", "grpo-model_response"),
    ("grpo-differences", "grpo-model_response"),
    ("grpo-paper", "grpo-model_response"),
    ("grpo-oracle_sentence", "grpo-model_sentence"),
    ("grpo-model_sentence_r", "grpo-model_sentence"),
    ("grpo-model_sentence", "grpo-model_sentence_total"),
    ("reinforce-oracle_sentence", "reinforce-oracle_response"),
    ("reinforce-model_sentence", "reinforce-model_response"),
    ("ppo-oracle_sentence", "ppo-oracle_response"),
    ("ppo-model_sentence", "ppo-model_response"),
    *((f"grpo-{source}-to_go_{value}", f"grpo-{source}") for source in ("oracle_sentence", "model_sentence") for value in ("min", "own")),
    *(
        (f"reinforce-{source}-{option}", f"reinforce-{source}")
        for source in ("oracle_sentence", "model_sentence")
        for option in ("placement_even", "whitening_scale", "whitening_full", "whitening_position")
    ),
)


class Study:
    """The folder of a study: the start, reward models, and runs that are done with these settings."""

    def __init__(self, arguments: Any) -> None:
        self.work: Path = arguments.work
        self.plan = Plan(steps=arguments.steps)
        self.pretraining = {**PRETRAIN, "steps": arguments.pretrain_steps}
        self.training = {**REWARD_MODEL, "num_pairs": arguments.num_pairs}
        self.seeds: int = arguments.seeds
        self.deadline = time.monotonic() + 60 * arguments.minutes
        self.speech = Speech()
        self.settings = {"plan": asdict(self.plan), "shape": SHAPE, "start": self.pretraining, "reward models": self.training}
        self.runs: list[dict[str, Any]] = []
        self._scorers: dict[tuple[str, int], Scorer] = {}

    def prepare(self) -> None:
        """The start policy, trained where the folder has none with these settings."""
        mark, wanted = self.work / "settings.json", json.loads(json.dumps(self.settings))
        if mark.exists() and json.loads(mark.read_text()) != wanted:
            sys.exit(f"research.world: {self.work} has runs with other settings. Pass another --work, or delete it.")
        self.work.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps(wanted))
        if not (self.work / "start" / "loss.json").exists():
            loss = pretrain(self.speech, self.work / "start", **self.pretraining, **SHAPE)
            (self.work / "start" / "loss.json").write_text(json.dumps(loss))
        self.start = LlamaForCausalLM.from_pretrained(self.work / "start").eval()

    def rates(self) -> dict[str, dict[str, float]]:
        """For each algorithm and level the learning rate with the best mean score on the tuning seeds, by the oracle's rewards."""
        found: dict[str, dict[str, float]] = {}
        for algorithm in dict.fromkeys(row[0] for row in GRID):
            found[algorithm] = {}
            for source in ORACLES:
                scores = {}
                for rate in RATES:
                    runs = [self.run(Run(source, algorithm, seed, rate)) for seed in TUNING_SEEDS]  # type: ignore[arg-type]
                    scores[rate] = statistics.fmean(map(mean_score, runs))
                found[algorithm][SOURCES[source].level] = max(scores, key=lambda rate: scores[rate])
        return found

    def run(self, wanted: Run) -> dict[str, Any]:
        """From the folder, or now. Raises TimeoutError where the time is over."""
        file = self.work / "runs" / f"{wanted.name}.json"
        if not file.exists():
            if time.monotonic() > self.deadline:
                raise TimeoutError
            model = SOURCES[wanted.source].model
            scorer = None if model is None else self.scorer(model, wanted.seed)
            record = run(wanted, self.plan, start=self.start, speech=self.speech, scorer=scorer)
            environment.write(file, record)
            environment.say(f"{wanted.name}: score {record['score'][0]:.2f} to {record['score'][-1]:.2f}, {record['seconds']} s")
        return json.loads(file.read_text())

    def scorer(self, name: str, seed: int) -> Scorer:
        """Of reward model `name`, trained where the folder has none: each seed has its own pairs and its own model."""
        folder = self.work / "models" / f"{name}-{seed}"
        if not (folder / "quality.json").exists():
            quality = train_reward_model(name, self.speech, self.work / "start", folder, seed=seed, **self.training)
            environment.say(f"reward model {name}, seed {seed}: {quality}")
        if (name, seed) not in self._scorers:
            self._scorers[name, seed] = model_scorer(SentenceRewardModel.from_pretrained(folder).eval())
        return self._scorers[name, seed]

    def grid(self, rates: dict[str, dict[str, float]]) -> Iterator[Run]:
        """Seed by seed within a row of the grid, so that what is compared has the same seeds when the time is over."""
        for algorithm, sources, options, seeds in GRID:
            for seed in range(min(seeds, self.seeds)):
                for source in sources:
                    for option in options:
                        yield Run(source, algorithm, seed, rates[algorithm][SOURCES[source].level], option)  # type: ignore[arg-type]

    def qualities(self) -> dict[str, list[dict[str, float]]]:
        """Of the reward models, by seed."""
        files = {
            name: sorted((self.work / "models").glob(f"{name}-*/quality.json"), key=lambda file: int(file.parent.name.rsplit("-", 1)[1]))
            for name in MODELS
        }
        return {name: [json.loads(file.read_text()) for file in found] for name, found in files.items()}


def main() -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path("outputs/world"), help="folder of start, reward models and runs")
    parser.add_argument("--seeds", type=int, default=10, help="most seeds of a cell")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--pretrain_steps", type=int, default=PRETRAIN["steps"])
    parser.add_argument("--num_pairs", type=int, default=REWARD_MODEL["num_pairs"], help="that a reward model is trained on")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop before the next run after so long")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(arguments)
    result: dict[str, Any] = {**environment.describe(), "settings": study.settings}
    study.prepare()
    over = False
    rates: dict[str, dict[str, float]] = {}
    runs: list[dict[str, Any]] = []
    try:
        rates = study.rates()
        for wanted in study.grid(rates):
            runs.append(study.run(wanted))
    except TimeoutError:
        over = True
    result |= {"learning rates": rates, "tuning": _tuning(study), "reward models": study.qualities()}
    result |= {"summary": summarise(runs, LEVELS, KLS), "comparisons": comparisons(runs), "runs": runs}
    environment.write(arguments.json, result)
    print(table(result))
    if arguments.json and runs:
        plot(runs, SHOWN, arguments.json.with_suffix(".png"), f"GRPO, mean over seeds and 95 % intervals. {result['device']}")
    if over:
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


def _tuning(study: Study) -> dict[str, float]:
    """Mean score of each tuning run that is there."""
    files = sorted((study.work / "runs").glob(f"*seed_{TUNING_SEEDS[0]}.json"))
    scores: dict[str, float] = {}
    for file in files:
        seeds = [file.with_name(file.name.replace(f"seed_{TUNING_SEEDS[0]}", f"seed_{seed}")) for seed in TUNING_SEEDS]
        records = [json.loads(one.read_text()) for one in seeds if one.exists()]
        scores[file.stem.rsplit("-seed", 1)[0]] = statistics.fmean(map(mean_score, records))
    return scores


if __name__ == "__main__":
    main()
