"""Reward models that srm-eval is asked to judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srm import SentenceRewardModel


@pytest.fixture(scope="module")
def build(awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a tiny reward model with a head that is not zero."""

    def build(name: str, **config: Any) -> Path:
        path = tmp_path_factory.mktemp("models") / name
        awake_model(seed=len(name), **config).save_pretrained(path)
        return path

    return build


@pytest.fixture(scope="module")
def sentence(build: Callable[..., Path]) -> Path:
    return build("sentence")
