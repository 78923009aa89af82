"""srm-score --engine ray with several workers beside one: rows a second, in turns, each worker with a core or a GPU of its own.

    python bench/ray_workers.py --json bench/results/ray_workers_cpu.json

It calls what the command calls (`srm.integrations.ray.score_file`) on a Ray of its own. A round scores the same generated rows with one
worker and with `--workers`. The clock runs from the end of each worker's first chunk to the last row, so that starting Ray's processes and
loading the model do not count; the seconds of the whole call are in the JSON too. All files must be equal to the byte, or nothing is
reported. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment
import torch
from providers import Models
from workloads import random_text

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    # Workers find this checkout as we do, and each has its threads from Ray.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.pop("OMP_NUM_THREADS", None)
    import ray

    with tempfile.TemporaryDirectory() as folder:
        models = Models(arguments.model, dtype=getattr(torch, arguments.dtype), device=torch.device("cpu"))
        models.reward_model(models.backbone).save_pretrained(f"{folder}/model")
        _write_rows(Path(folder) / "rows.jsonl", arguments)
        ray.init(address="local", log_to_driver=False, logging_level="warning")
        try:
            rounds = [_round(number, folder, arguments) for number in range(arguments.rounds)]
        finally:
            ray.shutdown()
    result = {**environment.describe(), "ray": importlib.metadata.version("ray"), "settings": environment.settings(arguments)}
    result |= {"load_at_the_end": os.getloadavg(), **_summary(rounds, arguments)}
    speeds = ", ".join(f"{count} workers {speed:.2f} rows/s" for count, speed in result["rows_per_second"].items())
    print(f"{speeds}; {result['ratio']:.2f} times ({result['low']:.2f} to {result['high']:.2f})")
    environment.write(arguments.json, result)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = environment.parser(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="backbone, name or folder (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--workers", type=int, default=2, help="beside one (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=512, help="of a round and a side (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=100, help="words, shared by two responses (default: %(default)s)")
    parser.add_argument("--response", type=int, default=100, help="words (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    return parser.parse_args(argv)


def _write_rows(path: Path, arguments: argparse.Namespace) -> None:
    draw = random.Random(0)

    with path.open("w", encoding="utf-8") as file:
        for number in range(arguments.rows):
            if number % 2 == 0:
                prompt = random_text(draw, arguments.prompt)
            file.write(json.dumps({"id": str(number), "prompt": prompt, "response": random_text(draw, arguments.response)}) + "\n")


def _round(number: int, folder: str, arguments: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """Who comes first changes from round to round."""
    counts = [1, arguments.workers]
    measured = {count: _score(count, folder, arguments) for count in counts[:: -1 if number % 2 else 1]}
    for count in counts:
        environment.say(f"round {number + 1}, {count} workers: {measured[count]}")
    return measured


def _score(count: int, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    from srm.integrations.ray import score_file
    from srm.scoring.file import RowSettings

    output, expected = Path(folder) / f"{count}.jsonl", Path(folder) / "expected.jsonl"
    written: list[tuple[float, int]] = []
    began = time.perf_counter()
    score_file(
        f"{folder}/model",
        f"{folder}/rows.jsonl",
        output,
        num_rows=arguments.rows,
        num_workers=count,
        num_cpus=1,
        num_gpus=int(arguments.device == "cuda"),
        identity={},
        settings=RowSettings(overlong="error", max_length=None, packing=None, tokens_per_batch=8192),
        overwrite=True,
        on_scored=lambda rows: written.append((time.perf_counter(), rows)),
    )
    ended = time.perf_counter()
    if not expected.exists():
        output.rename(expected)
    elif output.read_bytes() != expected.read_bytes():
        sys.exit(f"ray_workers: {count} workers wrote another file; nothing is reported")
    # The first call says that nothing was resumed. Then one chunk of each worker.
    since, rows = written[count][0], sum(rows for _, rows in written[count + 1 :])
    return {"rows": rows, "seconds": round(ended - since, 3), "whole_call": round(ended - began, 3), "chunks": len(written) - 1}


def _summary(rounds: list[dict[int, dict[str, Any]]], arguments: argparse.Namespace) -> dict[str, Any]:
    speeds = {count: [one[count]["rows"] / one[count]["seconds"] for one in rounds] for count in (1, arguments.workers)}
    ratios = [many / one for one, many in zip(speeds[1], speeds[arguments.workers], strict=True)]
    return {
        "rounds": rounds,
        "rows_per_second": {count: round(statistics.median(values), 3) for count, values in speeds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
    }


if __name__ == "__main__":
    main()
