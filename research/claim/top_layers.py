"""The paper's comparison with power: sentence, response and token level train the last layers on cached activations of those below.

    python -m research.claim.top_layers --data FOLDER --json research/results/claim/top_layers.json

PLAN.md was written before the first run and says what is compared, the one primary figure and when it stops. The lower layers run once
over all texts, so that a run costs a fraction of a full one, and all levels read the same numbers. Stopped? The same command goes on: a
finished run is kept, a stopped one is lost. Started in two processes at once, each takes the next run that the other does not hold.
FOLDER as in compare.py. Writes a table (.md) and a figure (.png) beside the JSON file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from bench import environment
from research.claim.activations import (
    Activations,
    cached_activations,
    lower_layers,
    upper_model,
    upper_weights,
    whole_model,
    with_table,
)
from research.claim.data import draw
from research.claim.runs import Run, scores_of
from research.claim.summary import RANKED, accuracy, summarise, table, write
from research.claim.variants import BUDGETS, GRANULARITIES, VARIANTS, Budget
from srm import ScoredResponse, SentenceRewardModel
from srm.data import encode_comparisons, read_comparisons
from srm.errors import UserError
from srm.evaluation.score_suite import read_rewards, response_rows
from srm.evaluation.spans import read_spans
from srm.evaluation.suites import SuiteRow, read_suite
from srm.packing import PromptGroup
from srm.runs.folders import write_whole
from srm.runs.lock import hold
from srm.scoring.lines import score_line
from srm.scoring.run import score_all
from srm.scoring.text import encode_groups, read_off_group
from srm.training.arguments import parse_arguments
from srm.training.trainer import SentenceRewardTrainer

SIZE = dataclasses.replace(
    BUDGETS["cpu_hours"],
    train_pairs=4000,
    suite_pairs=None,
    span_responses=None,
    max_chars=1600,
    learning_rates=(3e-5, 1e-4, 3e-4),
    tune_pairs=1000,
    flags="--per_device_train_batch_size 8 --bf16",
)
DRY = dataclasses.replace(
    SIZE,
    train_pairs=8,
    test_pairs=6,
    suite_pairs=10,
    span_responses=10,
    tune_pairs=4,
    learning_rates=(1e-4, 3e-4),
    seeds=(0, 1),
)
NUM_TRAINED = 3
_LATER = {"token": 1}
FILES = ("train", "tune", *RANKED, "spans")
WAIT_SECONDS = 5.0


class Study:
    """The activations of some files, and runs on them.

    Args:
        arguments: those of `study_parser`.
        size: how much of each file, and which learning rates and seeds.
        files: of `FILES`, those that the runs read.
    """

    def __init__(self, arguments: argparse.Namespace, size: Budget, files: Sequence[str] = FILES) -> None:
        self.size = size
        self.name: str = arguments.model_name_or_path
        self.output: Path = arguments.output_dir
        self.folder = self.output / "runs"
        self.files = draw(arguments.data, self.output / "data", self.size)
        self.suites = {name: read_suite(str(self.files[name])) for name in ("tune", *RANKED) if name in files}
        self.spans = read_spans(str(self.files["spans"]))
        self.rows: dict[str, tuple[SuiteRow, ...]] = {name: suite.rows for name, suite in self.suites.items()}
        self.rows["spans"] = tuple(row.to_suite_row() for row in self.spans)
        with hold(self.output / "activations"):
            for name in files:
                self.activations(name)

    @cached_property
    def whole(self) -> SentenceRewardModel:
        return SentenceRewardModel.from_backbone(self.name)

    @cached_property
    def groups(self) -> dict[str, Sequence[PromptGroup]]:
        """Each file as the model reads it."""
        pairs = read_comparisons(str(self.files["train"]))
        trained, report = encode_comparisons(list(pairs), self.whole.encoder, max_length=self.size.max_length, progress=False)
        environment.say(f"train: {report}")
        return {"train": trained} | {name: self._encoded(rows) for name, rows in self.rows.items()}

    def _encoded(self, rows: Sequence[SuiteRow]) -> list[PromptGroup]:
        limit = {"max_length": self.size.score_max_length, "overlong": "truncate_response"}
        return [
            group
            for row in rows
            for group in encode_groups(self.whole, row.prompt, row.responses, where=[row.id] * len(row.responses), **limit)
        ]

    def activations(self, name: str) -> Activations:
        return cached_activations(
            self.output / "activations" / name, self.groups[name], lambda: lower_layers(self.whole.backbone, NUM_TRAINED)
        )

    def tuning_run(self, variant: str, rate: float) -> Run:
        return Run(variant=variant, learning_rate=rate, seed=self.size.seeds[0], suites=("tune",), max_pairs=self.size.tune_pairs)

    def tuned(self, variant: str) -> tuple[float, dict[str, float]] | None:
        """The learning rate with the best accuracy on the tuning pairs, and that of each; None as long as a run is missing."""
        suite, found = self.suites["tune"], {}
        for rate in self.size.learning_rates:
            run = self.tuning_run(variant, rate)
            if not self.is_done(run):
                return None
            found[rate] = accuracy(suite, read_rewards(suite.rows, scores_of(run, self.folder, "tune")))
        return max(found, key=found.__getitem__), {f"{rate:g}": value for rate, value in found.items()}

    def is_done(self, run: Run) -> bool:
        return (self.folder / run.name / "train.json").exists()

    def missing(self) -> list[Run]:
        """What is left to do: first the primary figure. Runs come once their learning rate is known."""
        tuning = [self.tuning_run(variant, rate) for variant in GRANULARITIES for rate in self.size.learning_rates]
        left = [run for run in [*tuning, *self.runs()] if not self.is_done(run)]
        return sorted(left, key=lambda run: (_LATER.get(run.variant, 0), run.max_pairs is None))

    def runs(self) -> list[Run]:
        """Those that results come from, as far as their learning rates are known."""
        rates = {variant: found[0] for variant in GRANULARITIES if (found := self.tuned(variant))}
        return [
            Run(variant=variant, learning_rate=rate, seed=seed, suites=(*RANKED, "spans"))
            for seed in self.size.seeds
            for variant, rate in rates.items()
        ]

    def finish(self, run: Run) -> None:
        """Train, write the weights and the scores of every suite, as srm-score would; last what says that all is there."""
        home, started = self.folder / run.name, time.monotonic()
        model, command = self._train(run)
        seconds = time.monotonic() - started
        save_file({name: weight.contiguous() for name, weight in upper_weights(model).items()}, home / "upper.safetensors")
        for suite in run.suites:
            scores_of(run, self.folder, suite).write_text("".join(self._lines(run, model, suite)), encoding="utf-8")
        record = {"command": command, "seconds": round(seconds, 1), "all_seconds": round(time.monotonic() - started, 1)}
        write_whole(home / "train.json", json.dumps(record | environment.describe(), indent=2) + "\n")
        environment.say(f"{run.name}: {record['all_seconds']:.0f} s, training {seconds:.0f}")

    def _train(self, run: Run) -> tuple[SentenceRewardModel, str]:
        flags = ["--seed", str(run.seed), "--learning_rate", f"{run.learning_rate:g}", *shlex.split(VARIANTS[run.variant])]
        flags += [
            *shlex.split(self.size.flags),
            *shlex.split("--save_strategy no --report_to none --disable_tqdm true --overwrite_output_dir"),
        ]
        needed = [
            "--model_name_or_path",
            self.name,
            "--dataset_name",
            str(self.files["train"]),
            "--output_dir",
            str(self.folder / run.name / "trainer"),
        ]
        variant, _, config = parse_arguments([*needed, *flags])
        activations = self.activations("train")
        model = upper_model(self.whole, NUM_TRAINED, activations.table, **variant.variant())
        rows = activations.rows_of(self.groups["train"])
        SentenceRewardTrainer(model, config, train_dataset=rows[: run.max_pairs]).train()
        return model, shlex.join(flags)

    def _lines(self, run: Run, model: SentenceRewardModel, suite: str) -> list[str]:
        responses = self._score(with_table(model, self.activations(suite).table), suite)
        return [score_line(row, response) for row, response in zip(response_rows(self.rows[suite]), responses, strict=True)]

    def _score(self, model: SentenceRewardModel, suite: str) -> list[ScoredResponse]:
        groups = self.groups[suite]
        scored = score_all(model, self.activations(suite).rows_of(groups), tokens_per_batch=8192, packing="shared")
        return [one for group, scores in zip(groups, scored, strict=True) for one in read_off_group(group, scores)]

    def trained(self, run: Run) -> SentenceRewardModel:
        """The whole reward model of a finished run: the lower layers with what it trained."""
        variant, _, _ = parse_arguments(["--model_name_or_path", self.name, "--dataset_name", "-", *shlex.split(VARIANTS[run.variant])])
        upper = upper_model(self.whole, NUM_TRAINED, self.activations("train").table, **variant.variant())
        upper.load_state_dict(load_file(self.folder / run.name / "upper.safetensors"), strict=False)
        return whole_model(self.whole, upper)


def main() -> None:
    arguments = _arguments()
    study = Study(arguments, DRY if arguments.dry else SIZE)
    while left := [] if arguments.report else study.missing():
        if not any(take(study, run) for run in left):
            # Others hold what is left; a run may follow from theirs.
            time.sleep(WAIT_SECONDS)
    if arguments.save_models is not None:
        for run in [run for run in study.runs() if study.is_done(run)]:
            study.trained(run).save_pretrained(arguments.save_models / run.name)
    result = _result(study)
    title = f"last {NUM_TRAINED} layers of {study.name}: {result['device']}; bars: 95 % over prompts and seeds"
    write(arguments.json, result, title)
    print(table(result["rows"]))


def take(study: Study, run: Run) -> bool:
    """Do a run, unless it is done or another process is at it."""
    home = study.folder / run.name
    home.mkdir(parents=True, exist_ok=True)
    try:
        with hold(home):
            if study.is_done(run):
                return False
            study.finish(run)
    except UserError as error:
        if "another" not in str(error):
            raise
        return False
    return True


def _result(study: Study) -> dict[str, Any]:
    runs = [run for run in study.runs() if study.is_done(run)]
    records = {run.name: json.loads((study.folder / run.name / "train.json").read_text()) for run in runs}
    return {
        **environment.describe(),
        "command": "python -m research.claim.top_layers",
        "model": study.name,
        "layers_trained": NUM_TRAINED,
        "size": dataclasses.asdict(study.size),
        "rows_used": {name: len(groups) for name, groups in study.groups.items()},
        "tokens": {name: len(study.activations(name).table) for name in FILES},
        "tuning_accuracy": {variant: found[1] for variant in GRANULARITIES if (found := study.tuned(variant))},
        "runs": [{**dataclasses.asdict(run), **records[run.name]} for run in runs],
        "rows": summarise(runs, study.folder, {name: study.suites[name] for name in RANKED}, study.spans),
    }


def study_parser(documentation: str | None, output_dir: str) -> argparse.ArgumentParser:
    """The flags of a `Study`."""
    parser = environment.parser(documentation)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model_name_or_path", default="smollm2-135m", help="a decoder of the Llama form: layers, norm, embed_tokens")
    parser.add_argument("--output_dir", type=Path, default=Path(output_dir), help="data, activations, weights and scores")
    parser.add_argument("--dry", action="store_true", help="a few pairs: shows that everything runs")
    return parser


def _arguments() -> argparse.Namespace:
    parser = study_parser(__doc__, "outputs/top_layers")
    parser.add_argument("--save_models", type=Path, help="folder for a whole reward model of each run, half a gigabyte each")
    parser.add_argument("--report", action="store_true", help="train nothing: report the runs that are done")
    return parser.parse_args()


if __name__ == "__main__":
    main()
