"""The reward model that hosts ask: itself, its folder, and a server of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from srm import SentenceRewardModel
from tests.servers import as_command


@pytest.fixture(scope="module")
def model(awake_model: Callable[[], SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model()


@pytest.fixture(scope="module")
def folder(model: SentenceRewardModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward_model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real srm-serve in a process of its own."""
    with as_command(folder, tmp_path_factory.mktemp("serve") / "log") as address:
        yield address
