"""srm-train with the settings of accelerate's launcher, as flags and in the YAML file, and with environment variables there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srm.cli import train as command
from srm.cli.train import main
from srm.errors import UserError
from srm.training import launch
from srm.training.arguments import split_launch_settings

MODEL_AND_DATA = ["--model_name_or_path", "m", "--dataset_name", "d.jsonl"]


@pytest.fixture
def flags(tiny_backbone_dir: Path, pairs_file: Path, tmp_path: Path) -> list[str]:
    usual = {
        "model_name_or_path": tiny_backbone_dir,
        "dataset_name": pairs_file,
        "output_dir": tmp_path / "out",
        "max_steps": 3,
        "learning_rate": 1e-3,
        "attention_size": 8,
        "logging_steps": 1,
        "disable_tqdm": "true",
        "use_cpu": "true",
    }
    return [word for name, value in usual.items() for word in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def _same_environment(monkeypatch):
    """What a test adds to the environment goes with it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def history(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow
def test_two_processes_from_a_file_of_trl_are_one(flags, tmp_path):
    assert main([*flags, "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "one")]) == 0
    # Python reads this variable when it starts: it tells where the others are in place, too.
    (tmp_path / "reward.yaml").write_text("num_processes: 2\nenv:\n  PYTHONPROFILEIMPORTTIME: 1\n")
    words = [*flags, "--config", str(tmp_path / "reward.yaml"), "--per_device_train_batch_size", "2"]
    ended = subprocess.run(
        [sys.executable, "-m", "srm.cli.train", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "import time:" in ended.stderr
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "out"), strict=True):
        for name in {"loss", "accuracy", "sentences_per_response", "epoch"} & one.keys():
            assert two[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.slow
def test_a_process_that_fails_says_so_in_its_own_line_alone(flags, tmp_path):
    words = [*flags, "--num_processes", "2", "--dataset_name", str(tmp_path / "gone.jsonl")]
    ended = subprocess.run([sys.executable, "-m", "srm.cli.train", *words], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line and "Loading weights" not in line]
    assert set(said) == {f"srm-train: {tmp_path / 'gone.jsonl'}: no such file or folder. Check the path."}


def test_settings_of_the_launcher_are_taken_out(tmp_path):
    (tmp_path / "reward.yaml").write_text("num_processes: 4\nmulti_gpu: true\nuse_fsdp: false\nseed: 2\n")
    argv = ["--seed", "2", *MODEL_AND_DATA, "--num_processes", "2", "--config", str(tmp_path / "reward.yaml"), "--main-process-port=29511"]
    launcher, ours = split_launch_settings(argv)
    # The command line comes last, and wins.
    assert launcher == ["--num_processes=4", "--multi_gpu", "--num_processes", "2", "--main-process-port=29511"]
    assert ours == ["--seed", "2", *MODEL_AND_DATA, "--config", str(tmp_path / "reward.yaml")]
    assert split_launch_settings(MODEL_AND_DATA) == ([], MODEL_AND_DATA)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--num_procesess", "2"], "unknown argument '--num_procesess'"),
        (["--num_processes", "2", "pairs.jsonl"], "unknown argument 'pairs.jsonl'"),
        (["--num_processes", "2", "--lora_r", "-1"], "--lora_r must be at least 1"),
        (["--num_processes", "2", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--num_processes", "two"], "accelerate's launcher: argument --num_processes/--num-processes: invalid int value: 'two'."),
        (["--accelerate_config", "zero9"], "--accelerate_config zero9: is no file, and none of trl's names: "),
        (["--accelerate_config=d.jsonl"], "d.jsonl: is no configuration of accelerate ("),
        (["--multi_gpu", "--cpu"], "accelerate's launcher: You can only use one of `--cpu`, `--multi_gpu`"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(more, said, tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text("{}: {}: x")
    assert main([*MODEL_AND_DATA, *more]) == 1
    assert said in capsys.readouterr().err


def test_model_and_data_are_missed_before_anything_starts(capsys):
    assert main(["--num_processes", "2", "--model_name_or_path", "m"]) == 1
    assert "--dataset_name is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--num_processes", "2"], {"multi_gpu": True, "num_processes": 2}),
        (["--num_processes", "1"], {"multi_gpu": False, "num_processes": 1}),
        (["--num_processes", "2", "--accelerate_config", "single_gpu"], {"multi_gpu": True}),
        (["--num_processes", "2", "--accelerate_config", "zero3"], {"multi_gpu": False}),
        (["--num_processes", "2", "--use_fsdp"], {"multi_gpu": False, "use_fsdp": True}),
    ],
)
def test_a_number_of_processes_is_never_one_without_a_word(words, expected):
    pytest.importorskip("trl")
    args = launch.launcher_arguments(words, ["--seed", "1"])
    assert {name: getattr(args, name) for name in expected} == expected
    assert (args.module, args.training_script, args.training_script_args) == (True, "srm.cli.train", ["--seed", "1"])


@pytest.mark.parametrize("name", ["fsdp2", "zero3", "multi_gpu"])
def test_names_of_trl_are_its_files(name):
    pytest.importorskip("trl")
    args = launch.launcher_arguments([f"--accelerate_config={name}"], [])
    assert Path(args.config_file).name == f"{name}.yaml"


def test_without_trl_its_names_have_a_way_out(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"zero3: is no file here.*pip install 'srm-kernels\[trl\]'"):
        launch.launcher_arguments(["--accelerate_config", "zero3"], [])


def test_a_killed_process_is_named():
    with pytest.raises(UserError, match=r"a process of the run was killed \(SIGKILL\)"):
        launch._exit_code(-9)
    assert launch._exit_code(3) == 3


def test_another_launcher_is_not_started_over(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    (tmp_path / "reward.yaml").write_text("num_processes: 4\n")
    assert main([*flags, "--config", str(tmp_path / "reward.yaml")]) == 0
    assert "--num_processes=4: not followed, because this process was started by a launcher already" in capsys.readouterr().out


def test_our_own_processes_do_not_start_others(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SRM_TRAIN_LAUNCHED", "1")
    (tmp_path / "reward.yaml").write_text("num_processes: 4\n")
    assert main([*flags, "--config", str(tmp_path / "reward.yaml")]) == 0
    assert "not followed" not in capsys.readouterr().out


def test_the_environment_is_in_place_before_anything(flags, tmp_path, monkeypatch, capsys):
    started = []

    def replace(program, words):
        started.append((program, words, os.environ["SRM_TEST_VARIABLE"]))
        raise SystemExit(0)

    monkeypatch.setattr(command.os, "execv", replace)
    (tmp_path / "reward.yaml").write_text("env:\n  SRM_TEST_VARIABLE: 7\nmax_steps: 1\n")
    argv = [*flags, "--config", str(tmp_path / "reward.yaml")]
    with pytest.raises(SystemExit):
        main(argv)
    assert started == [(sys.executable, [sys.executable, "-m", "srm.cli.train", *argv], "7")]
    # Where they are in place, it trains.
    assert main(argv) == 0
    assert len(started) == 1


@pytest.mark.parametrize("env", ["[1]", "{A: [1]}", "{A: null}", "{'A=B': 1}", "x"])
def test_an_environment_that_is_none(env, tmp_path, capsys):
    (tmp_path / "reward.yaml").write_text(f"env: {env}\n")
    assert main([*MODEL_AND_DATA, "--config", str(tmp_path / "reward.yaml")]) == 1
    assert "reward.yaml: env" in capsys.readouterr().err
