"""Odd flags and configuration files: settings, or one line before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import strategies as st

from srm import SentenceRewardModel
from srm.cli import demo, rl, score, serve, train
from srm.cli import eval as eval_command
from srm.errors import UserError
from srm.rl.arguments import RLConfig
from srm.runs.limits import LIMITS
from srm.training import DataArguments, ModelArguments, RewardConfig
from tests.fuzz.harness import fuzz, run
from tests.fuzz.strategies import EVIL, anything

NAMES = sorted(
    {*LIMITS, *(field.name for group in (ModelArguments, DataArguments, RewardConfig, RLConfig) for field in fields(group))}
    | {
        "model",
        "input",
        "suite",
        "output",
        "html",
        "show",
        "split",
        "device",
        "dtype",
        "host",
        "no_batching",
        "overlong",
        "measure",
        "help",
    }
    | {"overwrite", "config", "nonsense", "skip_bad_rows"}
)
WORDS = [
    *EVIL, "0", "-1", "1", "2", "1.5", "1e-3", "1e999", "nan", "inf", "-inf", "none", "true", "false", "gpu", "cuda", "cuda:9", "cpu",
    "auto", "1" * 30, "1" * 5000, "٣", "0x10", "1_000", "{}", "[]", '{"a": 1}', "steps", "epoch", "no", "/", "/dev/null",
    "..", "~", "x" * 300,
]  # fmt: skip
flag = st.tuples(st.sampled_from(NAMES), st.one_of(st.sampled_from(WORDS), st.none(), st.text(max_size=8)), st.booleans())
flags = st.lists(flag, max_size=4).map(
    lambda drawn: [word for name, value, joined in drawn for word in ([f"--{name}"] if value is None else _words(name, value, joined))]
)


def _words(name: str, value: str, joined: bool) -> list[str]:
    return [f"--{name}={value}"] if joined else [f"--{name}", value]


@pytest.fixture
def parsed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """srm-train, srm-rl, srm-serve and the demo stop once their flags are accepted."""

    def stop(*arguments: Any, **settings: Any) -> NoReturn:
        raise UserError("accepted")

    monkeypatch.setattr("srm.runs.folders.claim", stop)
    monkeypatch.setattr(demo, "demo", stop)
    monkeypatch.setattr(serve, "_listen", stop)
    monkeypatch.setattr("srm.rl.build.make_accelerator", stop)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, for flags that name files in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS: dict[str, tuple[Callable[..., int], list[str]]] = {
    "srm-train": (train.main, ["--model_name_or_path", "m", "--dataset_name", "d.jsonl", "--output_dir", "o"]),
    "srm-rl": (rl.main, ["--model_name_or_path", "m", "--dataset_name", "d.jsonl", "--output_dir", "o", "--reward_model_path", "r"]),
    "srm-serve": (serve.main, ["--model", "m"]),
    "srm-demo": (demo.main, []),
}


@fuzz(examples=900, weight=2, name=st.sampled_from(sorted(COMMANDS)), more=flags)
def test_flags(name: str, more: list[str], parsed_only: None, folder: Path) -> None:
    main, needed = COMMANDS[name]
    result = run(main, [*needed, *more], name)
    assert result.code == 1 or "--help" in more


@fuzz(examples=150, weight=2, is_score=st.booleans(), more=flags)
def test_flags_of_what_scores(is_score: bool, more: list[str], model: SentenceRewardModel, model_dir: Path, folder: Path) -> None:
    source = folder / "in.jsonl"
    source.write_text('{"prompt": "p", "chosen": "It is.", "rejected": "No."}\n')
    if is_score:
        run(score.main, ["--model", str(model_dir), "--input", str(source), "--output", "out.jsonl", *more], "srm-score")
    else:
        run(
            eval_command.main,
            ["--model", str(model_dir), "--suite", str(source), "--output_dir", "out", "--draws", "100", *more],
            "srm-eval",
        )


YAML = [
    "a: *x", "&a", "!!python/object:os.x {}", "- 1", "seed: 2020-99-99", "{", "a: [", "? x", "<<: 1",
    "seed: 1\nseed: 2", "---\n---", "%YAML 9",
]  # fmt: skip
line = st.one_of(st.sampled_from(YAML), st.sampled_from(NAMES).map(lambda name: f"{name}: 1"), st.text(max_size=12))
content = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from(NAMES), st.sampled_from(EVIL)), anything, max_size=4).map(json.dumps),
    st.lists(line, max_size=5).map("\n".join),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


@fuzz(examples=400, weight=1, is_train=st.booleans(), content=st.one_of(content, content, st.binary(max_size=40)))
def test_configuration_files(is_train: bool, content: bytes, parsed_only: None, folder: Path) -> None:
    (folder / "c.yaml").write_bytes(content)
    name = "srm-train" if is_train else "srm-rl"
    main, needed = COMMANDS[name]
    assert run(main, [*needed, "--config", "c.yaml"], name).code == 1
