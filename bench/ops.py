"""Measure the ops of srm_kernels beside other ways to compute them: verified first, then timed. Under 8 minutes on an H100.

    python bench/ops.py --output_dir bench/results [--input pairs.jsonl.gz]
    python bench/ops.py --smoke --output_dir /tmp/smoke     # tiny sizes on a CPU, to try the code path; no result

Writes ops_<device>.json after every cell, then a table beside it (.md) and plots (.png); `--resume` goes on with what a stopped run
left. Every provider's outputs and gradients are compared with the fp64 definition before its clock starts; one that is wrong gets no
time, and the exit code is 1. Sizes and their order are in op_grid.py, providers and the bytes that must move in op_cases.py and
op_baselines.py, the check in op_check.py, CUDA graphs in op_graphs.py, how time is taken in timing.py, lengths in lengths.py.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import types
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import environment
import lengths
import op_graphs
import op_grid
import op_report
import timing
import torch
from op_cases import COMPILED, OURS, Case, Provider, Setting, make_case
from op_check import Expected, define, gradients, verify
from torch import Tensor

# The fp64 definition of gather's gradient, or the full-sequence head's fp32 gradients: bytes for each of T x D.
BYTES_PER_STATE = 24


def main() -> int:
    arguments = _arguments()
    if not arguments.smoke and not torch.cuda.is_available():
        sys.exit("bench/ops.py: no CUDA device. `--smoke` runs tiny sizes on the CPU, to try the code path.")
    start = time.monotonic()
    device = torch.device("cpu" if arguments.smoke else "cuda")
    backend = "triton" if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1" else "torch"
    compile_backend = "eager" if arguments.smoke else "inductor"
    groups = lengths.real_groups(arguments.input) if arguments.input else lengths.generated_groups()
    result: dict[str, Any] = {
        **environment.describe(),
        "smoke": arguments.smoke,
        "ours": "Triton's interpreter" if backend == "triton" and device.type == "cpu" else backend,
        "torch_compile": compile_backend,
        "fp32_matmul": torch.get_float32_matmul_precision(),
        "lengths": arguments.input or "generated",
        "copy_gb_per_s": copy_bandwidth(device),
        "l2_bytes": torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else None,
        "cells": [],
    }
    earlier = _finished(_stem(result, arguments.output_dir).with_suffix(".json"), result) if arguments.resume else {}
    compiler = Compiler(compile_backend)
    over = f"the time limit of {arguments.time_limit:.0f} s was over"
    for op, width, num_tokens in op_grid.cells(arguments.op, smoke=arguments.smoke):
        cell: dict[str, Any] = {"op": op, "width": width, "num_tokens": num_tokens}
        result["cells"].append(cell)
        if done := earlier.get((op, width, num_tokens)):
            cell |= done
        elif time.monotonic() - start > arguments.time_limit:
            cell["skipped"] = over
        elif (needed := BYTES_PER_STATE * num_tokens * width) > _free_bytes(device):
            cell["skipped"] = f"needs {needed / 2**30:.0f} GiB of free GPU memory"
        else:
            packed = lengths.pack_lengths(groups, num_tokens)
            setting = Setting(
                op=op,
                lengths=packed,
                width=width,
                dtype=torch.float32 if arguments.smoke else torch.bfloat16,
                device=device,
                backend=backend,
                compile=compiler.for_width(op, width),
            )
            try:
                cell |= measure(
                    make_case(setting), device, result["copy_gb_per_s"], arguments.budget, min_rounds=1 if arguments.smoke else 5
                )
            except torch.OutOfMemoryError:  # Of the definition, or of what is kept beside a provider: the other sizes still count.
                cell["skipped"] = "out of GPU memory"
        print(op_report.progress(cell), flush=True)
        environment.write(_stem(result, arguments.output_dir).with_suffix(".json"), result)
    result["seconds"] = round(time.monotonic() - start, 1)
    result["targets"] = op_report.targets(result)
    _write(result, arguments.output_dir)
    if op_report.problems(result):
        return 1
    return environment.UNFINISHED if any(cell.get("skipped") == over for cell in result["cells"]) else 0


class Compiler:
    """`torch.compile`, once for each function and width: token counts are dynamic, widths are not."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.compiled: dict[tuple[str, str, int], Callable[..., Any]] = {}

    def for_width(self, op: str, width: int) -> Callable[..., Callable[..., Any]]:
        def compile_(name: str, function: Callable[..., Any], *, dynamic: bool | None = None) -> Callable[..., Any]:
            key = (op, name, width)
            if key not in self.compiled:
                own = _with_own_code(function, f"{function.__name__}_{width}")
                self.compiled[key] = torch.compile(own, backend=self.backend, dynamic=dynamic)
            return self.compiled[key]

        return compile_


def _with_own_code(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A copy with a code object of its own, by which Dynamo counts compilations and finds sizes that differ between calls."""
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=name)
    own = types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def measure(case: Case, device: torch.device, copy_gb_per_s: float, budget_s: float, min_rounds: int = 5) -> dict[str, Any]:
    """Verifies each provider, then times those that are right. The JSON of a cell."""
    providers: dict[str, dict[str, Any]] = {name: {"problem": reason, "left_out": True} for name, reason in case.left_out.items()}
    expected: Expected = define(case)
    for name, provider in case.providers.items():
        providers[name] = verify(provider, case, expected)
    jobs = {
        (name, mode): job
        for name, provider in case.providers.items()
        if not providers[name]["problem"]
        for mode, job in jobs_of(provider, case, expected[2]).items()
    }
    peaks = {key: timing.peak_bytes(job, device) for key, job in jobs.items()}
    for name in (OURS, COMPILED) if device.type == "cuda" else ():
        if not providers[name]["problem"]:
            graph = op_graphs.name_of(name)
            providers[graph], replays = op_graphs.capture(case.providers[name], case, expected, required=name == OURS)
            # Its memory is its own, so what a replay takes from the allocator says nothing.
            jobs |= {(graph, mode): job for mode, job in replays.items()}
    del expected
    named = {"|".join(key): job for key, job in jobs.items()}
    times = timing.time_interleaved(named, device=device, budget_s=budget_s, min_rounds=min_rounds)
    forward, backward = case.bytes
    moved = {"forward": forward, "backward": backward, "both": forward + backward}
    for name, mode in jobs:
        timed = times[f"{name}|{mode}"]
        gb_per_s = moved[mode] / timed.median_ms / 1e6
        providers[name].setdefault("modes", {})[mode] = {
            **asdict(timed),
            "peak_bytes": peaks.get((name, mode)),
            "gb_per_s": gb_per_s,
            "share_of_copy": gb_per_s / copy_gb_per_s,
        }
    return {"sizes": case.sizes, "bytes": moved, "providers": providers}


def jobs_of(provider: Provider, case: Case, flowing: list[Tensor]) -> dict[str, timing.Job]:
    jobs = {
        "forward": timing.Job(run=lambda _: provider.run(**case.floats)),
        "backward": timing.Job(prepare=lambda: provider.run(**case.floats), run=lambda outputs: gradients(outputs, case, flowing)),
        "both": timing.Job(run=lambda _: gradients(provider.run(**case.floats), case, flowing)),
    }
    return {mode: jobs[mode] for mode in provider.modes}


def copy_bandwidth(device: torch.device) -> float:
    """GB/s, read and write together, of copying a buffer far larger than any cache (on the CPU a small one)."""
    source = torch.zeros((1 << 30) if device.type == "cuda" else (1 << 24), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timed = timing.time_interleaved({"copy": timing.Job(run=lambda _: target.copy_(source))}, device=device, min_rounds=20, budget_s=0.2)
    return 2 * source.numel() / timed["copy"].median_ms / 1e6


def _finished(path: Path, result: dict[str, Any]) -> dict[tuple[str, int, int], dict[str, Any]]:
    """The cells that an earlier run measured under the same conditions."""
    found = environment.read_as_here(path)
    same = all(found.get(name) == result[name] for name in ("smoke", "lengths", "torch_compile"))
    return {(c["op"], c["width"], c["num_tokens"]): c for c in found.get("cells", []) if same and "providers" in c}


def _free_bytes(device: torch.device) -> float:
    if device.type != "cuda":
        return math.inf
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _write(result: dict[str, Any], folder: Path) -> None:
    stem = _stem(result, folder)
    environment.write(stem.with_suffix(".json"), result)
    table = "\n".join(op_report.table(result)) + "\n"
    stem.with_suffix(".md").write_text(table)
    print("\n" + table)
    for path in op_report.plot(result, stem):
        print(f"wrote {path}")
    print(f"wrote {stem}.json and .md after {result['seconds']} s")


def _stem(result: dict[str, Any], folder: Path) -> Path:
    """The files' path without its ending."""
    words = "".join(c if c.isalnum() else " " for c in str(result["device"]).split(" (")[0]).lower().split()
    return folder / ("ops_smoke" if result["smoke"] else f"ops_{'_'.join(words)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("bench/results"))
    parser.add_argument("--input", help="preference pairs to take lengths from; a distribution fitted to public ones where it is not given")
    parser.add_argument("--op", default="", help="only ops whose name contains this")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds to time each op and size, all providers together")
    parser.add_argument("--time_limit", type=float, default=420.0, help="seconds after which no further op and size begins")
    parser.add_argument("--resume", action="store_true", help="keep the cells that an earlier run on the same code and device measured")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU; the numbers mean nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
