"""A reward model with a head that is not zero, so that every part of the output is worth checking."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from srm import SentenceRewardModel


@pytest.fixture
def model(awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model()
