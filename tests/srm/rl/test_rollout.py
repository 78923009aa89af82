"""What each token earns, and its advantage, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from srm.rl import group_advantages, leave_one_out, token_level_rewards
from srm.rl.arguments import RLConfig
from srm.rl.policy import Responses, TokenStats
from srm.rl.rollout import find_advantages, make_rollout, reward_tokens
from srm.scoring.token_ids import ScoredTokens

# Two sentences and an end token; no text; one sentence and no end token.
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


@pytest.fixture
def scored() -> ScoredTokens:
    return ScoredTokens(
        reward=torch.tensor([2.0, 0.5, -1.0]),
        sentence_reward=torch.tensor([0.0, 2.0, 6.0, 0.5, 0.0, -2.0]),
        weight=torch.tensor([0.5, 0.25, 0.25, 1.0, 0.5, 0.5]),
        ends=torch.tensor([-1, 1, 3, -1, -1, 4]),
        cu_boundaries=torch.tensor([0, 3, 4, 6]),
        lengths=torch.tensor([4, 0, 5]),
        width=5,
    )


def earned(scored: ScoredTokens, config: RLConfig) -> torch.Tensor:
    zeros = torch.zeros(3, 5)
    return reward_tokens(scored, zeros, zeros, MASK, config)


def test_response_puts_everything_on_the_last_token(scored: ScoredTokens, new_config: Callable[..., RLConfig]) -> None:
    # The end token where there is one; a response without text has its reward too.
    assert earned(scored, new_config(reward="response")).tolist() == [[0, 0, 0, 0, 2], [0.5, 0, 0, 0, 0], [0, 0, 0, 0, -1]]


def test_sentence_pays_where_sentences_end(scored: ScoredTokens, new_config: Callable[..., RLConfig]) -> None:
    assert earned(scored, new_config()).tolist() == [[0, 0.5, 0, 1.5, 0], [0] * 5, [0, 0, 0, 0, -1]]
    assert earned(scored, new_config(sentence_reward="sentence"))[0].tolist() == [0, 2, 0, 6, 0]


def test_both_pay_the_same_in_all_where_the_prompt_earns_nothing(scored: ScoredTokens, new_config: Callable[..., RLConfig]) -> None:
    both = [earned(scored, new_config(reward=kind)).sum(1) for kind in ("sentence", "response")]
    # Index 0, the prompt's, is the whole of the response without text.
    torch.testing.assert_close(both[0][[0, 2]], both[1][[0, 2]])
    torch.testing.assert_close(both[0][[0, 2]], scored.reward[[0, 2]])


def test_whitening_scales_either(scored: ScoredTokens, new_config: Callable[..., RLConfig]) -> None:
    response = earned(scored, new_config(reward="response", whitening="scale")).sum(1)
    spread = scored.reward.std(correction=0)
    torch.testing.assert_close(response, (scored.reward - scored.reward.mean()) / spread + scored.reward.mean())
    dense = torch.tensor([0.5, 1.5, -1.0])
    want = (dense - dense.mean()) / dense.std(correction=0) + dense.mean()
    torch.testing.assert_close(earned(scored, new_config(whitening="scale"))[[0, 0, 2], [1, 3, 4]], want)


def test_full_whitening_takes_the_mean_away_from_either(scored: ScoredTokens, new_config: Callable[..., RLConfig]) -> None:
    response = earned(scored, new_config(reward="response", whitening="full")).sum(1)
    torch.testing.assert_close(response, (scored.reward - scored.reward.mean()) / scored.reward.std(correction=0))
    dense = torch.tensor([0.5, 1.5, -1.0])
    want = (dense - dense.mean()) / dense.std(correction=0)
    torch.testing.assert_close(earned(scored, new_config(whitening="full"))[[0, 0, 2], [1, 3, 4]], want)


def test_the_settings_of_sentences_reach_their_rewards(scored: ScoredTokens, new_config: Callable[..., RLConfig]) -> None:
    settings: list[dict[str, Any]] = [{"to_go": "min"}, {"to_go": "own"}, {"reward_placement": "even"}]
    found = [earned(scored, new_config(sentence_reward="sentence", **choice)) for choice in settings]
    # Rewards 2 and 6: the minimum to go is 2, then 6, and so is what each sentence has alone.
    assert found[0].tolist() == found[1].tolist() == [[0, -4, 0, 6, 0], [0] * 5, [0, 0, 0, 0, -2]]
    torch.testing.assert_close(found[2], torch.tensor([[1.0, 1, 3, 3, 0], [0] * 5, [-0.4] * 5]))
    white = earned(scored, new_config(whitening="position"))
    assert torch.equal(white, token_level_rewards(scored, whitening="position"))
    assert not torch.allclose(white, token_level_rewards(scored, whitening="full"), atol=0.1)


@pytest.mark.parametrize("reward", ["sentence", "response"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_is_subtracted_on_the_policys_tokens(
    scored: ScoredTokens, new_config: Callable[..., RLConfig], reward: str, estimator: str
) -> None:
    torch.manual_seed(0)
    logprobs, reference = torch.randn(3, 5), torch.randn(3, 5)
    logprobs[1, 3] = torch.nan
    config = new_config(reward=reward, kl_coef=0.3, kl_estimator=estimator)
    x = logprobs - reference
    penalty = {"k1": x, "k2": x.square() / 2, "k3": (-x).exp() - 1 + x}[estimator]
    want = earned(scored, replace(config, kl_coef=0.0)) - torch.where(MASK, 0.3 * penalty, 0)
    torch.testing.assert_close(reward_tokens(scored, logprobs, reference, MASK, config), want)


def test_leave_one_out_compares_what_is_still_to_go() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 0.0], [7.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]])
    got = leave_one_out(rewards, mask, 2)
    # To go: 7 6 4 | 8 5 (5) and 7 0 0 | 1 (1) (1), what is in brackets held behind the end.
    assert got.tolist() == [[-1, 1, -1], [1, -1, 0], [6, -1, -1], [-6, 0, 0]]
    assert leave_one_out(rewards, mask, 2, gamma=0.5)[0].tolist() == [3 - 5.5, 4 - 5, 4 - 5]
    with pytest.raises(ValueError, match="4 responses do not divide into groups of num_generations=3"):
        leave_one_out(rewards, mask, 3)
    with pytest.raises(ValueError, match="response 1 has no token"):
        leave_one_out(rewards, mask * torch.tensor([[1], [0], [1], [1]]), 2)


def test_the_whole_reward_on_the_last_token_has_the_plain_leave_one_out_baseline() -> None:
    reward = torch.tensor([3.0, -1.0, 4.0])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    placed = torch.zeros(3, 4).scatter(1, mask.sum(1, keepdim=True) - 1, reward[:, None])
    want = reward - torch.tensor([1.5, 3.5, 1.0])
    torch.testing.assert_close(leave_one_out(placed, mask, 3), want[:, None] * mask)


def test_ppo_advantages_are_those_of_gae(new_config: Callable[..., RLConfig]) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    responses = Responses(torch.zeros(2, 4), torch.ones(2, 4), mask, mask.sum(1))
    stats = TokenStats(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([[0.5, 1.0, 9.0], [0.0, 0.0, 2.0]]))
    # A sentence that earns 3, and two that earn 1.
    scored = ScoredTokens(
        reward=torch.tensor([3.0, 2.0]),
        sentence_reward=torch.tensor([0.0, 3.0, 0.0, 1.0, 1.0]),
        weight=torch.ones(5),
        ends=torch.tensor([-1, 1, -1, 0, 2]),
        cu_boundaries=torch.tensor([0, 2, 5]),
        lengths=torch.tensor([2, 3]),
        width=3,
    )
    config = new_config(algorithm="ppo", lam=0.5, normalize_advantages=False)
    rollout = make_rollout(responses, scored, stats, torch.zeros(2, 3), config)
    # Backwards: 3 - 1 = 2; 1 - 0.5 + 0.5 * 2 = 1.5. And -1; 2 - 0.5 = 1.5; 1 + 0.75.
    assert rollout.advantages.tolist() == [[1.5, 2.0, 0.0], [1.75, 1.5, -1.0]]
    assert rollout.returns.tolist() == [[2.0, 3.0, 0.0], [1.75, 1.5, 1.0]]
    white = make_rollout(responses, scored, stats, torch.zeros(2, 3), replace(config, normalize_advantages=True)).advantages
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[mask].std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert white[0, 2] == 0


@pytest.mark.parametrize("settings", [{}, {"to_go": "min"}, {"to_go": "own"}, {"sentence_reward": "sentence"}, {"reward": "response"}])
def test_grpo_advantages_are_those_of_groups(new_config: Callable[..., RLConfig], scored: ScoredTokens, settings: dict[str, Any]) -> None:
    config = new_config(algorithm="grpo", num_generations=2, **settings)
    two = replace(  # The response without text, and the one of one sentence, are the second prompt's.
        scored,
        reward=scored.reward[[0, 0, 1, 2]],
        sentence_reward=torch.cat([scored.sentence_reward[:3] / 2, scored.sentence_reward]),
        weight=torch.cat([scored.weight[:3], scored.weight]),
        ends=torch.cat([scored.ends[:3], scored.ends]),
        cu_boundaries=torch.tensor([0, 3, 6, 7, 9]),
        lengths=scored.lengths[[0, 0, 1, 2]],
    )
    mask = MASK[[0, 0, 1, 2]]
    stats = TokenStats(torch.randn(4, 5), torch.zeros(4, 5), torch.randn(4, 5))
    got, returns = find_advantages(two, stats, torch.randn(4, 5), mask, config)
    level = settings.get("reward", "sentence")
    kind, to_go = settings.get("sentence_reward", "weighted"), settings.get("to_go", "sum")
    expected = group_advantages(two, torch.tensor([0, 0, 1, 1]), level=level, kind=kind, to_go=to_go, mask=mask)
    assert torch.equal(got, expected)
    assert returns.abs().sum() == 0
