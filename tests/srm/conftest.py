"""A reward model with a head that is not zero, so that every part of the output is worth checking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from srm import SentenceRewardModel
from tests.browser import chromium


@pytest.fixture
def model(awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, without a window; its logs tell what pages asked for."""
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
