"""Everything that needs a GPU, in one command that fits a machine which is lent for minutes.

    python bench/gpu.py --seconds 540 --output_dir outputs/gpu [--model FOLDER] [--data_dir FOLDER]
    python bench/gpu.py --dry_run --output_dir outputs/dry        # every part at a tiny size on a CPU; the numbers mean nothing

Parts run by priority: correctness, ops, backbones, the claim, policies. Each has its share of the time, and what it leaves over goes to the
next. One that fails or lacks something is reported, and the next one runs all the same. The same command with the same folder goes on with
what has not passed yet; a part that was stopped goes on where it was. Leaves gpu.json and gpu.md, a log of each part, and what the parts
write, all of it as it comes. docs/gpu-plan.md says what each part answers, what is expected, and what has been run.

Needs torch, triton and transformers; what a part needs beyond that is said where it is missing. A model and data may be brought along:
SmolLM2-135M as a folder of safetensors and tokenizer, and the files of research/claim. Speeds are measured on random weights.
Exit code 1 if a part failed or was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import environment
import torch
from gpu_parts import DATA_FILES, Part, Setup, gpu_parts

__all__ = ["Outcome", "run_parts"]

ROOT = Path(__file__).resolve().parents[1]
# How much of a part's output is printed at its end; its log has all of it.
TAIL = 4000
# A command is told this share of what its part may take; the rest is for finishing what it began.
OWN_SHARE = 0.85
# Seconds that a part has to end by itself once its time is over.
GRACE = 5.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a part. exit_code: None where it was stopped or not begun. summary: the last line with words in it."""

    name: str
    command: list[str]
    exit_code: int | None
    verdict: str
    seconds: float = 0.0
    summary: str = ""

    @property
    def is_bad(self) -> bool:
        """Failed or was stopped; not begun is neither."""
        return self.exit_code != 0 and not self.verdict.startswith("not begun")


def main() -> int:
    arguments = _arguments()
    if not arguments.dry_run and not torch.cuda.is_available():
        sys.exit("bench/gpu.py: no CUDA device. `--dry_run` tries every part on a CPU; the tests that need none are `make test`.")
    if arguments.commit:
        os.environ["SRM_COMMIT"] = arguments.commit
    folder: Path = arguments.output_dir
    parts = gpu_parts(_setup(arguments))
    if unknown := set(arguments.only or ()) - {part.name for part in parts}:
        sys.exit(f"bench/gpu.py: --only: no part {', '.join(sorted(unknown))}; there are {', '.join(part.name for part in parts)}")
    parts = [part for part in parts if not arguments.only or part.name in arguments.only]
    result = {**environment.describe(), "dry_run": arguments.dry_run, "parts": []}
    known = {record["name"]: Outcome(**record) for record in environment.read_as_here(folder / "gpu.json").get("parts", [])}
    for outcome in run_parts(parts, arguments.seconds, folder, known):
        known[outcome.name] = outcome
        result["parts"] = [asdict(one) for one in known.values()]
        environment.write(folder / "gpu.json", result)
        (folder / "gpu.md").write_text(_table(result, known.values()), encoding="utf-8")
    print("\n" + _table(result, known.values()))
    return 1 if any(outcome.is_bad for outcome in known.values()) else 0


def run_parts(parts: Sequence[Part], seconds: float, folder: Path, known: Mapping[str, Outcome]) -> Iterator[Outcome]:
    """What comes of each part, as it comes.

    known: outcomes of an earlier run; the parts that passed there with the same command are not run again.
    """
    start = time.monotonic()
    due = 0.0
    runnable = [part for part in parts if not part.missing and not _has_passed(part, known)]
    for part in parts:
        if part not in runnable:
            yield known[part.name] if _has_passed(part, known) else _not_begun(part, f"not begun: {part.missing}")
            continue
        spent = time.monotonic() - start
        due += part.seconds
        # Nobody comes after the last one.
        limit = (seconds if part is runnable[-1] else min(due, seconds)) - spent
        if part.uses and not (folder / part.uses[0]).exists():
            yield _not_begun(part, f"not begun: {part.uses[0]} is not there, which the part {part.uses[1]} makes")
        elif limit < part.least:
            yield _not_begun(part, f"not begun: wants {part.least:.0f} s at least, and {max(limit, 0):.0f} s are left")
        else:
            yield _run(part, limit, folder)


def _has_passed(part: Part, known: Mapping[str, Outcome]) -> bool:
    return part.name in known and known[part.name].exit_code == 0 and known[part.name].command == list(part.command)


def _not_begun(part: Part, why: str) -> Outcome:
    print(f"\n{part.name}: {why}", flush=True)
    return Outcome(name=part.name, command=list(part.command), exit_code=None, verdict=why)


def _run(part: Part, limit: float, folder: Path) -> Outcome:
    own = OWN_SHARE * limit
    values = {"seconds": f"{own:.0f}", "minutes": f"{own / 60:.2f}", "out": str(folder), "python": sys.executable}
    command = [re.sub(r"\{(\w+)\}", lambda found: values[found[1]], word) for word in part.command]
    print(f"\n{part.name}, at most {limit:.0f} s: {' '.join(command)}", flush=True)
    log = folder / f"{part.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=_environment(),
            start_new_session=True,
            preexec_fn=_take_interrupts,
        )
        try:
            code: int | None = process.wait(limit - GRACE)
            output = log.read_text(errors="replace")
        except subprocess.TimeoutExpired:
            code, output = None, log.read_text(errors="replace")
            # pytest and others write what they have.
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            # Its own session, so that workers of pytest and of the compiler go with it, whatever ends this.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    verdicts = {0: "passed", None: "stopped at its time limit", environment.UNFINISHED: "its time was over before it was done"}
    worded = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    outcome = Outcome(
        name=part.name,
        command=list(part.command),
        exit_code=code,
        verdict=verdicts.get(code, f"failed with exit code {code}"),
        seconds=round(time.monotonic() - start, 1),
        summary=worded[-1][:300] if worded else "",
    )
    print(f"{output[-TAIL:]}\n{part.name}: {outcome.verdict} after {outcome.seconds} s; all it printed is in {log}", flush=True)
    return outcome


def _take_interrupts() -> None:
    """A shell has what it starts with `&` ignore SIGINT, and children inherit that: a part could not be asked to end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _environment() -> dict[str, str]:
    """Of every process: this checkout is found, installed or not."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # Where no hub can be reached each question to it would wait for its time to be over.
    offline = os.environ.get("HF_HUB_OFFLINE", "1")
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": offline}


def _table(result: Mapping[str, Any], outcomes: Iterable[Outcome]) -> str:
    rows = [f"| {o.name} | {o.verdict} | {o.seconds:.0f} | {o.summary.replace('|', '/')} |" for o in outcomes]
    dry = "**Dry run on a CPU at tiny sizes: the numbers mean nothing.**\n\n" if result["dry_run"] else ""
    left = [o.name for o in outcomes if o.exit_code != 0]
    after = f"\nThe same command goes on with {', '.join(left)}.\n" if left else ""
    head = (
        f"{result['device']}, commit {result['commit']}, {result['time']}\n\n| part | verdict | seconds | last line |\n|---|---|---|---|\n"
    )
    return dry + head + "\n".join(rows) + "\n" + after


def _setup(arguments: argparse.Namespace) -> Setup:
    """Raises SystemExit where something that was named is not there."""
    model, data = arguments.model, arguments.data_dir
    if arguments.dry_run and not (model or data):
        tiny = [sys.executable, "bench/tiny.py", str(arguments.output_dir / "tiny")]
        subprocess.run(tiny, check=True, cwd=ROOT, env=_environment())
        model, data = arguments.output_dir / "tiny" / "model", arguments.output_dir / "tiny" / "data"
    if model and not (model / "config.json").is_file():
        sys.exit(f"bench/gpu.py: --model {model}: no config.json there; give a folder that from_pretrained loads")
    absent = [f"{name}.jsonl.gz" for name in DATA_FILES if data and not (data / f"{name}.jsonl.gz").is_file()]
    if absent:
        sys.exit(f"bench/gpu.py: --data_dir {data}: no {', '.join(absent)} there; docs/results.md says what is in them")
    return Setup(lengths=arguments.input, model=model, data=data, dry=arguments.dry_run)


def _arguments() -> argparse.Namespace:
    def place(text: str) -> Path:
        return Path(text).absolute()  # The parts run from the root of the repository.

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=place, default=place("outputs/gpu"), help="folder of the reports (default: outputs/gpu)")
    parser.add_argument("--seconds", type=float, default=540, help="time for all parts together (default: %(default)s)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="comma-separated names of parts")
    parser.add_argument("--model", type=place, help="folder with the weights and the tokenizer of SmolLM2-135M-Instruct")
    parser.add_argument("--data_dir", type=place, help=f"folder with {', '.join(DATA_FILES)} (.jsonl.gz)")
    parser.add_argument("--input", type=lambda text: str(place(text)), help="preference pairs whose lengths the ops are measured at")
    parser.add_argument("--commit", help="what the results are of, where this copy of the repository has no history")
    parser.add_argument("--dry_run", action="store_true", help="try every part at a tiny size on a CPU")
    return parser.parse_args()


if __name__ == "__main__":
    # Or a part would run on when this is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
