"""Advantages against loops and against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch

from srm.rl import ToGo, group_advantages, padded_gae, token_group_advantages
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
    got = group_advantages(scored, group, kind="sentence", scale=False)
    # To go from the first sentence: 4, -2, and 0 without text, which earned the prompt's part alone. From the second: 3, and 0 twice.
    first, second = 4 - 2 / 3, 3 - 1
    # Alone in its group, the last response is neither better nor worse.
    want = [[first, first, second, second, 0], [0] * 5, [-2 - 2 / 3, 0, 0, 0, 0], [0] * 5]
    torch.testing.assert_close(got, torch.tensor(want))
    # The deviation is that of the three sentences and of the response without text.
    deviation = math.sqrt((first**2 + second**2 + (2 / 3) ** 2 + (2 + 2 / 3) ** 2) / 3)
    torch.testing.assert_close(group_advantages(scored, group, kind="sentence"), torch.tensor(want) / deviation)


def test_the_end_token_answers_for_ending(scored: ScoredTokens) -> None:
    """Whoever ends has nothing to go, and is compared with what the others still earn."""
    mask = torch.tensor([[1] * 5, [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1] * 4 + [0]])
    got = group_advantages(scored, torch.zeros(4, dtype=torch.int64), kind="sentence", scale=False, mask=mask)
    # To go from the first sentence 4, 0, -2, 4, from the second 3 and thrice 0, from the third nothing.
    want = [[2.5, 2.5, 2.25, 2.25, 0], [-1.5, 0, 0, 0, 0], [-3.5, -0.75, 0, 0, 0], [2.5, 2.5, 2.5, -0.75, 0]]
    torch.testing.assert_close(got, torch.tensor(want))


@pytest.mark.parametrize(
    ("to_go", "want"),
    [
        # From the first sentence 1, 0, -2, 4, from the second 1 and thrice 0.
        ("min", [[0.25, 0.25, 0.75, 0.75, 0], [-0.75, 0, 0, 0, 0], [-2.75, -0.25, 0, 0, 0], [3.25, 3.25, 3.25, -0.25, 0]]),
        # The first sentence 3, 0, -2, 4.
        ("own", [[1.75, 1.75, 0.75, 0.75, 0], [-1.25, 0, 0, 0, 0], [-3.25, -0.25, 0, 0, 0], [2.75, 2.75, 2.75, -0.25, 0]]),
    ],
)
def test_what_is_to_go_is_compared(scored: ScoredTokens, to_go: ToGo, want: list[list[float]]) -> None:
    mask = torch.tensor([[1] * 5, [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1] * 4 + [0]])
    scored = replace(scored, sentence_reward=torch.tensor([9.0, 3.0, 1.0, 9.0, 9.0, -2.0, 9.0, 4.0]))
    got = group_advantages(scored, torch.zeros(4, dtype=torch.int64), kind="sentence", scale=False, to_go=to_go, mask=mask)
    torch.testing.assert_close(got, torch.tensor(want))


@pytest.mark.parametrize("kind", ["weighted", "sentence"])
def test_one_more_good_sentence_is_worth_writing(kind: Literal["weighted", "sentence"]) -> None:
    """All sentences are alike, and earn 1. Whoever writes more of them is ahead from the first token on, and ending early is behind."""
    counts = torch.tensor([1, 2, 4])
    scored = ScoredTokens(
        reward=counts.float(),
        sentence_reward=torch.ones(10),
        weight=torch.ones(10),
        ends=torch.tensor([-1, 0, -1, 0, 1, -1, 0, 1, 2, 3]),
        cu_boundaries=torch.tensor([0, 2, 5, 10]),
        lengths=counts,
        width=5,
    )
    mask = torch.arange(5) <= counts[:, None]
    got = group_advantages(scored, torch.zeros(3, dtype=torch.int64), kind=kind, mask=mask)
    assert got[0, 0] < got[1, 0] < 0 < got[2, 0]
    # The end token of the shortest is worst, that of the longest has nobody to envy.
    assert got[0, 1] < got[1, 2] < got[2, 4] == 0


def test_the_baseline_is_the_same_whatever_the_order(scored: ScoredTokens) -> None:
    """Groups need not lie side by side."""
    order = torch.tensor([2, 0, 3, 1])
    pieces = [torch.arange(int(scored.cu_boundaries[i]), int(scored.cu_boundaries[i + 1])) for i in order.tolist()]
    rows = torch.cat(pieces)
    mixed = replace(
        scored,
        reward=scored.reward[order],
        sentence_reward=scored.sentence_reward[rows],
        weight=scored.weight[rows],
        ends=scored.ends[rows],
        cu_boundaries=torch.tensor([0, *(len(piece) for piece in pieces)]).cumsum(0),
        lengths=scored.lengths[order],
    )
    group = torch.tensor([5, 2, 5, 2])
    torch.testing.assert_close(group_advantages(mixed, group[order]), group_advantages(scored, group)[order])


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
    # Behind its one sentence nobody has more to go.
    torch.testing.assert_close(got, torch.tensor([[-0.5, 0, 0]] * 3 + [[1.5, 1.5, 0]]))
    response = group_advantages(scored, torch.zeros(4, dtype=torch.int64), level="response", mask=mask)
    torch.testing.assert_close(got[:, :2], response[:, :2])
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
    # At sentence level those of one sentence each; one with two has more.
    for level, group in (("sentence", [0, 1, 2, 2]), ("response", [0, 1, 0, 0])):
        assert group_advantages(flat, torch.tensor(group), level=level).abs().max() == 0


def test_errors(scored: ScoredTokens) -> None:
    group = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"`group` must be \[4\]"):
        group_advantages(scored, group[:3])
    with pytest.raises(ValueError, match="`level` must be sentence or response"):
        group_advantages(scored, group, level="token")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pays no sentence"):
        group_advantages(scored, group, kind="response")


@pytest.mark.parametrize(("kind", "first"), [("weighted", [1.25, 0.5, -1.5]), ("sentence", [0.0, 1.0, -2.0])])
def test_a_response_without_text_is_paid_what_it_has_above_the_prompts_part(
    kind: Literal["weighted", "sentence"], first: list[float]
) -> None:
    """The prompt's part is 2 for the first, and 1 and 0.5, or 2 each without weights, for the others."""
    scored = ScoredTokens(
        reward=torch.tensor([2.0, 1.5, -1.0]),
        sentence_reward=torch.tensor([2.0, 2.0, 1.0, 2.0, -2.0]),
        weight=torch.tensor([1.0, 0.5, 0.5, 0.25, 0.75]),
        ends=torch.tensor([-1, -1, 0, -1, 0]),
        cu_boundaries=torch.tensor([0, 1, 3, 5]),
        lengths=torch.tensor([0, 1, 1]),
        width=1,
    )
    got = group_advantages(scored, torch.zeros(3, dtype=torch.int64), kind=kind, scale=False, mask=torch.ones(3, 1))
    torch.testing.assert_close(got[:, 0], torch.tensor(first) - sum(first) / 3)


def test_no_responses_have_no_advantages(scored: ScoredTokens) -> None:
    nothing = replace(
        scored,
        **{name: getattr(scored, name)[:0] for name in ("reward", "sentence_reward", "weight", "ends", "lengths")},
        cu_boundaries=torch.zeros(1, dtype=torch.int64),
    )
    for level in ("sentence", "response"):
        assert group_advantages(nothing, torch.zeros(0, dtype=torch.int64), level=level).shape == (0, 5)


def test_token_rewards_of_half_precision_are_summed_in_full(scored: ScoredTokens) -> None:
    reward = torch.tensor([[256.0, 1.0], [0.0, 0.0]], dtype=torch.bfloat16)
    got = token_group_advantages(reward, torch.ones(2, 2), torch.tensor([0, 0]), scale=False)
    # 257 is no bf16 number.
    assert got.tolist() == [[128.5, 0.5], [-128.5, -128.5]]


def test_a_list_of_groups_is_refused(scored: ScoredTokens) -> None:
    with pytest.raises(TypeError, match=r"`group` must be a tensor, such as torch.tensor\(\[0, 0, 1, 1\]\), got list"):
        group_advantages(scored, [0, 0, 1, 1])  # type: ignore[arg-type]  # what a user may give
