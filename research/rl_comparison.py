"""Train the same policy on sentence rewards and on response rewards, at equal rollouts and on the same seeds, and plot both.

    python -m research.rl_comparison --reward_model outputs/demo/model --json research/results/rl_comparison_cpu.json

Settings are those of examples/rl/cpu.yaml, with `--budget gpu` those of examples/rl/gpu.yaml: answers of 128 tokens, long enough for dense
credit to matter, and 12 minutes for three seeds. Flags of srm-rl that this script does not know go to both kinds of runs. Writes a plot
beside the JSON file; `--resume` keeps the runs that are in it where model, settings and flags are the same. Where --minutes are too few for
the next run, it ends with exit code 75. Prompts come from the generated pairs (srm.data.synthetic); the reward model has seen none. They
are few, so that every few steps see all of them again: some earn more than others whatever the policy writes, and the curves are means
over such passes. Needs a reward model, such as that of `make demo`, and some ten minutes a run on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from bench import environment
from research.commands import run_command
from srm.data.synthetic import generate_pairs, write_jsonl
from srm.runs.model_files import hash_model_files

REPO = Path(__file__).resolve().parents[1]
KINDS = ("sentence", "response")
# Prompts of each, the file of its settings, and its minutes.
BUDGETS = {"cpu": (8, "cpu.yaml", math.inf), "gpu": (64, "gpu.yaml", 12.0)}
# The demo's seeds are small; with this one no prompt is among its training pairs.
PROMPT_SEED = 1000


def main() -> None:
    arguments, flags = _arguments()
    deadline = time.monotonic() + 60 * arguments.minutes
    # Runs are of one comparison where all of this is the same.
    compared = {
        "config": yaml.safe_load(arguments.config.read_text(encoding="utf-8")),
        "flags": flags,
        "num_prompts": arguments.num_prompts,
        "prompt_seed": PROMPT_SEED,
        "reward_model": {**_report_of(arguments.reward_model), "files": hash_model_files(arguments.reward_model)},
    }
    result: dict[str, Any] = {
        **environment.describe(),
        "command": shlex.join(["python", *sys.argv]),
        "seeds": arguments.seeds,
        **compared,
        "runs": _finished(arguments, compared) if arguments.resume else [],
    }
    done = [(run["seed"], run["reward"]) for run in result["runs"]]
    with tempfile.TemporaryDirectory() as work:
        prompts = Path(work) / "prompts.jsonl"
        write_jsonl(generate_pairs(arguments.num_prompts, split="train", seed=PROMPT_SEED), prompts)
        # Kinds alternate, so that a machine that gets busier slows both.
        for seed in arguments.seeds:
            for kind in KINDS:
                if (seed, kind) in done:
                    continue
                # The next run takes as long as the longest did.
                if time.monotonic() + max((run["seconds"] for run in result["runs"]), default=0) > deadline:
                    _end_early(result, arguments)
                result["runs"].append(_run(kind, seed, prompts, Path(work), arguments, flags))
                # After every run: the next one may be stopped.
                environment.write(arguments.json, result)
            if arguments.json:
                plot(result, arguments.json.with_suffix(".png"))
    print(table(result))
    if arguments.json:
        print(f"written: {arguments.json}, {arguments.json.with_suffix('.png')}")


def _end_early(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    kinds = [run["reward"] for run in result["runs"]]
    if set(kinds) == set(KINDS):
        print(table(result))
    environment.say(f"{len(kinds)} of {len(KINDS) * len(arguments.seeds)} runs are done, and the time is over; --resume goes on")
    sys.exit(environment.UNFINISHED)


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = environment.parser(__doc__, allow_abbrev=False)
    parser.add_argument("--reward_model", type=Path, required=True, help="folder of a trained reward model, such as outputs/demo/model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", choices=list(BUDGETS), default="cpu", help="sets --num_prompts, --config and --minutes")
    parser.add_argument("--num_prompts", type=int)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--minutes", type=float, help="begin no run that would end later")
    parser.add_argument(
        "--resume", action="store_true", help="keep the runs that an earlier run with the same model, settings and flags left in --json"
    )
    arguments, flags = parser.parse_known_args()
    prompts, config, minutes = BUDGETS[arguments.budget]
    arguments.minutes = minutes if arguments.minutes is None else arguments.minutes
    arguments.num_prompts = prompts if arguments.num_prompts is None else arguments.num_prompts
    arguments.config = arguments.config or REPO / "examples" / "rl" / config
    return arguments, flags


def _finished(arguments: argparse.Namespace, compared: dict[str, Any]) -> list[dict[str, Any]]:
    found = environment.read_as_here(arguments.json)
    same = all(found.get(name) == value for name, value in compared.items())
    return [run for run in found["runs"] if run["seed"] in arguments.seeds] if same else []


def _report_of(model: Path) -> dict[str, Any]:
    """How good the reward model is, where the demo trained it and left its report."""
    report = model.parent / "demo.json"
    if not report.is_file():
        return {}
    read = json.loads(report.read_text(encoding="utf-8"))
    return {"seed": read["settings"]["seed"], "accuracy": read["after"]["accuracy"]} if "after" in read else {}


def _run(kind: str, seed: int, prompts: Path, work: Path, arguments: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    folder = work / f"{kind}-{seed}"
    own = {"config": arguments.config, "reward_model_path": arguments.reward_model, "dataset_name": prompts, "output_dir": folder}
    more = {"reward": kind, "seed": seed, "save_steps": 1_000_000}
    words = [word for name, value in (own | more).items() for word in (f"--{name}", str(value))]
    print(f"--reward {kind} --seed {seed}", flush=True)
    seconds = run_command(["srm-rl", *words, *flags])
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    settings = yaml.safe_load((folder / "srm_rl.yaml").read_text(encoding="utf-8"))
    # A checkpoint is three times the policy, with Adam's state.
    shutil.rmtree(folder)
    for name in ("output_dir", "dataset_name", "reward_model_path"):
        # Temporary folders, and one that is somebody's own.
        del settings[name]
    return {"reward": kind, "seed": seed, "seconds": seconds, "settings": settings, "steps": steps}


def table(result: dict[str, Any]) -> str:
    """The first and the last pass over the prompts, `mean ± half the range over seeds`."""
    columns = {
        "reward, first pass": "reward",
        "last pass": "reward",
        "kl": "kl",
        "length": "length",
        "entropy": "entropy",
        "s/step": "seconds",
    }
    lines = [f"{'--reward':10}" + "".join(f"{title:>20}" for title in columns)]
    for kind in KINDS:
        cells = []
        for title, name in columns.items():
            means = [
                _moving([step[name] for step in run["steps"]], _pass(result, run))[0 if "first" in title else -1]
                for run in result["runs"]
                if run["reward"] == kind
            ]
            cells.append(f"{statistics.fmean(means):.2f} ± {(max(means) - min(means)) / 2:.2f}")
        lines.append(f"{kind:10}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def _pass(result: dict[str, Any], run: dict[str, Any]) -> int:
    """Steps of one pass over the prompts."""
    prompts_a_step = run["steps"][0]["episodes"] // run["settings"]["num_generations"]
    return max(1, min(round(result["num_prompts"] / prompts_a_step), len(run["steps"])))


def _moving(values: list[float], size: int) -> list[float]:
    """The mean of each `size` neighbours."""
    return [statistics.fmean(values[at : at + size]) for at in range(len(values) - size + 1)]


def plot(result: dict[str, Any], path: Path) -> None:
    """Reward and KL against responses: means over one pass, their mean over seeds, and the range over seeds as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, name, label in zip(axes, ("reward", "kl"), ("response reward", "KL, nats a response"), strict=True):
        for kind, colour in zip(KINDS, ("#2a6f97", "#bc6c25"), strict=True):
            runs = [run for run in result["runs"] if run["reward"] == kind]
            size = _pass(result, runs[0])
            episodes = [step["episodes"] for step in runs[0]["steps"]][size - 1 :]
            curves = [_moving([step[name] for step in run["steps"]], size) for run in runs]
            columns = list(zip(*curves, strict=True))
            axis.plot(episodes, [statistics.fmean(column) for column in columns], color=colour, label=f"--reward {kind}")
            axis.fill_between(episodes, [min(column) for column in columns], [max(column) for column in columns], color=colour, alpha=0.2)
        axis.set_xlabel("responses")
        axis.set_ylabel(label)
    axes[0].legend()
    seeds = ", ".join(map(str, sorted({run["seed"] for run in result["runs"]})))
    figure.suptitle(f"srm-rl, seeds {seeds}: mean and range of means over one pass over the prompts. {result['device']}", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
