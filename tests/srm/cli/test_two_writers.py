"""Two real processes on one output: the second is told about the first, which ends as if it had been alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from srm import SentenceRewardModel
from srm.runs.lock import lock_file
from srm.scoring.lines import read_scores

Fork = Callable[..., BaseProcess]

NUM_ROWS = 12


@pytest.fixture(scope="module")
def reward_model(awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward_model")
    awake_model(attention_size=8).save_pretrained(path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Pairs, which every command reads in its own way."""
    texts = [{"id": f"row-{i}", "prompt": f"Question {i}?", "chosen": "It was warm there.", "rejected": "No!"} for i in range(NUM_ROWS)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return path


@pytest.fixture
def command(reward_model: Path, tiny_backbone_dir: Path, tiny_policy_dir: Path, rows: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """The arguments of a short run that writes to `tmp_path / "out"`."""
    out, model = str(tmp_path / "out"), str(reward_model)
    small = ["--per_device_train_batch_size", "4", "--learning_rate", "1e-3"]
    train = ["--model_name_or_path", str(tiny_backbone_dir), "--attention_size", "8", "--use_cpu", *small]
    policy = ["--model_name_or_path", str(tiny_policy_dir), "--reward_model_path", model, "--max_steps", "1"]
    commands = {
        "score": ["--model", model, "--input", str(rows), "--output", out],
        "eval": ["--model", model, "--suite", str(rows), "--output_dir", out, "--draws", "100"],
        "train": [*train, "--dataset_name", str(rows), "--output_dir", out, "--save_steps", "2"],
        "rl": [*policy, "--dataset_name", str(rows), "--output_dir", out, "--max_completion_length", "8"],
        "demo": ["--model", str(tiny_backbone_dir), "--output_dir", out, "--num_pairs", "2", "--num_eval_pairs", "2"],
    }
    return lambda name: commands[name]


def note(output: Path, holder: BaseProcess | None = None, rank: int = 0) -> dict[str, Any]:
    """What the lock says of its holder, as soon as there is one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (holder is None or holder.is_alive()):
        try:
            return json.loads(lock_file(output, rank).read_text())
        except (OSError, ValueError):
            time.sleep(0.01)
    raise AssertionError(f"nothing holds {output}")


@contextmanager
def stopped(process: BaseProcess) -> Iterator[None]:
    """Alive, and as slow as can be."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def refused(fork: Fork, name: str, arguments: list[str], printed: Path, pid: int, **environment: str) -> None:
    second = fork(f"srm.cli.{name}", *arguments, output=printed, **environment)
    second.join(120)
    assert second.exitcode == 1
    lines = [line for line in printed.with_name(f"{printed.name}.err").read_text().splitlines() if line.startswith("srm-")]
    assert len(lines) == 1
    assert lines[0].startswith(f"srm-{name}: ")
    assert f"another run is writing there (process {pid} on " in lines[0]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["score", "eval", "train", "rl", "demo"])
def test_the_second_is_refused_and_the_first_ends_well(name: str, command: Any, fork: Fork, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = fork(f"srm.cli.{name}", *command(name), output=tmp_path / "first")
    assert note(out, first)["pid"] == first.pid
    with stopped(first):
        before = tree(tmp_path)
        extra = {"train": ["--overwrite_output_dir"], "rl": ["--resume_from_checkpoint", "true"], "score": ["--overwrite"]}
        refused(fork, name, command(name) + extra.get(name, []), tmp_path / "second", first.pid)
        assert tree(tmp_path) - before == {"second.out", "second.err"}, "a refused run writes nothing"
    first.join(120)
    said = (tmp_path / "first.err").read_text()[-2000:]
    if name == "demo":
        # The backbone is too short for the demo's answers, which it says after it has taken the folder.
        assert "Traceback" not in said
        return
    assert first.exitcode == 0, said
    ids = [f"row-{i}/{label}" for i in range(NUM_ROWS) for label in ("chosen", "rejected")]
    if name == "score":
        assert [line["id"] for line in read_scores(out)] == ids
    elif name == "eval":
        assert [line["id"] for line in read_scores(next((out / "scores").glob("*.jsonl")))] == ids
    else:
        assert (out / "model.safetensors").is_file()
        assert not (out / ".incomplete").exists()
    # Its end has let the output go.
    assert lock_file(out).read_text() == ""


def test_a_second_group_is_refused_as_long_as_one_of_the_first_lives(command: Any, fork: Fork, tmp_path: Path) -> None:
    out = tmp_path / "out"
    places = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    # One after the other, and the first of them stopped: either may be done before somebody looks for the other's note.
    second = fork("srm.cli.score", *command("score"), output=tmp_path / "rank_1", **places[1])
    assert note(out, second, 1)["pid"] == second.pid
    with stopped(second):
        first = fork("srm.cli.score", *command("score"), output=tmp_path / "rank_0", **places[0])
        assert note(out, first, 0)["pid"] == first.pid
        first.join(120)
        assert first.exitcode == 0
        for number, place in enumerate([{}, places[1], {"RANK": "0", "WORLD_SIZE": "3"}]):
            refused(fork, "score", command("score"), tmp_path / f"refused_{number}", second.pid, **place)
    second.join(120)
    assert second.exitcode == 0
    assert len(list(read_scores(out))) == 2 * NUM_ROWS


def reached(out: Path, step: int, deadline: float) -> int:
    """Waits for a checkpoint of that step or a later one; the newest."""
    while True:
        newest = max((int(path.name.split("-")[1]) for path in out.glob("checkpoint-*")), default=0)
        if newest >= step:
            return newest
        assert time.monotonic() < deadline, f"checkpoint-{step} was not written"
        time.sleep(0.05)


@pytest.mark.slow
def test_workers_that_outlive_their_launcher_keep_the_output(command: Any, fork: Fork, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "srm.cli.train"]
    endless = [*command("train"), "--max_steps", "100000", "--save_steps", "5", "--disable_tqdm", "true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    launcher = subprocess.Popen([sys.executable, *launch, *endless], env=environment, **silent)
    workers: list[psutil.Process] = []
    try:
        worker = note(out)["pid"]
        deadline = time.monotonic() + 240
        # The launcher introduces the workers to each other, so it lives until both train.
        step = reached(out, 5, deadline)
        workers = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        launcher.wait()
        assert worker != launcher.pid
        step = reached(out, step + 10, deadline)
        for number, more in enumerate((["--resume_from_checkpoint", "true"], ["--overwrite_output_dir"])):
            refused(fork, "train", command("train") + more, tmp_path / f"second_{number}", worker)
        # They still write, so nobody has deleted what they were about to publish.
        reached(out, step + 5, deadline)
    finally:
        launcher.kill()
        for process in workers:
            with suppress(psutil.NoSuchProcess):
                process.kill()
