"""A reward model with a head that is not zero, so that every part of the output is worth checking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from srm import SentenceRewardModel
from tests.browser import chromium
from tests.hub import Files, data_set, reading_from, serve_hub


@pytest.fixture
def model(awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model()


@pytest.fixture
def data_hub(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """`data_hub(name, split, rows)` puts rows where the hub has a data set; `datasets` itself reads them from there."""
    repositories: dict[str, Files] = {}

    def put(name: str, split: str, rows: list[dict[str, Any]], config: str | None = None, files: Files | None = None) -> None:
        repositories[f"datasets/{name}"] = data_set(split, rows, config) | (files or {})

    with serve_hub(repositories) as url, reading_from(url, tmp_path / "hub cache"):
        yield put


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, without a window; its logs tell what pages asked for."""
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
