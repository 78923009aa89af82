"""What bench/gpu.py runs, in the order in which it matters, and what each part needs. docs/gpu-plan.md says what each answers.

In a command `{seconds}` and `{minutes}` become what the part may take, `{out}` the folder of the reports, `{python}` the interpreter.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Part", "Setup", "gpu_parts"]

DATA_FILES = ("pairs_train", "pairs_test", "suite_dev", "error_spans")
OP_TESTS = ("tests/srm_kernels", "tests/srm/training/test_loss_check.py")
ATTENTION_TESTS = "tests/srm/packing/test_gpu.py"
HasPackage = Callable[[str], bool]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A command, and how much time it may take.

    seconds: its share; what parts before it leave over comes on top. least: with less left it is not begun.
    missing: what it lacks here, or None. uses: what must be among the reports, and the part that writes it.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    least: float = 30.0
    missing: str | None = None
    uses: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the user gave.

    lengths: preference pairs to take lengths from. model: folder with SmolLM2-135M. data: folder with the files of research/claim.
    dry: tiny sizes on a CPU, to see that every part starts.
    """

    lengths: str | None = None
    model: Path | None = None
    data: Path | None = None
    dry: bool = False


def has_package(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def gpu_parts(setup: Setup, has: HasPackage = has_package) -> list[Part]:
    """All parts, those that cannot run here too."""
    return [*_correctness(setup, has), _ops(setup), *_backbones(setup), _claim(setup, has), *_policies(setup, has)]


def _correctness(setup: Setup, has: HasPackage) -> list[Part]:
    """Every op and every attention backend against fp64, CUDA graphs, streams; the sanitizer's checkers on small shapes."""
    pytest = ("{python}", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
    if setup.dry:
        pytest = (*pytest, "--collect-only")
    missing = _without(has, "pytest", "hypothesis")
    # Most of the time is compilation, on the CPU. By file: tests of 17, 21 and 56 GB are in one, and must not meet on one card.
    workers = ("-n", str(max(2, min(8, (os.cpu_count() or 2) // 2))), "--dist") if has("xdist") else ()
    by_file, by_test = ((*workers, how) if workers else () for how in ("loadfile", "load"))
    # One process a checker.
    each = ("-n", "4") if has("xdist") else ()
    return [
        Part(
            name="tests",
            command=(*pytest, *OP_TESTS, "-k", "not sanitizer", *by_file, "--junitxml", "{out}/tests.xml"),
            seconds=60,
            missing=missing,
        ),
        Part(
            name="attention-tests",
            command=(*pytest, ATTENTION_TESTS, "--tb", "short", *by_test, "--junitxml", "{out}/attention-tests.xml"),
            seconds=60,
            missing=missing,
        ),
        Part(
            name="sanitizer",
            command=(*pytest, "tests/srm_kernels/gpu", "-k", "sanitizer", *each, "--junitxml", "{out}/sanitizer.xml"),
            seconds=35,
            missing=missing,
        ),
    ]


def _ops(setup: Setup) -> Part:
    lengths = ("--input", setup.lengths) if setup.lengths else ()
    sizes = ("--smoke", "--budget", "0") if setup.dry else ("--budget", "0.5")
    command = ("{python}", "bench/ops.py", "--resume", "--output_dir", "{out}", "--time_limit", "{seconds}", *sizes, *lengths)
    return Part(name="ops", command=command, seconds=120)


def _backbones(setup: Setup) -> list[Part]:
    """A Llama of a billion weights and SmolLM2-135M, and groups that share a prompt, with its keys copied for each response and without."""
    batches = ("--batch_size", "16", "--tokens_per_batch", "32768")
    groups = ("--modes", "group,group-train", "--providers", "shared")
    cascade = ("env", "SRM_PACKED_ATTENTION=cascade")
    return [
        _throughput(setup, "llama-1b", 120, "random-llama-1b", "--modes", "train,length,length-train"),
        _throughput(setup, "smollm2-135m", 45, "random-smollm2-135m", "--modes", "train,score,group", *batches),
        _throughput(setup, "groups", 25, "random-llama-1b", *groups, "--group", "16x256x1024"),
        _throughput(setup, "groups-cascade", 25, "random-llama-1b", *groups, "--group", "16x256x1024", before=cascade),
        _throughput(setup, "long-groups", 25, "random-llama-1b", *groups, "--group", "8x512x8192"),
        _throughput(setup, "long-groups-cascade", 25, "random-llama-1b", *groups, "--group", "8x512x8192", before=cascade),
    ]


def _throughput(setup: Setup, name: str, seconds: float, model: str, *more: str, before: tuple[str, ...] = ()) -> Part:
    command = ("{python}", "bench/throughput.py", "--resume", "--json", f"{{out}}/{name}.json", "--minutes", "{minutes}")
    if setup.dry:
        model = "random-tiny"
        tiny = "--device cpu --pairs 24 --max_length 64 --batch_size 4 --rounds 2 --lengths 512,1024 --tokens_per_batch 512 --check 2"
        more = (*more, *tiny.split(), "--group", "4x8x24")
    return Part(name=name, command=(*before, *command, "--model", model, *more), seconds=seconds, least=0.8 * min(seconds, 30))


def _claim(setup: Setup, has: HasPackage) -> Part:
    """Sentence, response and token level, as many pairs as the speed that was measured before allows."""
    files = " and ".join(name for name, given in (("--model", setup.model), ("--data_dir", setup.data)) if given is None)
    budget = ("--budget", "gpu", "--seconds", "{seconds}", "--speed", "{out}/smollm2-135m.json")
    return Part(
        name="claim",
        command=(
            *("{python}", "-m", "research.claim.compare", "--data", str(setup.data), "--model_name_or_path", str(setup.model)),
            *(("--budget", "dry") if setup.dry else budget),
            *("--variants", "sentence", *(() if setup.dry else ("response", "token"))),
            *("--output_dir", "{out}/claim", "--json", "{out}/claim.json"),
        ),
        seconds=230,
        least=120,
        missing=f"needs {files}" if files else _without(has, "matplotlib"),
        uses=None if setup.dry else ("smollm2-135m.json", "smollm2-135m"),
    )


def _policies(setup: Setup, has: HasPackage) -> list[Part]:
    """A reward model from generated pairs, and policies on its sentence and response rewards."""
    missing = "needs --model" if setup.model is None else _without(has, "matplotlib")
    demo = ("--num_pairs", "8", "--num_eval_pairs", "8") if setup.dry else ("--batch_size", "16")
    tiny = (
        "--seeds 0 --num_prompts 4 --max_steps 1 --num_generations 2 --per_device_train_batch_size 4 --max_completion_length 8 --bf16 false"
    )
    sizes = tiny.split() if setup.dry else ("--budget", "gpu", "--resume", "--minutes", "{minutes}")
    return [
        Part(
            name="reward-model",
            command=("{python}", "-m", "srm.cli.demo", "--model", str(setup.model), "--output_dir", "{out}/demo", *demo),
            seconds=45,
            missing=missing,
        ),
        Part(
            name="rl",
            command=(
                *("{python}", "-m", "research.rl_comparison", "--reward_model", "{out}/demo/model", "--json", "{out}/rl.json"),
                *("--model_name_or_path", str(setup.model), *sizes),
            ),
            seconds=150,
            least=60,
            missing=missing,
            uses=("demo/model", "reward-model"),
        ),
    ]


def _without(has: HasPackage, *packages: str) -> str | None:
    absent: Sequence[str] = [name for name in packages if not has(name)]
    return f"needs {' and '.join(absent)} (pip install {' '.join(absent)})" if absent else None
