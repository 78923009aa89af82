"""Every number of every command has its range, and what lies outside is one line before any work."""

from __future__ import annotations

import argparse
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import pytest

from srm.cli import demo, eval, rl, score, serve, train
from srm.errors import UserError
from srm.rl.arguments import RLConfig, parse_rl_config
from srm.runs.limits import LIMITS, RL_LIMITS, Limit, check_limits, check_text
from srm.runs.parser import Parser
from srm.training.arguments import DataArguments, ModelArguments, RewardConfig, parse_arguments

HUGE = ("1" + "0" * 60, "1" * 5000)
TRAIN = ["--model_name_or_path", "m", "--dataset_name", "d.jsonl", "--output_dir", "o"]
RL = [*TRAIN, "--reward_model_path", "r"]


def numbers_of(group: type) -> list[str]:
    """Its fields that hold an int or a float, or None."""
    hints = typing.get_type_hints(group)
    return [f.name for f in fields(group) if {int, float} & {hints[f.name], *typing.get_args(hints[f.name])}]


def numbers_of_parser(parse: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[argparse.Action] = []

    def keep(self: Parser, *arguments: Any, **settings: Any) -> Any:
        found.extend(self._actions)
        raise UserError("kept")

    monkeypatch.setattr(Parser, "parse_args", keep)
    with pytest.raises(UserError, match="kept"):
        parse([])
    return [action.dest for action in found if action.type in (int, float)]


def test_every_number_of_a_dataclass_has_its_range() -> None:
    own = [*numbers_of(ModelArguments), *numbers_of(DataArguments), *numbers_of(RLConfig)]
    own += [name for name in numbers_of(RewardConfig) if name in RewardConfig.__annotations__]
    assert len(own) > 40
    assert not set(own) - LIMITS.keys()
    # A transformers that brings more only has them in the range of 32 bits.
    assert len(set(numbers_of(RewardConfig)) & LIMITS.keys()) > 30


@pytest.mark.parametrize("command", [score, eval, serve, demo])
def test_every_number_of_a_parser_has_its_range(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = numbers_of_parser(command._parse, monkeypatch)
    assert numbers
    assert not set(numbers) - LIMITS.keys()


def outside(limit: Limit, kind: type) -> list[str]:
    """Values just out of range, and far out."""
    low = 0 if limit.low is None else limit.low
    words = [f"{low - 1:g}" if low - 1 != limit.also else f"{low - 2:g}", *HUGE, "-" + HUGE[0]]
    words += [f"{low:g}"] if limit.above else []
    words += [f"{limit.high:g}"] if limit.below else [str(int(limit.high) * 2)]
    return [*words, "nan", "inf", "-inf", "1e999", "", " ", "1\0"] if kind is float else [*words, "", " ", "1.5", "x"]


def attack(parse: Callable[[list[str]], Any], needed: list[str], name: str, limits: Mapping[str, Limit], kind: type) -> None:
    def command(word: str) -> None:
        check_text(word, "")
        parse([*needed, word])

    for word in outside(limits[name], kind):
        with pytest.raises(UserError) as caught:
            command(f"--{name}={word}")
        assert name in str(caught.value), word
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", sorted(set(numbers_of(ModelArguments) + numbers_of(DataArguments) + numbers_of(RewardConfig)) & LIMITS.keys())
)
def test_srm_train_refuses_what_is_out_of_range(name: str) -> None:
    hints = {**typing.get_type_hints(ModelArguments), **typing.get_type_hints(DataArguments), **typing.get_type_hints(RewardConfig)}
    kind = float if float in (hints[name], *typing.get_args(hints[name])) else int
    attack(parse_arguments, TRAIN, name, LIMITS, kind)


@pytest.mark.parametrize("name", numbers_of(RLConfig))
def test_srm_rl_refuses_what_is_out_of_range(name: str) -> None:
    hint = typing.get_type_hints(RLConfig)[name]
    attack(parse_rl_config, RL, name, RL_LIMITS, float if float in (hint, *typing.get_args(hint)) else int)


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        (score, ["--model", "m", "--input", "i.jsonl", "--output", "o.jsonl"]),
        (eval, ["--model", "m", "--suite", "s.jsonl", "--output_dir", "o"]),
        (serve, ["--model", "m"]),
        (demo, []),
    ],
    ids=["score", "eval", "serve", "demo"],
)
def test_the_other_commands_refuse_what_is_out_of_range(command: Any, needed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        names = numbers_of_parser(command._parse, patch)
    floats = {"max_wait_ms", "max_body_mb", "receive_seconds", "learning_rate", "beta", "threshold"}
    for name in names:
        attack(command._parse, needed, name, LIMITS, float if name in floats else int)


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (
            score.main,
            ["--model", "m", "--input", "i", "--output", "o", "--device", "gpu"],
            "--device gpu: no such device here. Give one of cpu",
        ),
        (score.main, ["--model", "m", "--input", "i", "--output", "o", "--device", "cpu:7"], "--device cpu:7: no such device here"),
        (score.main, ["--model", "m", "--input", "i", "--output", "o", "--device", "meta"], "--device meta: no such device here"),
        (eval.main, ["--model", "m", "--suite", "s", "--output_dir", "o", "--device", "cuda:99"], "--device cuda:99: no such device here"),
        (score.main, ["--model", "", "--input", "i", "--output", "o"], "the value after --model is empty"),
        (score.main, ["--model", "m", "--input", "i", "--output="], "the value after --output is empty"),
        (score.main, ["--model", "m", "--input", "\udcff", "--output", "o"], "the value after --input is no UTF-8"),
        (score.main, ["--model", "m", "--input", "i\0", "--output", "o"], "the value after --input holds a NUL"),
        (score.main, ["--model", "m", "--dtyp", "\x1b[2J"], "srm-score: unknown argument '--dtyp'; did you mean --dtype?"),
        (score.main, ["--model", "m"], "srm-score: the following arguments are required: --input, --output"),
        (score.main, ["--model", "m", "--input", "i", "--output", "o", "--x\x1b[2J"], r"unknown argument '--x\x1b[2J'. See --help"),
        (eval.main, ["--model", "m", "--suite", "s", "--output_dir", "o", "--measure", "x"], "argument --measure: invalid choice: 'x'"),
        (train.main, [*TRAIN, "--eval_dataset_name", ""], "the value after --eval_dataset_name is empty"),
        (rl.main, [*RL, "--seed", "-1"], "--seed must be at least 0 and at most 4,294,967,295, got -1"),
        (score.main, ["--model", "m", "--input", "i", "--output", "o", "--show", "9" * 9000], "argument --show: invalid int value"),
    ],
)
def test_flags_are_one_short_line(main: Callable[..., int], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert len(err) < 2300


@pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("2", "2"), ("0", "-1"), ("", "1")])
def test_places_of_no_process(rank: str, size: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert score.main(["--model", "m", "--input", "i", "--output", "o"]) == 1
    assert f"the environment says RANK={rank} of WORLD_SIZE={size}" in capsys.readouterr().err


def test_ranges_say_what_they_take() -> None:
    assert str(Limit(0, 1, below=True)) == "at least 0 and below 1"
    assert str(Limit(0, 5, above=True)) == "above 0 and at most 5"
    assert str(Limit(1, 9, also=-1)) == "at least 1 and at most 9, or -1"
    assert not any(Limit().takes(value) for value in (math.nan, math.inf, -math.inf, 10**400, -(10**400)))
    check_limits({"max_steps": -1, "a": None, "b": True, "c": "x", "learning_rate": 0})
