"""The small model that the commands run, loaded once, and the figures at the end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from srm import SentenceRewardModel
from srm.cli import eval_models, eval_report
from srm.cli import score as score_command
from tests.fuzz import harness


@pytest.fixture(scope="session")
def model_dir(awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    awake_model().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def loaded(model_dir: Path) -> SentenceRewardModel:
    return SentenceRewardModel.from_pretrained(model_dir).eval()


@pytest.fixture
def model(loaded: SentenceRewardModel, monkeypatch: pytest.MonkeyPatch) -> SentenceRewardModel:
    """The model that srm-score and srm-eval get: loaded once, for that is most of what a small file costs."""
    from srm.data.boundary import check_row

    check = partial(check_row, loaded.encoder.format, loaded.encoder.answers)
    for command in (score_command, eval_models):
        monkeypatch.setattr(command, "load_model", lambda name, arguments: loaded)
        monkeypatch.setattr(command, "row_check", lambda name: check)
    # A picture takes a second.
    monkeypatch.setattr(eval_report, "_has_matplotlib", lambda console: False)
    return loaded


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files of one input after the other."""
    return tmp_path_factory.mktemp("fuzz")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not harness.figures:
        return
    found = {name: harness.figures[name] for name in ("inputs", "tracebacks", "hangs", "wrong rows")}
    rest = {name: count for name, count in sorted(harness.figures.items()) if name not in found}
    terminalreporter.write_line(f"fuzz: {', '.join(f'{name} {count:,}' for name, count in {**found, **rest}.items())}")
    for name, text in harness.faults.items():
        terminalreporter.write_line(f"\n{name}\n{text}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if harness.faults:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
