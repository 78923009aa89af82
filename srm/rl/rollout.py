"""What a step learns from: responses, what they earned, and the advantages of their tokens.

Shape letters: `B` responses, `P` width of the padded prompts, `L` width of the padded responses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from srm.rl.advantages import leave_one_out, padded_gae
from srm.rl.arguments import RLConfig
from srm.rl.policy import Responses, TokenStats
from srm.rl.rewards import token_level_rewards, whiten
from srm.scoring.token_ids import ScoredTokens

__all__ = ["Rollout", "make_rollout", "reward_tokens"]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Responses of one step, from one process.

    Attributes:
        responses: what was written.
        logprobs, value: fp32 [B, L], of the policy that wrote them.
        advantages: fp32 [B, L].
        returns: fp32 [B, L], what the value head should have said; means nothing without one.
    """

    responses: Responses
    logprobs: Tensor
    value: Tensor
    advantages: Tensor
    returns: Tensor

    def take(self, rows: Tensor) -> Rollout:
        """The responses `rows` [n]."""
        return Rollout(
            responses=Responses(*(part[rows] for part in self.responses)),
            logprobs=self.logprobs[rows],
            value=self.value[rows],
            advantages=self.advantages[rows],
            returns=self.returns[rows],
        )


def reward_tokens(scored: ScoredTokens, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, config: RLConfig) -> Tensor:
    """fp32 [B, L], what each token earns, the price of KL subtracted.

    `sentence`: each sentence's reward on its tokens, as `token_level_rewards` places it. `response`: the response's reward on its last
    token, which is the end token where there is one, so that ending is paid for what it ends; a response without text has its reward too.
    """
    is_dense = config.reward == "sentence"
    # Without sentence rewards the KL penalty alone is left.
    paid = scored if is_dense else replace(scored, sentence_reward=torch.zeros_like(scored.sentence_reward))
    rewards = token_level_rewards(
        paid,
        kind=config.sentence_reward,
        whitening=config.whitening if is_dense else "none",
        to_go=config.to_go,
        placement=config.reward_placement,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        mask=mask,
        kl_coef=config.kl_coef,
        estimator=config.kl_estimator,
    )
    if is_dense:
        return rewards
    reward = scored.reward
    if config.whitening != "none":
        reward = whiten(reward, torch.ones_like(reward, dtype=torch.bool), shift_mean=config.whitening == "full")
    return rewards.scatter_add(1, mask.sum(1, keepdim=True) - 1, reward[:, None])


def make_rollout(responses: Responses, stats: TokenStats, rewards: Tensor, config: RLConfig) -> Rollout:
    """The rollout with the advantages of `config.algorithm`; `rewards` as `reward_tokens` makes them."""
    mask = responses.mask
    if config.algorithm == "ppo":
        advantages, returns = padded_gae(rewards, stats.value, mask, gamma=config.gamma, lam=config.lam)
    else:
        advantages = leave_one_out(rewards, mask, config.num_generations, gamma=config.gamma)
        returns = torch.zeros_like(advantages)
    if config.normalize_advantages:
        advantages = whiten(advantages, mask)
    return Rollout(responses=responses, logprobs=stats.logprobs, value=stats.value, advantages=advantages, returns=returns)
