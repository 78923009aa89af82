"""No command replaces what the user has, and each finds out before the work whether it may write: nothing is loaded in these tests."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROW = {"id": "a", "prompt": "Why?", "chosen": "It is warm.", "rejected": "No."}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs, a folder that looks like a model's, an earlier run's folder, and things of the user's."""
    texts = {"rows.jsonl": json.dumps(ROW) + "\n", "mine/results.csv": "mine", "mine/page.html": "mine", "run/srm_train.yaml": ""}
    texts |= {"model/config.json": "{}", "model/model.safetensors": "", "run/checkpoint-2/config.json": "{}"}
    texts |= {f"eval/{name}": json.dumps(ROW) + "\n" for name in ("responses.jsonl", "results.json", "scores/run.jsonl")}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES = [
    ("score --model model --input rows.jsonl --output rows.jsonl", "--output rows.jsonl is what --input reads"),
    ("score --model model --input rows.jsonl --output link.jsonl", "--output link.jsonl is what --input reads"),
    ("score --model model --input rows.jsonl --output hard.jsonl", "--output hard.jsonl is what --input reads"),
    ("score --model model --input rows.jsonl --output out --html ./rows.jsonl", "--html rows.jsonl is what --input reads"),
    ("score --model model --input rows.jsonl --output out --html out", "are in each other's way"),
    ("score --model model --input rows.jsonl --output out --html mine", "--html mine is a folder"),
    ("score --model model --input rows.jsonl --output mine", "--output mine is a folder"),
    ("score --model model --input rows.jsonl --output model/config.json", "is a file of the model that --model names"),
    ("score --model model --input rows.jsonl --output rows.jsonl/out", "lies in a file"),
    ("score --model model --input eval --output eval/out.jsonl", "would be read as data"),
    ("score --model model --input rows.jsonl --output /dev/null", "is a device or a pipe"),
    ("eval --model model --suite eval/responses.jsonl --output_dir eval", "responses.jsonl is what --suite reads"),
    ("eval --model model --suite eval/results.json --output_dir eval", "results.json is what --suite reads"),
    ("eval --model run --suite eval/scores/run.jsonl --output_dir eval", "run.jsonl is what --suite reads"),
    ("eval --model run model --suite rows.jsonl --output_dir model", "is the folder of the model that --model model names"),
    ("eval --model model --suite eval --output_dir eval/more", "would be read as data"),
    ("eval --model model --suite rows.jsonl --output_dir rows.jsonl", "--output_dir rows.jsonl is what --suite reads"),
    (
        "train --model_name_or_path model --dataset_name rows.jsonl --output_dir model",
        "is the folder of the model that --model_name_or_path",
    ),
    ("train --model_name_or_path run/checkpoint-2 --dataset_name rows.jsonl --output_dir run", "which --model_name_or_path reads"),
    ("train --model_name_or_path model --dataset_name run/a.jsonl --output_dir run", "run/a.jsonl"),
    ("train --model_name_or_path model --dataset_name rows.jsonl --output_dir mine/results.csv", "is a file. Give a folder"),
    ("rl --model_name_or_path a --reward_model_path model --dataset_name rows.jsonl --output_dir model", "that --reward_model_path names"),
    ("rl --model_name_or_path a --reward_model_path model --dataset_name eval --output_dir eval/more", "would be read as data"),
    ("demo --model model --output_dir model", "is the folder of the model that --model_name_or_path names"),
    ("demo --model run/checkpoint-2 --output_dir run", "which --model_name_or_path reads"),
]
OVERWRITE = {"score": "--overwrite", "eval": "--overwrite", "train": "--overwrite_output_dir", "rl": "--overwrite_output_dir"}


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and not path.name.endswith(".lock")}


@pytest.mark.parametrize(("command", "message"), CASES)
def test_refused_with_and_without_overwriting(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *arguments = command.split()
    if "run/a.jsonl" in command:
        Path("run/a.jsonl").write_text(json.dumps(ROW) + "\n")
    main, before = importlib.import_module(f"srm.cli.{name}").main, contents()
    more = ["--use_cpu"] if name == "train" else []
    for way in ([], [OVERWRITE[name]]) if name in OVERWRITE else ([],):
        assert main([*arguments, *more, *way]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"srm-{name}: ")
        assert error.count("\n") == 1
        assert message in error
    assert contents() == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("score --model model --input rows.jsonl --output out --html mine/page.html", "exists and is no page of srm-score"),
        ("score --model model --input rows.jsonl --output mine/page.html", "exists and was not written by srm-score"),
        ("eval --model model --suite rows.jsonl --output_dir mine", "mine/results.csv: exists and was not written by srm-eval"),
        ("train --model_name_or_path a --dataset_name rows.jsonl --output_dir model --overwrite_output_dir --use_cpu", "holds config.json"),
        (
            "rl --model_name_or_path a --reward_model_path b --dataset_name rows.jsonl --output_dir model --overwrite_output_dir",
            "holds config",
        ),
        ("demo --model a --output_dir mine", "was not written by the demo"),
    ],
)
def test_what_another_program_wrote_stays(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *arguments = command.split()
    before = contents()
    assert importlib.import_module(f"srm.cli.{name}").main(arguments) == 1
    assert message in capsys.readouterr().err
    assert contents() == before
