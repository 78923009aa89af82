"""Does the logged `rebound_share` tell inverted credit from right credit? Train from a good start and from a bad one, and compare.

    python bench/credit_health.py --input pairs.jsonl.gz --json bench/results/credit_health_cpu.json

The rejected answers are good ones with one sentence swapped for one of another answer: those of --input, or generated ones.

default: srm-train's recipe. random: the head starts as torch's layers do, with the value at N(0, 0.02), learns ten times as fast as the
backbone in all its parts, and has the plain pair loss: the start that can settle on inverted credit (docs/method.md, "The start matters").
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import environment
import torch
from transformers import TrainerCallback, set_seed

from srm import SentenceRewardModel
from srm.data import encode_comparisons, read_comparisons
from srm.data.files import RawRow, file_rows
from srm.data.synthetic import Damage, SyntheticPair, generate_pairs, write_jsonl
from srm.evaluation.generated import measure
from srm.segmentation import make_segmenter
from srm.training import RewardConfig, SentenceRewardTrainer

STARTS = ("default", "random")


def main() -> None:
    arguments = _arguments()
    result: dict[str, Any] = environment.describe()
    result["settings"] = {name: value for name, value in vars(arguments).items() if name != "json"}
    result["runs"] = runs = []
    for seed in arguments.seeds:
        for start in arguments.starts:
            runs.append(_run(start, seed, arguments))
            last = runs[-1]
            print(
                f"seed {seed}, {start} start: accuracy {last['accuracy']:.3f}, credit AUC {last['auc']:.3f}, lowest sentence bad "
                f"{last['hit_rate']:.0%}, rebound share {last['rebound_share'][-1]:.2f}, warned: {last['warned']}",
                flush=True,
            )
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _run(start: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once; accuracy and credit on held-out pairs, and what training logged about rebounds."""
    set_seed(seed)
    model = SentenceRewardModel.from_backbone(arguments.model)
    recipe = {}
    if start == "random":
        _randomise(model)
        recipe = {"mean_value_coefficient": 0.0, "sentence_reward_l2": 0.0, "attention_learning_rate": 10 * arguments.learning_rate}
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder,
            seed=seed,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            warmup_steps=0.1,
            bf16=True,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **recipe,
        )
        train, test = _pairs(seed, arguments)
        file = Path(folder) / "train.jsonl"
        write_jsonl(train, file)
        rows, _ = encode_comparisons(read_comparisons(str(file)), model.encoder, max_length=config.max_length, progress=False)
        logs = _Logs()
        trainer = SentenceRewardTrainer(model, config, train_dataset=rows, callbacks=[logs])
        with _Warnings() as warnings:
            trainer.train()
    with torch.autocast(config.device.type, dtype=torch.bfloat16):
        found = measure(model, test)
    credit = found.credit.overall
    return {
        "start": start,
        "seed": seed,
        "accuracy": found.accuracy,
        "auc": credit.auc,
        "hit_rate": credit.hit_rate,
        "rebound_share": logs.rebound_share,
        "warned": bool(warnings.records),
    }


def _pairs(seed: int, arguments: argparse.Namespace) -> tuple[list[SyntheticPair], list[SyntheticPair]]:
    """For training and for measuring. One kind of damage and one damaged sentence, as where inversion was first seen."""
    if arguments.input:
        swapped = swapped_pairs(arguments.input, arguments.num_pairs + arguments.num_eval_pairs, seed=seed)
        return swapped[: arguments.num_pairs], swapped[arguments.num_pairs :]
    of_kind = partial(generate_pairs, seed=seed, kinds=("off_topic",), multi_share=0.0)
    return of_kind(arguments.num_pairs, split="train"), of_kind(arguments.num_eval_pairs, split="test")


def swapped_pairs(source: str, count: int, *, seed: int) -> list[SyntheticPair]:
    """`count` chosen answers of 4 to 12 sentences, and beside each the same with one sentence swapped for one of the next answer."""
    segmenter = make_segmenter("punkt")
    rows = [row.fields for row in file_rows(Path(source)) if isinstance(row, RawRow)]
    random = Random(seed)
    random.shuffle(rows)
    answers = []
    for row in rows:
        sentences = tuple(row["chosen"][start:end].strip() for start, end in segmenter.segment(row["chosen"]))
        if 4 <= len(sentences) <= 12 and len(row["prompt"]) + len(row["chosen"]) < 2000 and all(sentences):
            answers.append((row, sentences))
        if len(answers) > count:
            break
    else:
        sys.exit(f"credit_health: {source} has {len(answers)} fitting answers, and {count + 1} are needed")
    pairs = []
    for (row, sentences), (_, others) in pairwise(answers):
        bad = random.randrange(len(sentences))
        pairs.append(
            SyntheticPair(
                id=row["id"],
                domain="swapped",
                prompt=row["prompt"],
                chosen_sentences=sentences,
                rejected_sentences=(*sentences[:bad], random.choice(others), *sentences[bad + 1 :]),
                damaged=(Damage(sentence=bad, kind="off_topic"),),
            )
        )
    return pairs


def _randomise(model: SentenceRewardModel) -> None:
    for name, layer in model.head.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()
            if name == "value":
                torch.nn.init.normal_(layer.weight, std=0.02)


class _Logs(TrainerCallback):
    def __init__(self) -> None:
        self.rebound_share: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "rebound_share" in logs:
            self.rebound_share.append(round(logs["rebound_share"], 4))


class _Warnings(logging.Handler):
    """What srm.training.health warned of while this was open."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def __enter__(self) -> _Warnings:
        logging.getLogger("srm.training.health").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("srm.training.health").removeHandler(self)


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--input", help="pairs file, a row `prompt`, `chosen`, `id` each; generated answers where it is not given")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_pairs", type=int, default=200)
    parser.add_argument("--num_eval_pairs", type=int, default=80)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
