"""Runs srm-train again and again, each run in a fork that is killed with SIGKILL at a given moment.

Called as a script with a JSON list of runs, so that the imports are paid for once: `[{"argv": [...], "moment": ["module:function", n]}]`.
A moment is the n-th call of a function; `["share", x]` kills from outside after that share of the first run's time; null lets the run
finish. Prints one line of JSON a run: its exit status (negative: the signal), and the checkpoints that are there afterwards.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from srm.cli.train import main
from srm.training import ModelArguments, RewardConfig, SentenceRewardTrainer  # noqa: F401 (imported before the first fork)
from srm.training.build import build_model


def kill_at(moment: list[Any]) -> None:
    """Have this process die on entering the n-th call of a function or method."""
    name, count = moment
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *holders, attribute = path.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    original = getattr(owner, attribute)
    calls = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, attribute, dying)


def warm_up(argv: list[str]) -> None:
    """Import what a run imports on the way. No gradients: autograd's threads would not survive a fork."""
    model = argv[argv.index("--model_name_or_path") + 1]
    build_model(ModelArguments(model_name_or_path=model), RewardConfig(output_dir="unused", use_cpu=True)).score(["A"], ["B."])


def run(argv: list[str], moment: list[Any] | None, usual_seconds: float) -> int:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if moment and moment[0] != "share":
            kill_at(moment)
        code = 99
        try:
            code = main(argv)
        finally:
            os._exit(code)
    if moment and moment[0] == "share":
        time.sleep(moment[1] * usual_seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    entries = json.loads(sys.argv[1])
    warm_up(entries[0]["argv"])
    gc.freeze()  # or each run would look for garbage among all imports
    usual_seconds = 0.0
    for entry in entries:
        started = time.perf_counter()
        status = run(entry["argv"], entry["moment"], usual_seconds)
        usual_seconds = usual_seconds or time.perf_counter() - started
        output = Path(entry["argv"][entry["argv"].index("--output_dir") + 1])
        print(json.dumps({"status": status, "checkpoints": sorted(path.name for path in output.glob("checkpoint-*"))}), flush=True)
