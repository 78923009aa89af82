"""A tiny reward model, and servers of it: in a thread, or in a process of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from srm import SentenceRewardModel
from tests.servers import in_thread


@pytest.fixture(scope="session")
def model(awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model()


@pytest.fixture(scope="session")
def model_dir(model: SentenceRewardModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward_model")
    model.save_pretrained(path)
    return path


@pytest.fixture
def serve(model: SentenceRewardModel) -> Iterator[Callable[..., str]]:
    """serve(**settings) starts a server of `model` in a thread and returns its address."""
    with ExitStack() as servers:
        yield lambda **settings: servers.enter_context(in_thread(model, **settings))


class HeldModel:
    """Stands in for `score_all`: keeps the model's thread waiting until `release` is set, and remembers what ran."""

    def __init__(self, score_all: Callable[..., Any]) -> None:
        self._score_all = score_all
        self.release = threading.Event()
        self.batches: list[list[Any]] = []

    def __call__(self, model: SentenceRewardModel, rows: list[Any], **arguments: Any) -> Any:
        self.batches.append(rows)
        assert self.release.wait(60), "the test forgot to release the model"
        return self._score_all(model, rows, **arguments)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldModel]:
    """Servers made after this run nothing until `held.release` is set."""
    from srm.serving import app

    held = HeldModel(app.score_all)
    monkeypatch.setattr(app, "score_all", held)
    yield held
    held.release.set()
