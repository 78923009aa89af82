"""A tiny reward model, and servers of it: in a thread, or in a process of their own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from srm import SentenceRewardModel


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
        yield lambda **settings: servers.enter_context(_serving(model, settings))


@contextmanager
def _serving(model: SentenceRewardModel, settings: dict[str, Any]) -> Iterator[str]:
    from srm.serving import ServerSettings, create_app, make_server

    listener = socket.create_server(("127.0.0.1", 0))
    chosen = ServerSettings(**settings)
    server = make_server(create_app(model, chosen), chosen)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


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


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@pytest.fixture
def helpers() -> dict[str, Any]:
    """Functions of this file, for tests that cannot import it."""
    return {"wait_until": wait_until}
