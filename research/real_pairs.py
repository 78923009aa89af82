"""Train on real preference pairs and score held-out ones with the commands a user types, and write down what came out.

    python -m research.real_pairs --data FOLDER --json research/results/real_pairs_cpu.json

FOLDER holds pairs_train.jsonl.gz and pairs_test.jsonl.gz with the columns prompt, chosen, rejected, subset (README.md says where they
come from). Training takes the first 512 pairs, scoring 500 drawn from the test file with a fixed seed. Half an hour on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import environment
from research.commands import run_command
from srm.evaluation.pairs import accuracy_by_subset, pair_outcomes, scored_rows


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.output_dir
    work.mkdir(parents=True, exist_ok=True)
    drawn = _draw(arguments.data / "pairs_test.jsonl.gz", arguments.num_test, arguments.seed, work / "drawn.jsonl")
    train = shlex.split(
        f"srm-train --model_name_or_path {arguments.model} --dataset_name {arguments.data / 'pairs_train.jsonl.gz'} "
        f"--output_dir {work / 'model'} --max_pairs {arguments.num_train} --max_length 1024 "
        "--num_train_epochs 1 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --learning_rate 2e-5 --bf16 "
        "--logging_steps 8 --save_strategy no --report_to none --overwrite_output_dir"
    )
    score = shlex.split(
        f"srm-score --model {work / 'model'} --input {drawn} --output {work / 'scores.jsonl'} "
        "--dtype bfloat16 --max_length 2048 --overlong truncate_response --overwrite"
    )
    result = {
        "train": json.loads((work / "train.json").read_text()) if arguments.score_only else _train(train, work),
        "score": {**environment.describe(), **_run(score, work / "score.log")},
        "num_train": arguments.num_train,
        "accuracy": [asdict(row) for row in accuracy_by_subset(pair_outcomes(scored_rows(str(drawn), work / "scores.jsonl")))],
    }
    environment.write(arguments.json, result)
    for row in result["accuracy"]:
        print(f"{row['subset']:24} {row['num_pairs']:5} pairs   model {row['accuracy']:.1%}   longer wins {row['longer_wins']:.1%}")


def _arguments() -> argparse.Namespace:
    parser = environment.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--num_train", type=int, default=512)
    parser.add_argument("--num_test", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/real_pairs"))
    parser.add_argument("--score_only", action="store_true", help="take the model that an earlier run left in --output_dir")
    return parser.parse_args()


def _draw(source: Path, count: int, seed: int, target: Path) -> Path:
    with gzip.open(source, "rt", encoding="utf-8") as file:
        lines = list(file)
    target.write_text("".join(random.Random(seed).sample(lines, count)), encoding="utf-8")
    return target


def _train(command: list[str], work: Path) -> dict[str, Any]:
    record = {**environment.describe(), **_run(command, work / "train.log")}
    environment.write(work / "train.json", record)
    return record


def _run(command: list[str], log: Path) -> dict[str, Any]:
    print("$", shlex.join(command), flush=True)
    return {"command": shlex.join(command), "seconds": run_command(command, log)}


if __name__ == "__main__":
    main()
