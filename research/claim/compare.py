"""The paper's comparison: response, token and sentence level on the same backbone, data, steps and seeds, and ablations of the latter.

    python -m research.claim.compare --data FOLDER --budget cpu --json research/results/claim/claim_cpu.json

FOLDER holds pairs_train, pairs_test, suite_dev and error_spans (.jsonl.gz; README.md says what they are). Each granularity is
tuned on its own, with the same learning rates, on a half of the held-out pairs that no result comes from. Stopped? The same command goes
on where it was: a finished run is kept. Writes a table (.md) and a figure (.png) beside the JSON file.
`--sft` first fine-tunes the model on the chosen answers with `trl sft`, for every run alike (sft.py).
variants.py says how much each budget takes; `--seconds N` measures the machine's speed in the first minute and cuts one to the time
that is left (sizing.py). `--budget gpu --seconds 720` fits twelve minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench import environment
from research.claim.data import draw
from research.claim.runs import Run, finish, scores_of
from research.claim.sft import fine_tuned
from research.claim.sizing import Speed, fit, measure
from research.claim.summary import RANKED, accuracy, summarise, table, write
from research.claim.variants import ABLATIONS, BUDGETS, GRANULARITIES, OWN_RATES, PUBLISHED, VARIANTS, Budget
from srm.errors import UserError
from srm.evaluation.score_suite import read_rewards, write_responses
from srm.evaluation.spans import SpanRow, read_spans
from srm.evaluation.suites import Suite, read_suite

SPANS, TUNING = "spans", "tune"


class Comparison:
    """The files of one budget, and the runs that have been finished on them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.budget: Budget = _budget(arguments)
        self.model: str = arguments.model_name_or_path
        self.folder: Path = arguments.output_dir / "runs"
        files = draw(arguments.data, arguments.output_dir / "data", self.budget)
        self.suites: dict[str, Suite] = {name: read_suite(str(files[name])) for name in (*RANKED, TUNING)}
        self.spans: list[SpanRow] = read_spans(str(files[SPANS]))
        self.inputs = {"train": files["train"]}
        rows = {name: suite.rows for name, suite in self.suites.items()} | {SPANS: tuple(row.to_suite_row() for row in self.spans)}
        for name, of in rows.items():
            self.inputs[name] = arguments.output_dir / "data" / f"{name}.responses.jsonl"
            write_responses(of, self.inputs[name])
        if arguments.sft:
            home, on_cpu = arguments.output_dir, not torch.accelerator.is_available()
            self.model = str(fine_tuned(self.model, files["train"], home, max_length=self.budget.max_length, on_cpu=on_cpu))

    def finish(self, run: Run) -> Run:
        finish(run, self.folder, self.inputs, model=self.model, budget=self.budget)
        return run

    def tuned_learning_rate(self, granularity: str) -> tuple[float, dict[str, float]]:
        """The learning rate with the best accuracy on the tuning pairs, and each one's; the only one where there is one."""
        rates = self.budget.learning_rates
        if len(rates) == 1:
            return rates[0], {}
        found = {}
        for rate in rates:
            run = Run(
                variant=granularity,
                learning_rate=rate,
                seed=self.budget.seeds[0],
                suites=(TUNING,),
                max_pairs=self.budget.tune_pairs,
            )
            self.finish(run)
            found[rate] = accuracy(self.suites[TUNING], read_rewards(self.suites[TUNING].rows, scores_of(run, self.folder, TUNING)))
        return max(found, key=found.__getitem__), {f"{rate:g}": value for rate, value in found.items()}


def main() -> None:
    arguments = _arguments()
    try:
        comparison = Comparison(arguments)
    except UserError as error:
        sys.exit(f"research.claim.compare: {error}")
    budget = comparison.budget
    rates, tuning = dict(OWN_RATES), {}
    for granularity in GRANULARITIES:
        rates[granularity], tuning[granularity] = comparison.tuned_learning_rate(granularity)
    plan = [(variant, seed) for seed in budget.seeds for variant in GRANULARITIES if variant in arguments.variants]
    plan += [(variant, budget.seeds[0]) for variant in (*ABLATIONS, *PUBLISHED) if variant in arguments.variants]
    runs = []
    for variant, seed in plan:
        rate = rates.get(variant, rates["sentence"])
        runs.append(comparison.finish(Run(variant=variant, learning_rate=rate, seed=seed, suites=(*RANKED, SPANS))))
        # After every run: the next one may be stopped.
        result = _result(arguments, comparison, runs, tuning)
        write(arguments.json, result, f"{result['model']}, budget {arguments.budget}: {result['device']}; bars: 95 % over prompts")
    print(table(result["rows"]))


def _budget(arguments: argparse.Namespace) -> Budget:
    """As it is named, or cut to the time. It is kept beside the runs: those that go on must draw the same data and train the same model."""
    whole = BUDGETS[arguments.budget]
    asked = {"model": arguments.model_name_or_path, "budget": arguments.budget, "cut": arguments.seconds is not None}
    asked |= {"sft": True} if arguments.sft else {}
    kept: Path = arguments.output_dir / "comparison.json"
    if kept.exists():
        read = json.loads(kept.read_text(encoding="utf-8"))
        if read["asked"] != asked:
            sys.exit(
                f"research.claim.compare: {arguments.output_dir} holds runs of {read['asked']}, got {asked}. Use another --output_dir."
            )
        return dataclasses.replace(
            whole, **{name: tuple(value) if isinstance(value, list) else value for name, value in read["of"].items()}
        )
    try:
        of = _cut(whole, arguments) if asked["cut"] else whole
    except UserError as error:
        sys.exit(f"research.claim.compare: {error}")
    environment.write(kept, {"asked": asked, "of": dataclasses.asdict(of)})
    if asked["cut"]:
        print(f"{arguments.seconds:.0f} seconds: {of}", flush=True)
    return of


def _cut(whole: Budget, arguments: argparse.Namespace) -> Budget:
    started = time.monotonic()
    if arguments.speed is not None:
        speed = Speed.read(arguments.speed)
    else:
        speed = measure(arguments.model_name_or_path, arguments.output_dir / "speed.json")
    return fit(whole, arguments.variants, arguments.seconds - (time.monotonic() - started), speed)


def _result(arguments: argparse.Namespace, comparison: Comparison, runs: list[Run], tuning: dict[str, dict[str, float]]) -> dict[str, Any]:
    rows = summarise(runs, comparison.folder, {name: comparison.suites[name] for name in RANKED}, comparison.spans)
    options = ["--budget", arguments.budget, *(["--sft"] if arguments.sft else []), "--variants", *arguments.variants]
    trained = {run.name: json.loads((comparison.folder / run.name / "train.json").read_text()) for run in runs}
    return {
        **environment.describe(),
        "command": shlex.join(["python", "-m", "research.claim.compare", *options]),
        "model": arguments.model_name_or_path,
        **({"sft": json.loads((arguments.output_dir / "sft" / "done.json").read_text())} if arguments.sft else {}),
        "budget": dataclasses.asdict(comparison.budget),
        "variants": VARIANTS,
        "tuning_accuracy": tuning,
        "runs": [
            {"variant": run.variant, "learning_rate": run.learning_rate, "seed": run.seed, "train_seconds": trained[run.name]["seconds"]}
            for run in runs
        ],
        "rows": rows,
    }


def _arguments() -> argparse.Namespace:
    parser = environment.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--budget", choices=list(BUDGETS), default="cpu")
    parser.add_argument("--model_name_or_path", default="smollm2-135m")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/claim"), help="data, logs and scores of the runs")
    parser.add_argument("--seconds", type=float, help="cut the budget to about so many")
    parser.add_argument("--speed", type=Path, help="what bench/throughput.py --modes train,score wrote with this model on this machine")
    parser.add_argument(
        "--sft", action="store_true", help="first fine-tune the model on the chosen answers, which --seconds does not count"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="default: all; 'paper as published' needs --sft")
    arguments = parser.parse_args()
    arguments.variants = arguments.variants or [name for name in VARIANTS if arguments.sft or name not in PUBLISHED]
    if not arguments.sft and (needing := PUBLISHED.keys() & set(arguments.variants)):
        parser.error(f"{', '.join(needing)!r} begins with a fine-tuned backbone: add --sft")
    if arguments.speed is not None and arguments.seconds is None:
        parser.error("--speed says how much fits into --seconds: give both")
    return arguments


if __name__ == "__main__":
    main()
