"""The line of a step: what is in it, and that it fits."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from srm.cli.progress import StepBar, StepLines, _short
from srm.cli.terminal import Terminal

STEP = {"loss": 0.5127, "accuracy": 0.9375, "margin": -12.3456, "learning_rate": 1.9876e-05, "tokens_per_second": 18_345.0, "epoch": 0.1}


def shown(capsys: pytest.CaptureFixture[str], logs: dict[str, Any], *, step: int = 7, max_steps: int = 1000, **state: Any) -> list[str]:
    lines = StepLines(StepBar(Terminal(soft_wrap=True), bar=False))
    lines.on_log(TrainingArguments("unused"), TrainerState(global_step=step, max_steps=max_steps, **state), TrainerControl(), logs=logs)
    return capsys.readouterr().out.splitlines()


def test_a_training_step_fits_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = shown(capsys, STEP, step=7, max_steps=99_999)
    assert line == "step     7/99999  loss 0.513  acc 0.938  margin -12.346  lr 2.0e-05  18k tok/s"
    assert len(line) <= 80


@pytest.mark.parametrize(("prefix", "name"), [("eval_", ""), ("eval_hard_", " hard")])
def test_an_evaluation_stands_under_the_same_columns(capsys: pytest.CaptureFixture[str], prefix: str, name: str) -> None:
    logs = {f"{prefix}{key}": value for key, value in STEP.items()} | {f"{prefix}mean_value_loss": 9.0, f"{prefix}runtime": 1.0}
    assert shown(capsys, logs) == [f"step    7/1000  loss 0.513  acc 0.938  margin -12.346  evaluation{name}"]


def test_what_is_next_to_nothing_has_no_sign(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = shown(capsys, {**STEP, "margin": -1e-6})
    assert "margin  0.000" in line


def test_the_end_of_a_run_and_other_processes_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, {"train_runtime": 3.0, "train_loss": 0.5}) == []
    assert shown(capsys, STEP, is_world_process_zero=False) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (940.4, "940"),
        (999.4, "999"),
        (999.6, "1.0k"),
        (1840, "1.8k"),
        (9960, "10k"),
        (18_345, "18k"),
        (183_450, "183k"),
        (2.5e6, "2.5M"),
    ],
)
def test_speeds_in_few_digits(count: float, text: str) -> None:
    assert _short(count) == text
