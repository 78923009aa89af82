"""What the ops cost the host, and what the head launches: forward and backward on one CPU core, with launches that do nothing.

    python bench/op_host.py --json bench/results/op_host_cpu.json
    python bench/op_host.py --against CHECKOUT --json ...      # beside another version of srm_kernels, in turns

A stand-in for Triton's driver takes each launch and drops it, behind all that Triton does in Python before. Products on tensor cores
become products of one number. So the results are nonsense, and the time is that of PyTorch's dispatch, of autograd, and of Triton's and
our own Python. A CUDA device adds the driver's calls.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import environment
import lengths
import op_cases
import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

import srm_kernels
from srm_kernels import backend
from srm_kernels.ops import registration
from srm_kernels.ops.sentence_reward_head import op, tensor_cores

WIDTH, ATTENTION, TOKENS = 64, 16, 512
# Ops of PyTorch that make or look at a tensor and leave the device alone.
FREE = {
    "empty",
    "empty_like",
    "new_empty",
    "slice",
    "t",
    "transpose",
    "view",
    "detach",
    "as_strided",
    "alias",
    "expand",
    "select",
    "permute",
}


@dataclass
class Launches:
    """How often each kernel was launched, and the bytes of all the tensors that it was given: each is read or written once."""

    names: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, *tensors: Tensor) -> None:
        """One launch."""
        self.names[name] += 1
        self.bytes[name] += sum(x.numel() * x.element_size() for x in tensors)

    def moved(self, num_tokens: int, num_rows: int, width: int) -> int:
        """Bytes of all of them. Of the bf16 `hidden` [num_tokens, width] only `num_rows` are read."""
        return self.bytes.total() - 2 * width * (num_tokens - num_rows)


class _Dropped:
    """A compiled kernel that does nothing, and says so where somebody listens."""

    function = packed_metadata = None

    def __init__(self, name: str, launches: Launches | None) -> None:
        self.name, self.launches = name, launches

    def launch_metadata(self, *_: Any) -> None:
        """None, as without a profiler."""

    def run(self, *arguments: Any) -> None:
        """The launch."""
        if self.launches is not None:
            self.launches.add(self.name, *(x for x in arguments if isinstance(x, Tensor)))


class _Other(TorchDispatchMode):
    """Adds what PyTorch itself would launch."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.launches.add(name, *(x for x in (*args, out) if isinstance(x, Tensor)))
        return out


@contextmanager
def dropped_launches(*, watch: bool = False) -> Iterator[Launches]:
    """Kernels are asked for on CPU tensors and do nothing; `watch` sees PyTorch's own as well, which takes its time."""
    launches, caches = Launches(), []

    def compile_nothing(self: Any, key: Any, signature: Any, device: Any, *_: Any) -> _Dropped:
        cache = self.device_caches[device][0]
        caches.append(cache)
        return cache.setdefault(key, _Dropped(self.fn.__name__, launches if watch else None))

    def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        torch.mm(a[:1, :1], b[:1, :1])
        return a.new_empty(a.shape[0], b.shape[1], dtype=dtype)

    def watched_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        out = a.new_empty(a.shape[0], b.shape[1], dtype=dtype)
        launches.add("product", a, b, out)
        return out

    class Watched(tensor_cores.TensorCores):
        def forward(self, *arguments: Any) -> Any:
            with _Other(launches):
                return super().forward(*arguments)

        def backward(self, *arguments: Any) -> Any:
            with _Other(launches):
                return super().backward(*arguments)

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: "none", get_current_stream=lambda device: 0
    )
    replaced = [
        (triton.runtime.driver, "_active", driver),
        (triton.runtime.jit.JITFunction, "_do_compile", compile_nothing),
        (backend, "_triton_obstacle", lambda device, in_interpreter: None),
        (registration, "values_readable", lambda *tensors: False),  # Of a GPU's tensors nobody reads the values.
        (tensor_cores, "product", watched_product if watch else product),
        (op, "TENSOR_CORES", Watched() if watch else op.TENSOR_CORES),
    ]
    before = [(where, name, getattr(where, name)) for where, name, _ in replaced]
    backend._resolve.cache_clear()
    for where, name, value in replaced:
        setattr(where, name, value)
    try:
        yield launches
    finally:
        for where, name, value in before:
            setattr(where, name, value)
        backend._resolve.cache_clear()
        for cache in caches:
            cache.clear()


def make_step(dtype: torch.dtype, *, width: int = WIDTH, attention: int = ATTENTION, num_tokens: int = TOKENS, outputs: int = 4) -> Any:
    """A function that runs the head forward and backward; the first `outputs` of its outputs have a gradient."""
    layout = lengths.pack_lengths(lengths.generated_groups(), num_tokens).layout
    _ = layout.order
    hidden = torch.empty(num_tokens, width, dtype=dtype, requires_grad=True)
    shapes = ((1, width), (1,), (attention, width), (attention,), (attention, width), (attention,))
    leaves = [hidden, *(torch.empty(shape, requires_grad=True) for shape in shapes)]

    def step() -> None:
        out = srm_kernels.sentence_reward_head(leaves[0], layout, *leaves[1:], backend="triton")[:outputs]
        torch.autograd.grad(out, leaves, out)

    return step


def op_step(op: str) -> Callable[[], None]:
    """A function that runs another op forward and backward, on tensors of fp32."""
    device = torch.device("cpu")
    packed = lengths.pack_lengths(lengths.generated_groups(), TOKENS)
    width = {"gather_boundaries": WIDTH, "sentence_attention_pool": ATTENTION, "bradley_terry_loss": 64}.get(op, 0)
    setting = op_cases.Setting(
        op=op,
        lengths=packed,
        width=width,
        dtype=torch.float32,
        device=device,
        backend="triton",
        compile=lambda name, function, **_: function,
    )
    case = op_cases.make_case(setting)
    run, inputs = case.providers[op_cases.OURS].run, case.floats

    def step() -> None:
        out = run(**inputs)[: case.grad_outputs]
        torch.autograd.grad(out, list(inputs.values()), out)

    return step


def microseconds(step: Any, rounds: int) -> dict[str, float]:
    """CPU time of the process, the median and what a tenth of the rounds stays below: on a busy machine caches are other programs' too."""
    for _ in range(20):
        step()
    spent = []
    for _ in range(rounds):
        start = time.process_time()
        step()
        spent.append(1e6 * (time.process_time() - start))
    return {"median": round(median(spent), 1), "tenth": round(sorted(spent)[rounds // 10], 1)}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Every op with what this process imports as srm_kernels."""
    with dropped_launches():
        steps = {op: op_step(op) for op in op_cases.OPS if op != "sentence_reward_head"}
        steps |= {f"sentence_reward_head {name}": make_step(getattr(torch, name)) for name in ("bfloat16", "float32")}
        return {op: microseconds(step, rounds) for op, step in steps.items()}


def commit_of(folder: Path) -> str:
    """Of a checkout, as git names it."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def in_turns(checkouts: dict[str, Path], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """For each checkout its `measure`, the medians over turns of a process each; beside them the median of the ratios in a turn."""
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in checkouts}
    for turn in range(arguments.turns):
        for name, folder in checkouts.items():
            environment.say(f"turn {turn + 1} of {arguments.turns}: {name}")
            command = [sys.executable, __file__, "--rounds", str(arguments.rounds), "--child"]
            path = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
            child = subprocess.run(command, env={**os.environ, **path}, stdout=subprocess.PIPE, text=True, check=True)
            answer = json.loads(child.stdout)
            if Path(answer["imported"]).resolve() != folder.resolve() / "srm_kernels" / "__init__.py":
                raise SystemExit(f"{name}: {answer['imported']} was imported, not what lies in {folder}.")
            found[name].append(answer["microseconds"])
    result = {
        name: {op: {key: round(median(turn[op][key] for turn in turns), 1) for key in turns[0][op]} for op in turns[0]}
        for name, turns in found.items()
    }
    if "before" in found:
        pairs = list(zip(found["now"], found["before"], strict=True))
        result["now / before, tenth"] = {
            op: round(median(now[op]["tenth"] / before[op]["tenth"] for now, before in pairs), 3) for op in pairs[0][0]
        }
    return result


def main() -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--against", type=Path, help="another checkout of this project, which the table calls `before`")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        print(json.dumps({"imported": srm_kernels.__file__, "microseconds": measure(arguments.rounds)}))
        return
    checkouts = {"now": Path(__file__).resolve().parents[1]}
    if arguments.against is not None:
        checkouts = {"before": arguments.against, **checkouts}
    result: dict[str, Any] = {**environment.describe(), "commits": {name: commit_of(folder) for name, folder in checkouts.items()}}
    result |= {"microseconds": in_turns(checkouts, arguments), "launches": {}}
    with dropped_launches(watch=True) as launches:
        make_step(torch.bfloat16)()
        result["launches"]["bf16"] = dict(launches.names)
    print(json.dumps(result, indent=2))
    environment.write(arguments.json, result)


if __name__ == "__main__":
    main()
