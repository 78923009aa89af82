"""Time the head on one CPU core beside a plain composition of PyTorch's ops, which is its definition.

    python bench/op_cpu.py --json bench/results/op_cpu.json

Both are checked against fp64, and take turns at going first: whoever follows finds the inputs in the caches. No kernel runs here: what
is seen is the price of the custom ops, of their checks, and of a backward that computes anew what autograd would have kept.
"""

from __future__ import annotations

import json
import time
from statistics import median

import environment
import lengths
import ops
import torch
from op_cases import EAGER, OURS, Setting, make_case

WIDTH, TOKENS = 576, (512, 2048, 8192)


def main() -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="packed tokens (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {**environment.describe(), "cells": [measure_head(num_tokens, arguments.rounds) for num_tokens in arguments.tokens]}
    print(json.dumps(result, indent=2))
    environment.write(arguments.json, result)


def measure_head(num_tokens: int, rounds: int) -> dict[str, object]:
    """Median CPU milliseconds, forward and both ways, and the median over pairs of rounds of how much longer ours takes."""
    setting = Setting(
        op="sentence_reward_head",
        lengths=lengths.pack_lengths(lengths.generated_groups(), num_tokens),
        width=WIDTH,
        dtype=torch.float32,
        device=torch.device("cpu"),
        backend="torch",
        compile=lambda name, function, **options: function,
    )
    case = make_case(setting)
    expected = ops.define(case)
    providers = {name: case.providers[provider] for name, provider in (("ours", OURS), ("plain", EAGER))}
    for name, provider in providers.items():
        if problem := ops.verify(provider, case, expected)["problem"]:
            raise SystemExit(f"bench/op_cpu.py: {name}: {problem}")
    jobs = {name: ops.jobs_of(provider, case, expected[2]) for name, provider in providers.items()}
    times: dict[str, dict[str, list[float]]] = {mode: {name: [] for name in jobs} for mode in ("forward", "both")}
    for i in range(2 * (rounds // 2)):
        for mode, by_name in times.items():
            for name in list(jobs)[:: -1 if i % 2 else 1]:
                # The time of the process: that of others on the machine does not count.
                start = time.process_time()
                jobs[name][mode].run(None)
                by_name[name].append(1e3 * (time.process_time() - start))
    return {
        "sizes": case.sizes,
        "rounds": rounds,
        "milliseconds": {mode: {name: round(median(spent), 3) for name, spent in by_name.items()} for mode, by_name in times.items()},
        "ratio": {mode: round(median(a / b for a, b in zip(*map(_pairs, x.values()), strict=True)), 2) for mode, x in times.items()},
    }


def _pairs(spent: list[float]) -> list[float]:
    """Sums of a round in which one went first and the next one, in which the other did."""
    return [a + b for a, b in zip(spent[::2], spent[1::2], strict=True)]


if __name__ == "__main__":
    main()
