from __future__ import annotations

from collections.abc import Callable

import pytest

from srm.scoring.results import ScoredResponse, ScoredSentence


def build(*sentences: tuple[str, float, float], reward: float | None = None) -> ScoredResponse:
    scored, start = [], 0
    for text, value, weight in sentences:
        end = start + len(text)
        scored.append(ScoredSentence(text=text, start=start, end=end, reward=value, weight=weight, weighted_reward=weight * value))
        start = end
    total = sum(sentence.weighted_reward for sentence in scored) if reward is None else reward
    return ScoredResponse(reward=total, prompt_reward=0.1, prompt_weight=1.0, sentences=tuple(scored))


@pytest.fixture(scope="session")
def make_scored() -> Callable[..., ScoredResponse]:
    """`make_scored((text, reward, weight), ..., reward=None)`; the sentences join to the response, the prompt's reward is 0.1."""
    return build
