"""Everything that needs a GPU, in one command of under 9 minutes: the tests, the kernel benchmark, the throughput benchmark.

    python bench/gpu.py --output_dir outputs/gpu [--input pairs.jsonl.gz]

Each part has a share of the time and is stopped when that is over. A part that fails is reported and makes the exit code 1; the next one
runs all the same. Leaves gpu.json (exit codes, seconds, the end of each part's output), gpu.md, and what the benchmarks write.
Needs a CUDA device and greenlet.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import environment
import torch

__all__ = ["Outcome", "Part", "gpu_parts", "run_parts"]

ROOT = Path(__file__).resolve().parents[1]
# How much of a part's output is kept.
TAIL = 20_000
# Where commands say what time they may take; a part has the rest to finish what it began.
SECONDS, MINUTES = "{seconds}", "{minutes}"
OWN_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Part:
    """A command, and how much of the time that is left it may take. `{seconds}` and `{minutes}` in it become 80 % of that."""

    name: str
    command: tuple[str, ...]
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a part. exit_code: None where it was stopped. summary: its last line with words in it."""

    name: str
    exit_code: int | None
    seconds: float
    summary: str
    output: str

    @property
    def verdict(self) -> str:
        return {0: "passed", None: "stopped at its time limit"}.get(self.exit_code, f"failed with exit code {self.exit_code}")


def main() -> int:
    arguments = _arguments()
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py: no CUDA device. The tests that need none are `make test`.")
    if importlib.util.find_spec("greenlet") is None:
        sys.exit("bench/gpu.py: greenlet is not installed, and training cannot be timed without it. Run `pip install greenlet`.")
    outcomes = run_parts(gpu_parts(arguments.output_dir, arguments.input), 60 * arguments.minutes)
    result = {**environment.describe(), "parts": [{**vars(outcome), "verdict": outcome.verdict} for outcome in outcomes]}
    environment.write(arguments.output_dir / "gpu.json", result)
    rows = [f"| {o.name} | {o.verdict} | {o.seconds:.0f} | {o.summary.replace('|', '/')} |" for o in outcomes]
    head = [f"{result['device']}, commit {result['commit']}, {result['time']}", "", "| part | verdict | seconds | last line |"]
    table = "\n".join([*head, "|---|---|---|---|", *rows]) + "\n"
    (arguments.output_dir / "gpu.md").write_text(table)
    print("\n" + table)
    return 1 if any(outcome.exit_code != 0 for outcome in outcomes) else 0


def gpu_parts(output_dir: Path, source: str | None) -> list[Part]:
    """The tests, the kernels, the throughput."""
    python, bench = sys.executable, ROOT / "bench"
    lengths = ("--input", source) if source else ()
    # Most of the tests' time is compilation, on the CPU.
    workers = ("-n", "4") if importlib.util.find_spec("xdist") else ()
    kernels = ("--output_dir", str(output_dir), "--budget", "0.5", "--time_limit", SECONDS)
    outputs = ("--json", str(output_dir / "throughput.json"), "--plot", str(output_dir / "throughput.png"))
    model = ("--model", "random-llama-1b", "--device", "cuda", "--modes", "train,score,group,length,length-train")
    throughput = (*model, "--minutes", MINUTES, *outputs)
    return [
        Part(name="tests", command=(python, "-m", "pytest", "-q", "-m", "gpu", *workers), share=0.4),
        Part(name="kernels", command=(python, str(bench / "kernels.py"), *kernels, *lengths), share=0.75),
        Part(name="throughput", command=(python, str(bench / "throughput.py"), *throughput)),
    ]


def run_parts(parts: Sequence[Part], seconds: float) -> list[Outcome]:
    """Runs each part to its end or its limit, whatever became of the one before."""
    end = time.monotonic() + seconds
    return [_run(part, part.share * max(1.0, end - time.monotonic())) for part in parts]


def _run(part: Part, limit: float) -> Outcome:
    own = OWN_SHARE * limit
    command = [word.replace(SECONDS, f"{own:.0f}").replace(MINUTES, f"{own / 60:.2f}") for word in part.command]
    print(f"\n{part.name}, at most {limit:.0f} s: {' '.join(command)}", flush=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, start_new_session=True
        )
        code: int | None = None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            # Its own session, so that workers of pytest and of the compiler go with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        output = log.read()
    worded = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    outcome = Outcome(
        name=part.name,
        exit_code=code,
        seconds=round(time.monotonic() - start, 1),
        summary=worded[-1] if worded else "",
        output=output[-TAIL:],
    )
    print(f"{outcome.output}\n{part.name}: {outcome.verdict} after {outcome.seconds} s", flush=True)
    return outcome


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/gpu"), help="folder of the reports (default: %(default)s)")
    parser.add_argument("--input", help="preference pairs to take lengths from; a distribution fitted to public ones where it is not given")
    parser.add_argument("--minutes", type=float, default=8.8, help="time for all parts together (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.output_dir = arguments.output_dir.absolute()  # The parts run from the root of the repository.
    if arguments.input:
        arguments.input = str(Path(arguments.input).absolute())
    return arguments


if __name__ == "__main__":
    sys.exit(main())
