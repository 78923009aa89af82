"""Train on real preference pairs and score held-out ones with the commands a user types, and write down what came out.

    python bench/real_pairs.py --data ../shared/data --json bench/results/real_pairs_cpu.json

DATA holds pairs_train.jsonl.gz and pairs_test.jsonl.gz with the columns prompt, chosen, rejected, subset (docs/results.md says where
they come from). Training takes the first 512 pairs, scoring 500 drawn from the test file with a fixed seed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import environment

from srm.evaluation.pairs import accuracy_by_subset, pair_outcomes, scored_rows


def main() -> None:
    arguments = _arguments()
    work = Path(arguments.output_dir)
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
    if arguments.json:
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
    for row in result["accuracy"]:
        print(f"{row['subset']:24} {row['num_pairs']:5} pairs   model {row['accuracy']:.1%}   longer wins {row['longer_wins']:.1%}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--num_train", type=int, default=512)
    parser.add_argument("--num_test", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="outputs/real_pairs")
    parser.add_argument("--score_only", action="store_true", help="take the model that an earlier run left in --output_dir")
    parser.add_argument("--json")
    return parser.parse_args()


def _draw(source: Path, count: int, seed: int, target: Path) -> Path:
    with gzip.open(source, "rt", encoding="utf-8") as file:
        lines = list(file)
    target.write_text("".join(random.Random(seed).sample(lines, count)), encoding="utf-8")
    return target


def _train(command: list[str], work: Path) -> dict[str, object]:
    record = {**environment.describe(), **_run(command, work / "train.log")}
    (work / "train.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _run(command: list[str], log: Path) -> dict[str, object]:
    """Run one of our commands, its output kept in `log`; the command and its seconds."""
    print("$", shlex.join(command), flush=True)
    start = time.monotonic()
    with log.open("w") as file:
        done = subprocess.run([sys.executable, "-m", f"srm.cli.{command[0][4:]}", *command[1:]], stdout=file, stderr=file, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed with exit code {done.returncode}; its output is in {log}")
    return {"command": shlex.join(command), "seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    main()
