"""Advantages against loops and against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from srm.rl import group_advantages, padded_gae, token_group_advantages
from srm.scoring.token_ids import ScoredTokens


@pytest.fixture
def scored() -> ScoredTokens:
    """Four responses: sentences 1 and 3, none, -2, and 4."""
    return ScoredTokens(
        reward=torch.tensor([2.0, 0.5, -1.0, 3.0]),
        sentence_reward=torch.tensor([9.0, 1.0, 3.0, 9.0, 9.0, -2.0, 9.0, 4.0]),
        weight=torch.ones(8),
        ends=torch.tensor([-1, 1, 3, -1, -1, 0, -1, 2]),
        cu_boundaries=torch.tensor([0, 3, 4, 6, 8]),
        lengths=torch.tensor([4, 0, 1, 3]),
        width=5,
    )


def test_gae_is_the_recursion_on_each_row() -> None:
    torch.manual_seed(0)
    rewards, value = torch.randn(3, 6), torch.randn(3, 6)
    mask = torch.arange(6) < torch.tensor([[6], [0], [3]])
    advantages, returns = padded_gae(rewards, value, mask, gamma=0.9, lam=0.8)
    for row, length in enumerate([6, 0, 3]):
        carried = 0.0
        for t in reversed(range(length)):
            following = value[row, t + 1] if t + 1 < length else 0.0
            carried = rewards[row, t] + 0.9 * following - value[row, t] + 0.9 * 0.8 * carried
            assert advantages[row, t].item() == pytest.approx(float(carried), abs=1e-5)
            assert returns[row, t].item() == pytest.approx(float(carried + value[row, t]), abs=1e-5)
        assert advantages[row, length:].abs().sum() == 0
    white, _ = padded_gae(rewards, value, mask, whitening=True)
    assert white[mask].mean().abs() < 1e-6
    assert white[mask].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match=r"must all be \[B, L\]"):
        padded_gae(rewards, value[:2], mask)


def test_sentences_of_a_group_are_compared(scored: ScoredTokens) -> None:
    group = torch.tensor([7, 7, 7, 3])
    got = group_advantages(scored, group, kind="sentence")
    # The response without text earned nothing beside the prompt's part, which is 9 in all of them.
    value = torch.tensor([1.0, 3.0, -2.0, 0.0])
    first, second, third, _ = ((value - value.mean()) / value.std()).tolist()
    both = first + second
    # Alone in its group, the last response is neither better nor worse.
    want = [[both, both, second, second, 0], [0] * 5, [third, 0, 0, 0, 0], [0] * 5]
    torch.testing.assert_close(got, torch.tensor(want))
    own = group_advantages(scored, group, kind="sentence", to_go="own")
    torch.testing.assert_close(own[0], torch.tensor([first, first, second, second, 0]))
    plain = group_advantages(scored, group, kind="sentence", to_go="own", scale=False)
    torch.testing.assert_close(plain[2, 0], torch.tensor(-2 - 2 / 4))


def test_the_end_token_counts_to_the_last_sentence(scored: ScoredTokens) -> None:
    mask = torch.tensor([[1] * 5, [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1] * 4 + [0]])
    got = group_advantages(scored, torch.zeros(4, dtype=torch.int64), kind="sentence", mask=mask)
    assert got[0, 4] == got[0, 3] != 0
    assert got[2, 1] == got[2, 0] != 0
    assert got[2, 2] == 0
    # The response without text is its end token alone.
    value = torch.tensor([1.0, 3.0, -2.0, 4.0, 0.0])
    assert got[1, 0].item() == pytest.approx(float((0 - value.mean()) / value.std()), abs=1e-5)
    assert got[1, 1:].abs().sum() == 0


@pytest.mark.parametrize("scale", [True, False])
def test_sentences_are_told_by_what_their_tokens_earned(scored: ScoredTokens, scale: bool) -> None:
    """A host keeps what tokens earned, and may pad on the left."""
    group = torch.tensor([7, 7, 7, 3])
    reward = torch.tensor([[0.0, 1, 0, 3, 0], [0] * 5, [-2.0, 0, 0, 0, 0], [0, 0, 4.0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    expected = group_advantages(scored, group, kind="sentence", scale=scale, mask=mask)
    torch.testing.assert_close(token_group_advantages(reward, mask, group, scale=scale), expected)
    last = torch.tensor([1, 4, 3, 2])[:, None]
    column = (torch.arange(5) - last) % 5
    left = token_group_advantages(reward.gather(1, column), mask.gather(1, column), group, scale=scale)
    torch.testing.assert_close(left, expected.gather(1, column))


@pytest.mark.parametrize("kind", ["weighted", "sentence"])
def test_an_answer_without_text_feels_its_reward(kind: Literal["weighted", "sentence"]) -> None:
    """Three policies end at once, at a reward of -3, and one writes a sentence that lifts it to 2."""
    scored = ScoredTokens(
        reward=torch.tensor([-3.0, -3.0, -3.0, 2.0]),
        sentence_reward=torch.tensor([-3.0, -3.0, -3.0, -3.0, 5.0]),
        weight=torch.ones(5),
        ends=torch.tensor([-1, -1, -1, -1, 1]),
        cu_boundaries=torch.tensor([0, 1, 2, 3, 5]),
        lengths=torch.tensor([0, 0, 0, 2]),
        width=3,
    )
    mask = torch.tensor([[1, 0, 0]] * 3 + [[1, 1, 1]])
    got = group_advantages(scored, torch.zeros(4, dtype=torch.int64), kind=kind, mask=mask)
    torch.testing.assert_close(got, torch.tensor([[-0.5, 0, 0]] * 3 + [[1.5] * 3]))
    torch.testing.assert_close(got, group_advantages(scored, torch.zeros(4, dtype=torch.int64), level="response", mask=mask))
    # Ending at once is better than a sentence that lowers the reward.
    worse = replace(scored, reward=torch.tensor([-3.0, -3.0, -3.0, -8.0]), sentence_reward=torch.tensor([-3.0, -3.0, -3.0, -3.0, -5.0]))
    torch.testing.assert_close(group_advantages(worse, torch.zeros(4, dtype=torch.int64), kind=kind, mask=mask), -got)


def test_answers_without_text_alone_have_no_advantage() -> None:
    nothing = ScoredTokens(
        reward=torch.full((2,), -3.0),
        sentence_reward=torch.full((2,), -3.0),
        weight=torch.ones(2),
        ends=torch.full((2,), -1),
        cu_boundaries=torch.arange(3),
        lengths=torch.zeros(2, dtype=torch.int64),
        width=1,
    )
    assert group_advantages(nothing, torch.zeros(2, dtype=torch.int64), mask=torch.ones(2, 1)).tolist() == [[0], [0]]


def test_response_level(scored: ScoredTokens) -> None:
    got = group_advantages(scored, torch.tensor([0, 0, 1, 1]), level="response")
    assert got[0, :4].tolist() == pytest.approx([0.5**0.5] * 4, abs=1e-5)
    assert got[0, 4] == 0
    assert got[2, 0].item() == pytest.approx(-(0.5**0.5), abs=1e-5)


def test_equal_rewards_have_no_advantage(scored: ScoredTokens) -> None:
    flat = replace(scored, sentence_reward=torch.full((8,), 0.1), reward=torch.full((4,), 0.1))
    for level in ("sentence", "response"):
        assert group_advantages(flat, torch.tensor([0, 1, 0, 0]), level=level).abs().max() == 0


def test_errors(scored: ScoredTokens) -> None:
    group = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"`group` must be \[4\]"):
        group_advantages(scored, group[:3])
    with pytest.raises(ValueError, match="`level` must be sentence or response"):
        group_advantages(scored, group, level="token")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pays no sentence"):
        group_advantages(scored, group, kind="response")
