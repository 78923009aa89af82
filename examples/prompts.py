"""Prompts from the Hub as files, for hosts that read nothing else (verl, slime):

    python examples/prompts.py --output outputs/prompts                            # trl-lib/ultrafeedback-prompt
    python examples/prompts.py --dataset prompts.jsonl --output outputs/prompts    # your own: rows with a `prompt`, text or messages

Writes train.jsonl and test.jsonl, a row a prompt, as messages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import load_dataset


def rows_of(name: str, split: str) -> Iterable[Mapping[str, Any]]:
    """A split of a data set on the Hub. Of a local JSONL file the first of every ten rows is for the test."""
    if not name.endswith((".json", ".jsonl")):
        return load_dataset(name, split=split)
    rows = load_dataset("json", data_files=name, split="train")
    return [row for number, row in enumerate(rows) if (number % 10 == 0) == (split == "test")]


def row_of(prompt: str | list[dict[str, str]]) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    # verl asks for a source and a truth. Its reward function looks for the prompt in `extra_info`, slime's in `metadata`.
    own = {"prompt": messages}
    return {"prompt": messages, "data_source": "srm", "reward_model": {"ground_truth": ""}, "extra_info": own, "metadata": own}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="trl-lib/ultrafeedback-prompt", help="a name on the Hub, or a JSONL file")
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with (arguments.output / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row_of(row["prompt"]), ensure_ascii=False) + "\n" for row in rows_of(arguments.dataset, split))


if __name__ == "__main__":
    main()
