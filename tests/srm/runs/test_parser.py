"""Flags of every command: misspelt ones are found first and the nearest is named; --help is grouped, short, and whole."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from srm.cli import demo, eval, rl, score, serve, train
from srm.rl.arguments import _COMMAND as RL
from srm.rl.arguments import RLConfig
from srm.runs.parser import Parser, did_you_mean
from srm.training.arguments import _COMMAND as TRAIN
from srm.training.arguments import DataArguments, ModelArguments, RewardConfig

COMMANDS = {module.__name__.rsplit(".", 1)[-1]: module.main for module in (train, rl, score, eval, serve, demo)}
Main = Callable[[list[str]], int]


@pytest.mark.parametrize(
    ("command", "word", "near"),
    [
        ("train", "--per_device_batch_size", "--per_device_train_batch_size or --per_device_eval_batch_size"),
        ("train", "--lerning_rate=1", "--learning_rate"),
        ("train", "--gradient-acumulation-steps", "--gradient_accumulation_steps"),
        ("train", "--help_me", "--help or --help_all"),
        ("train", "--confg", "--config"),
        ("train", "--num_procesess", "--num_processes"),
        ("train", "--no_diference", "--no_difference"),
        ("train", "--batch_size", "--per_device_train_batch_size or --auto_find_batch_size or --per_device_eval_batch_size"),
        ("rl", "--kl_coeff", "--kl_coef"),
        ("rl", "--help_me", "--help"),
        ("score", "--heml", "--html"),
        ("score", "--help_me", "--help"),
        ("score", "--out", "--output"),
        ("eval", "--help_me", "--help"),
        ("eval", "--suit", "--suite"),
        ("serve", "--hots", "--host"),
        ("demo", "--num_pair", "--num_pairs"),
    ],
)
def test_the_nearest_flags_are_named(command: str, word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With nothing else on the command line: what is missing is not complained of first."""
    assert COMMANDS[command]([word]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f": unknown argument '{word}'; did you mean {near}? See --help for all of them.")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_what_is_far_from_everything_suggests_nothing(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS[command](["--zqx"]) == 1
    assert "unknown argument '--zqx'. See --help" in capsys.readouterr().err


def test_a_misspelt_flag_comes_before_what_comes_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of these also lacks a flag that the misspelt one was to be, or has a value that nothing takes."""
    assert train.main(["--model_name_or_path", "m", "--dataset_name", "d", "--load_in_4bit", "--use_pfet"]) == 1
    assert "did you mean --use_peft?" in capsys.readouterr().err
    assert eval.main(["--model", "m", "--sute", "s", "--measure", "x"]) == 1
    assert "did you mean --suite?" in capsys.readouterr().err


def test_flags_are_not_taken_by_halves(capsys: pytest.CaptureFixture[str]) -> None:
    """A part of a name means one flag today and two tomorrow."""
    assert score.main(["--mod", "m", "--input", "i", "--output", "o"]) == 1
    assert "did you mean --model?" in capsys.readouterr().err


def test_values_are_no_flags() -> None:
    parser = Parser()
    parser.add_argument("--words", nargs="+")
    parser.add_argument("--margin", type=float)
    parsed = parser.parse_args(["--words", "-- a", "-", "--margin", "-1"])
    assert (parsed.words, parsed.margin) == (["-- a", "-"], -1.0)


@pytest.mark.parametrize(
    ("name", "known", "told"),
    [
        ("splits", ["path", "split"], "; did you mean split?"),
        ("tarin", ["train", "test"], "; did you mean train?"),
        ("abcd", ["abce", "abcf", "abcg", "abch"], "; did you mean abce or abcf or abcg?"),
        ("", ["a"], "."),
        ("x", [], "."),
    ],
)
def test_did_you_mean(name: str, known: list[str], told: str) -> None:
    assert did_you_mean(name, known) == told


def help_of(main: Main, capsys: pytest.CaptureFixture[str], flag: str = "--help") -> str:
    with pytest.raises(SystemExit) as stopped:
        main([flag])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_is_short_and_fits(command: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_of(COMMANDS[command], capsys).splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("usage: ")


def test_help_is_in_sections_of_our_own_settings(capsys: pytest.CaptureFixture[str]) -> None:
    out = help_of(train.main, capsys)
    titles = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [f"{title}:" for title in (*TRAIN.sections, "help")]
    shown = [name for names in TRAIN.sections.values() for name in names]
    assert len(shown) == len(set(shown))
    own = {entry.name: entry for kind in (ModelArguments, DataArguments) for entry in fields(kind)}
    own |= {entry.name: entry for entry in fields(RewardConfig) if entry.name in RewardConfig.__annotations__}
    left_out = own.keys() - set(shown)
    # Rare ones, and those that are taken for another program's sake.
    rare = {"streaming", "lora_target_parameters", "logging_nan_inf_filter", "ddp_find_unused_parameters"}
    rare |= {"bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"}
    assert {name for name in left_out if "for trl's sake" not in own[name].metadata["help"]} == rare
    assert "--weight_decay" not in out


def test_help_all_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    out = help_of(train.main, capsys, "--help_all")
    for kind in (ModelArguments, DataArguments, RewardConfig):
        for entry in fields(kind):
            assert f"\n  --{entry.name}" in out or not entry.init, entry.name


def test_srm_rl_shows_all_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    out = help_of(rl.main, capsys)
    assert {name for names in RL.sections.values() for name in names} == {entry.name for entry in fields(RLConfig)} | {"config"}
    assert "--help_all" not in out


def test_defaults_stand_in_brackets() -> None:
    parser = Parser(prog="p")
    parser.add_argument("--size", type=int, default=0, help="how many.")
    parser.add_argument("--path", type=Path, required=True, help="where 100%% of it is")
    parser.add_argument("--share", default="50%", help="of it")
    parser.add_argument("--device", default="auto", help="where [a GPU]")
    parser.add_argument("--off", action="store_true", help="a switch")
    lines = parser.format_help().splitlines()
    assert lines[0] == "usage: p --path PATH [flags]"
    told = [" ".join(line.split()) for line in lines if line.startswith("  --")]
    assert told == [
        "--size N how many [0]",
        "--path PATH where 100% of it is",
        "--share NAME of it [50%]",
        "--device NAME where [a GPU]",
        "--off a switch",
    ]


def test_a_parser_is_argparse_for_all_else() -> None:
    parser: Any = Parser(prog="p", description="d")
    assert isinstance(parser, argparse.ArgumentParser)
    assert vars(parser.parse_args([])) == {}
