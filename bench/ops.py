"""Measure the ops of srm_kernels beside other ways to compute them: verified first, then timed. Under 8 minutes on an H100.

    python bench/ops.py --output_dir bench/results [--input pairs.jsonl.gz]
    python bench/ops.py --smoke --output_dir /tmp/smoke     # tiny sizes on a CPU, to try the code path; no result

Writes ops_<device>.json, a table beside it (.md) and plots (.png). Every provider's outputs and gradients are compared with the fp64
definition before its clock starts; one that is wrong gets no time, and the exit code is 1. Sizes, baselines and the bytes that must move
are in op_cases.py and op_baselines.py, how time is taken in timing.py, how lengths are drawn in lengths.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import environment
import lengths
import op_report
import timing
import torch
from op_cases import Case, Provider, Setting, make_case
from torch import Tensor

DTYPE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 0.0, torch.float16: 2e-3, torch.bfloat16: 8e-3}
WHOLE_TOLERANCE = 0.1
CHUNK = 1 << 26
# The fp64 definition of gather's gradient, or the full-sequence head's fp32 gradients: bytes for each of T x D.
BYTES_PER_STATE = 24
WIDTHS, TOKENS = (576, 2048, 4096, 8192), (16384, 65536, 262144)
# Op to widths and token counts, the ones that matter most first.
GRID: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "sentence_reward_head": (WIDTHS, TOKENS),
    "gather_boundaries": (WIDTHS, TOKENS),
    "packed_gae": ((0,), TOKENS),
    "sentence_attention_pool": ((256,), TOKENS),
    "segment_softmax": ((0, 16), TOKENS[1:]),
    "token_rewards": ((0,), TOKENS[1:]),
    "difference_rewards": ((0,), TOKENS[1:]),
    "bradley_terry_loss": ((64, 4096), TOKENS[:1]),
}
SMOKE_GRID = {op: (tuple(min(width, 16) for width in widths[:1]), (512,)) for op, (widths, _) in GRID.items()}


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
    compiler = Compiler(compile_backend)
    for op, width, num_tokens in _cells(SMOKE_GRID if arguments.smoke else GRID, arguments.op):
        cell: dict[str, Any] = {"op": op, "width": width, "num_tokens": num_tokens}
        result["cells"].append(cell)
        if time.monotonic() - start > arguments.time_limit:
            cell["skipped"] = f"the time limit of {arguments.time_limit:.0f} s was over"
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
        _write_json(result, arguments.output_dir)  # So that a run that is cut short leaves what it has.
    result["seconds"] = round(time.monotonic() - start, 1)
    result["targets"] = op_report.targets(result)
    _write(result, arguments.output_dir)
    return 1 if op_report.problems(result) else 0


class Compiler:
    """`torch.compile`, once for each function and width: token counts are dynamic, widths are not."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.compiled: dict[tuple[str, str, int], Callable[..., Any]] = {}

    def for_width(self, op: str, width: int) -> Callable[..., Callable[..., Any]]:
        def compile_(name: str, function: Callable[..., Any], *, dynamic: bool | None = None) -> Callable[..., Any]:
            if (op, name, width) not in self.compiled:
                if not any(key[::2] == (op, width) for key in self.compiled):
                    # Dynamo counts compilations of a code object over all widths and stops at eight.
                    torch._dynamo.reset()
                self.compiled[op, name, width] = torch.compile(function, backend=self.backend, dynamic=dynamic)
            return self.compiled[op, name, width]

        return compile_


def measure(case: Case, device: torch.device, copy_gb_per_s: float, budget_s: float, min_rounds: int = 5) -> dict[str, Any]:
    """Verifies each provider, then times those that are right. The JSON of a cell."""
    providers: dict[str, dict[str, Any]] = {name: {"problem": reason, "left_out": True} for name, reason in case.left_out.items()}
    expected = define(case)
    for name, provider in case.providers.items():
        providers[name] = verify(provider, case, expected)
    gradients = expected[2]
    del expected
    jobs = {
        (name, mode): job
        for name, provider in case.providers.items()
        if not providers[name]["problem"]
        for mode, job in jobs_of(provider, case, gradients).items()
    }
    peaks = {key: timing.peak_bytes(job, device) for key, job in jobs.items()}
    named = {"|".join(key): job for key, job in jobs.items()}
    times = timing.time_interleaved(named, device=device, budget_s=budget_s, min_rounds=min_rounds)
    forward, backward = case.bytes
    moved = {"forward": forward, "backward": backward, "both": forward + backward}
    for (name, mode), peak in peaks.items():
        timed = times[f"{name}|{mode}"]
        gb_per_s = moved[mode] / timed.median_ms / 1e6
        providers[name].setdefault("modes", {})[mode] = {
            **asdict(timed),
            "peak_bytes": peak,
            "gb_per_s": gb_per_s,
            "share_of_copy": gb_per_s / copy_gb_per_s,
        }
    return {"sizes": case.sizes, "bytes": moved, "providers": providers}


def define(case: Case) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs and gradients of the fp64 definition, kept in fp32, and the gradients that flow in: exact in bf16, so in every dtype."""
    exact = {name: x.detach().double().requires_grad_() for name, x in case.floats.items()}
    outputs = case.definition(**exact)
    flowing = []
    for i, x in enumerate(outputs[: case.grad_outputs]):
        generator = torch.Generator(x.device).manual_seed(100 + i)
        # Around 1, not 0: the gradient of a bias is their sum, and rounding would be most of a sum that cancels.
        flowing.append((1 + torch.randn(x.shape, generator=generator, device=x.device)).bfloat16().float())
    grads = torch.autograd.grad(outputs[: case.grad_outputs], list(exact.values()), [g.double() for g in flowing])
    return [x.detach().float() for x in outputs], [x.float() for x in grads], flowing


def verify(provider: Provider, case: Case, expected: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> dict[str, Any]:
    """`max_error`, in units of what is allowed, and `problem`: why it gets no time, or None."""
    wanted_outputs, wanted_grads, flowing = expected
    try:
        outputs = provider.run(**case.floats)
        pairs = list(zip(provider.finish(outputs), wanted_outputs, strict=False))
        if "backward" in provider.modes:
            pairs += zip(_gradients(outputs, case, flowing), wanted_grads, strict=True)
        error = max(_error(got.detach(), wanted, provider.tolerance) for got, wanted in pairs)
    except torch.OutOfMemoryError:
        return {"problem": "out of memory", "left_out": True}
    except Exception as failure:  # A baseline that cannot run is a finding, and the others still count.
        return {"problem": f"failed: {type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure).strip() else ''}"}
    return {"max_error": error, "problem": None if error <= 1 else f"wrong: an element is off by {error:.1f} times what is allowed"}


def _gradients(outputs: tuple[Tensor, ...], case: Case, flowing: list[Tensor]) -> tuple[Tensor, ...]:
    used = outputs[: case.grad_outputs]
    return torch.autograd.grad(used, list(case.floats.values()), [g.to(x.dtype) for g, x in zip(flowing, used, strict=True)])


def _error(got: Tensor, wanted: Tensor, tolerance: float) -> float:
    """How wrong, where 1 is the most allowed: the worst element beside its size plus the root mean square of all, and the whole beside
    its norm. Infinite where it is not a number."""
    if got.shape != wanted.shape:
        return math.inf
    if wanted.numel() == 0:
        return 0.0
    allowed = max(tolerance, DTYPE_TOLERANCE[got.dtype])
    norm = max(torch.linalg.vector_norm(wanted).item(), 1e-30)
    worst = square = 0.0
    for a, b in zip(got.flatten().split(CHUNK), wanted.flatten().split(CHUNK), strict=True):
        distance = (a.float() - b).abs()
        square += distance.square().sum().item()
        worst = max(worst, _or_infinite((distance / (b.abs() + norm / math.sqrt(wanted.numel()))).max().item()))
    return max(worst / allowed, _or_infinite(math.sqrt(square)) / norm / min(allowed, WHOLE_TOLERANCE))


def _or_infinite(x: float) -> float:
    return x if math.isfinite(x) else math.inf


def jobs_of(provider: Provider, case: Case, flowing: list[Tensor]) -> dict[str, timing.Job]:
    jobs = {
        "forward": timing.Job(run=lambda _: provider.run(**case.floats)),
        "backward": timing.Job(prepare=lambda: provider.run(**case.floats), run=lambda outputs: _gradients(outputs, case, flowing)),
        "both": timing.Job(run=lambda _: _gradients(provider.run(**case.floats), case, flowing)),
    }
    return {mode: jobs[mode] for mode in provider.modes}


def copy_bandwidth(device: torch.device) -> float:
    """GB/s, read and write together, of copying a buffer far larger than any cache (on the CPU a small one)."""
    source = torch.zeros((1 << 30) if device.type == "cuda" else (1 << 24), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timed = timing.time_interleaved({"copy": timing.Job(run=lambda _: target.copy_(source))}, device=device, min_rounds=20, budget_s=0.2)
    return 2 * source.numel() / timed["copy"].median_ms / 1e6


def _cells(grid: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], only: str) -> Iterator[tuple[str, int, int]]:
    for op, (widths, token_counts) in grid.items():
        if only in op:
            yield from ((op, width, num_tokens) for width in widths for num_tokens in token_counts)


def _free_bytes(device: torch.device) -> float:
    if device.type != "cuda":
        return math.inf
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _write(result: dict[str, Any], folder: Path) -> None:
    stem = _write_json(result, folder)
    table = "\n".join(op_report.table(result)) + "\n"
    stem.with_name(f"{stem.name}.md").write_text(table)
    print("\n" + table)
    for path in op_report.plot(result, stem):
        print(f"wrote {path}")
    print(f"wrote {stem}.json and .md after {result['seconds']} s")


def _write_json(result: dict[str, Any], folder: Path) -> Path:
    """Returns the path without its ending."""
    folder.mkdir(parents=True, exist_ok=True)
    words = "".join(c if c.isalnum() else " " for c in str(result["device"]).split(" (")[0]).lower().split()
    stem = folder / ("ops_smoke" if result["smoke"] else f"ops_{'_'.join(words)}")
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return stem


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("bench/results"))
    parser.add_argument("--input", help="preference pairs to take lengths from; a distribution fitted to public ones where it is not given")
    parser.add_argument("--op", default="", help="only ops whose name contains this")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds to time each op and size, all providers together")
    parser.add_argument("--time_limit", type=float, default=420.0, help="seconds after which no further op and size begins")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU; the numbers mean nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
