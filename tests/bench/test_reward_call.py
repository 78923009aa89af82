"""bench/reward_call.py on a tiny model: both ways put the same rewards on the same tokens, and every part is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from srm import SentenceRewardModel
from srm.segmentation import TokenSegmenter, make_segmenter

TEXTS = [
    "The cat sat on the mat. It was warm there!",
    "Is this right?\n\nNo, it is wr",
    "Bread é needs salt. 🙂 Time.",
    "No. Flour, it was.",
]


@pytest.fixture
def script(load: Callable[[str], Any]) -> Any:
    return load("reward_call")


@pytest.fixture
def model(awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model()


@pytest.fixture
def work(script: Any, model: SentenceRewardModel) -> Any:
    prompts = ["Why is bread salty?", "Where is the cat?"]
    rows = [one.ids.tolist() for one in model.encoder.encode_responses(TEXTS)]
    end = model.encoder.tokenizer.eos_token_id
    width = 1 + max(map(len, rows))
    return script.Work(
        prompts=prompts,
        prompt_ids=[model.encoder.encode_prompt(prompt) for prompt in prompts],
        response_ids=torch.tensor([row + [end] * (width - len(row)) for row in rows]),
        lengths=torch.tensor([len(row) for row in rows]),
    )


def test_both_ways_give_the_same_rewards(script: Any, model: SentenceRewardModel, work: Any) -> None:
    assert script.check(model, work)["same_boundaries"] > len(TEXTS)
    clock = script.Clock()
    scored = script.after(model, work, clock)
    text_way = script.before(model, work, clock, script.Vocabulary.of(model))
    torch.testing.assert_close(text_way, scored.to_padded(scored.weighted_reward), atol=1e-5, rtol=1e-4)


def test_every_part_is_timed(script: Any, model: SentenceRewardModel, work: Any) -> None:
    spent = script.time_host(model, work, rounds=2)
    assert set(spent["before"]) == set(script.PARTS) - {"forward"}
    assert set(spent["after"]) == {"segment", "pack", "head", "scatter", "rest"}
    assert all(milliseconds > 0 for parts in spent.values() for milliseconds in parts.values())
    forward = script.time_forward(model, work, responses=1, rounds=1)
    # The first group alone, and that times the tokens of both.
    sizes = [len(ids) for ids in work.prompt_ids]
    lengths = work.lengths.tolist()
    assert forward["timed_tokens"] == sizes[0] + sum(lengths[:2])
    assert forward["all_tokens"] == sum(sizes) + sum(lengths)
    assert forward["milliseconds"] == pytest.approx(
        forward["timed_milliseconds"] * forward["all_tokens"] / forward["timed_tokens"], rel=0.1
    )


def test_other_boundaries_stop_the_run(script: Any, model: SentenceRewardModel, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    by_line = TokenSegmenter(model.encoder.tokenizer, make_segmenter("newline"))
    monkeypatch.setattr(model.encoder, "token_segmenter", lambda tokenizer: by_line)
    with pytest.raises(SystemExit, match="other sentences; nothing is timed"):
        script.check(model, work)


def test_a_part_inside_another_is_taken_out(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = script.Clock()
    ticks = iter([0.0, 1.0, 3.0, 6.0])
    monkeypatch.setattr(script.time, "perf_counter", lambda: next(ticks))
    with clock.part("outer"), clock.part("inner"):
        pass
    assert clock.spent == {"outer": 1.0 + 3.0, "inner": 2.0}
