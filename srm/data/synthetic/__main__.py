"""Write generated pairs to a JSONL file.

python -m srm.data.synthetic --num_pairs 400 --split train --output train.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from srm.data.synthetic.pairs import generate_pairs, write_jsonl


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m srm.data.synthetic", description="Write generated preference pairs to a JSONL file.")
    parser.add_argument("--num_pairs", type=int, required=True, help="number of pairs")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="test uses templates that train never shows")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other pairs")
    parser.add_argument("--output", type=Path, required=True, help="JSONL file to write")
    arguments = parser.parse_args(argv)
    if arguments.num_pairs < 1:
        # Before the file is opened, which empties one that is there.
        parser.error(f"--num_pairs must be at least 1, got {arguments.num_pairs}.")
    pairs = generate_pairs(arguments.num_pairs, split=arguments.split, seed=arguments.seed)
    write_jsonl(pairs, arguments.output)
    print(f"{arguments.output}: {len(pairs)} pairs")


if __name__ == "__main__":
    main()
