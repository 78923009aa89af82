"""The heads alone: sentence, response and token level, ablations and other poolings on one frozen backbone.

    python -m research.claim.frozen --data FOLDER --json research/results/claim/frozen.json

The backbone runs once over every text. A head then trains in seconds, so that each can be tuned in the same way and repeated on three
seeds, on a CPU too, and judged on a thousand pairs. It is another question than that of compare.py: this backbone cannot learn to put
anything at the ends of sentences. FOLDER as there. Stopped? The same command takes the features that are there. Writes a table (.md) and a
figure (.png) beside the JSON file.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from bench import environment
from research.claim.data import draw
from research.claim.features import Features, cached_features, frozen_model
from research.claim.heads import BATCH, EPOCHS, HEADS, RATES, Head, outputs, scored, train
from research.claim.runs import Run, scores_of
from research.claim.summary import RANKED, accuracy, summarise, table, write
from research.claim.variants import BUDGETS
from srm.evaluation.score_suite import response_rows
from srm.evaluation.spans import read_spans
from srm.evaluation.suites import SuiteRow, read_suite
from srm.scoring.lines import score_line

SIZE = dataclasses.replace(BUDGETS["cpu_hours"], train_pairs=3000, max_chars=1200, learning_rates=RATES, flags="")


class Study:
    """The features of every file, and the heads that were trained on them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        files = draw(arguments.data, arguments.output_dir / "data", SIZE)
        self.suites = {name: read_suite(str(files[name])) for name in ("train", "tune", *RANKED)}
        self.spans = read_spans(str(files["spans"]))
        self.folder: Path = arguments.output_dir / "runs"
        self.rows: dict[str, tuple[SuiteRow, ...]] = {name: suite.rows for name, suite in self.suites.items()}
        self.rows["spans"] = tuple(row.to_suite_row() for row in self.spans)
        model = frozen_model(arguments.model_name_or_path)
        self.features: dict[str, Features] = {}
        for name, of in self.rows.items():
            environment.say(f"{name}: features of {len(of)} rows")
            path = arguments.output_dir / "features" / f"{name}.pt"
            self.features[name] = cached_features(path, model, of, max_length=SIZE.score_max_length)
        self.scale = self.features["train"].scale

    def tuned(self, head: Head) -> tuple[dict[str, Any], dict[str, float]]:
        """The setting with the best accuracy on the tuning pairs, and that of each."""
        found = {}
        for rate in RATES:
            for epochs in EPOCHS:
                model = self._train(head, rate, epochs, SIZE.seeds[0])
                rewards = outputs(head, model, self.features["tune"], self.scale).reward
                found[rate, epochs] = accuracy(self.suites["tune"], rewards.view(-1, 2).tolist())
        rate, epochs = max(found, key=found.__getitem__)
        return {"rate": rate, "epochs": epochs}, {f"{rate:g}, {epochs} epochs": value for (rate, epochs), value in found.items()}

    def finish(self, name: str, head: Head, setting: dict[str, Any], seed: int) -> Run:
        """Train one head and write its scores of every file, as srm-score would."""
        run = Run(variant=name, learning_rate=setting["rate"], seed=seed, suites=(*RANKED, "spans"))
        model = self._train(head, setting["rate"], setting["epochs"], seed)
        for suite in run.suites:
            path = scores_of(run, self.folder, suite)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(self._lines(head, model, suite)), encoding="utf-8")
        return run

    def _train(self, head: Head, rate: float, epochs: int, seed: int) -> torch.nn.Module:
        return train(head, self.features["train"], self.scale, rate=rate, epochs=epochs, seed=seed)

    def _lines(self, head: Head, model: torch.nn.Module, suite: str) -> list[str]:
        features = self.features[suite]
        output = outputs(head, model, features, self.scale)
        rows = response_rows(self.rows[suite])
        return [score_line(row, response) for row, response in zip(rows, scored(features, output), strict=True)]


def main() -> None:
    arguments = _arguments()
    study = Study(arguments)
    runs: list[Run] = []
    tuning = {}
    for name, head in HEADS.items():
        setting, tried = study.tuned(head)
        tuning[name] = {"chosen": setting, "accuracy": tried}
        runs += [study.finish(name, head, setting, seed) for seed in SIZE.seeds]
        environment.say(f"{name}: {setting}, {max(tried.values()):.1%} of the tuning pairs")
    rows = summarise(runs, study.folder, {name: study.suites[name] for name in RANKED}, study.spans)
    result = {
        **environment.describe(),
        "command": "python -m research.claim.frozen",
        "model": arguments.model_name_or_path,
        "size": dataclasses.asdict(SIZE) | {"batch_pairs": BATCH},
        "pairs": {name: len(suite.rows) for name, suite in study.suites.items()},
        "heads": {name: dataclasses.asdict(head) for name, head in HEADS.items()},
        "tuning": tuning,
        "rows": rows,
    }
    write(arguments.json, result, f"heads on a frozen {arguments.model_name_or_path}; bars: 95 % over prompts")
    print(table(rows))


def _arguments() -> argparse.Namespace:
    parser = environment.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model_name_or_path", default="smollm2-135m")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/frozen"), help="rows, features and scores")
    return parser.parse_args()


if __name__ == "__main__":
    main()
