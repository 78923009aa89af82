"""Train on real preference pairs and score held-out ones with the commands a user types, and write down what came out.

    python -m research.real_pairs --data FOLDER --json research/results/real_pairs_cpu.json

FOLDER holds pairs_train.jsonl.gz and pairs_test.jsonl.gz with the columns prompt, chosen, rejected, subset (README.md says where they
come from). Training takes the first 512 pairs, scoring 500 drawn from the test file with a fixed seed. A model that is
in --output_dir is not trained again. Half an hour on two cores.
"""

from __future__ import annotations

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

NUM_TRAIN, NUM_TEST = 512, 500


def main() -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/real_pairs"), help="rows, model, logs and scores")
    arguments = parser.parse_args()
    work: Path = arguments.output_dir
    work.mkdir(parents=True, exist_ok=True)
    with gzip.open(arguments.data / "pairs_test.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = random.Random(0).sample(list(file), NUM_TEST)
    drawn = work / "drawn.jsonl"
    drawn.write_text("".join(lines), encoding="utf-8")
    train = (
        f"srm-train --model_name_or_path smollm2-135m --dataset_name {arguments.data / 'pairs_train.jsonl.gz'} "
        f"--output_dir {work / 'model'} --max_pairs {NUM_TRAIN} --max_length 1024 "
        "--num_train_epochs 1 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --learning_rate 2e-5 --bf16 "
        "--logging_steps 8 --save_strategy no --report_to none --overwrite_output_dir"
    )
    score = (
        f"srm-score --model {work / 'model'} --input {drawn} --output {work / 'scores.jsonl'} "
        "--dtype bfloat16 --max_length 2048 --overlong truncate_response --overwrite"
    )
    trained = work / "train.json"
    if not trained.exists():
        environment.write(trained, _run(train, work / "train.log"))
    result = {
        "train": json.loads(trained.read_text(encoding="utf-8")),
        "score": _run(score, work / "score.log"),
        "num_train": NUM_TRAIN,
        "accuracy": [asdict(row) for row in accuracy_by_subset(pair_outcomes(scored_rows(str(drawn), work / "scores.jsonl")))],
    }
    environment.write(arguments.json, result)
    for row in result["accuracy"]:
        print(f"{row['subset']:24} {row['num_pairs']:5} pairs   model {row['accuracy']:.1%}   longer wins {row['longer_wins']:.1%}")


def _run(command: str, log: Path) -> dict[str, Any]:
    print("$", command, flush=True)
    return {**environment.describe(), "command": command, "seconds": run_command(shlex.split(command), log)}


if __name__ == "__main__":
    main()
