"""What a step learns from: responses, what they earned, and the advantages of their tokens.

Shape letters: `B` responses, `P` width of the padded prompts, `L` width of the padded responses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from srm.rl.advantages import group_advantages, leave_one_out, padded_gae
from srm.rl.arguments import RLConfig
from srm.rl.policy import Responses, TokenStats
from srm.rl.rewards import token_level_rewards, whiten
from srm.scoring.token_ids import ScoredTokens

__all__ = ["Rollout", "find_advantages", "make_rollout", "reward_tokens"]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Responses of one step, from one process.

    Attributes:
        responses: what was written.
        logprobs, value: fp32 [B, L], of the policy that wrote them.
        ref_logprobs: fp32 [B, L], of the reference.
        advantages: fp32 [B, L].
        returns: fp32 [B, L], what the value head should have said; means nothing without one.
    """

    responses: Responses
    logprobs: Tensor
    value: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    returns: Tensor

    def take(self, rows: Tensor) -> Rollout:
        """The responses `rows` [n]."""
        return Rollout(
            responses=Responses(*(part[rows] for part in self.responses)),
            logprobs=self.logprobs[rows],
            value=self.value[rows],
            ref_logprobs=self.ref_logprobs[rows],
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
        estimator=config.resolved_kl_estimator,
    )
    if is_dense:
        return rewards
    reward = scored.reward
    if config.whitening != "none":
        reward = whiten(reward, torch.ones_like(reward, dtype=torch.bool), shift_mean=config.whitening == "full")
    return rewards.scatter_add(1, mask.sum(1, keepdim=True) - 1, reward[:, None])


def find_advantages(scored: ScoredTokens, stats: TokenStats, ref_logprobs: Tensor, mask: Tensor, config: RLConfig) -> tuple[Tensor, Tensor]:
    """Advantages of `config.algorithm`, and the returns of its value head (0 where it has none), both fp32 [B, L]."""
    if config.algorithm == "grpo":
        advantages = group_advantages(
            scored,
            torch.arange(mask.shape[0], device=mask.device) // config.num_generations,
            level=config.reward,
            kind=config.sentence_reward,
            to_go=config.to_go,
            mask=mask,
        )
        return advantages, torch.zeros_like(advantages)
    rewards = reward_tokens(scored, stats.logprobs, ref_logprobs, mask, config)
    if config.algorithm == "ppo":
        return padded_gae(rewards, stats.value, mask, gamma=config.gamma, lam=config.lam)
    advantages = leave_one_out(rewards, mask, config.num_generations, gamma=config.gamma)
    return advantages, torch.zeros_like(advantages)


def make_rollout(responses: Responses, scored: ScoredTokens, stats: TokenStats, ref_logprobs: Tensor, config: RLConfig) -> Rollout:
    """The rollout with the advantages of `config.algorithm`, of mean 0 and variance 1 if they are to be."""
    advantages, returns = find_advantages(scored, stats, ref_logprobs, responses.mask, config)
    return Rollout(
        responses=responses,
        logprobs=stats.logprobs,
        value=stats.value,
        ref_logprobs=ref_logprobs,
        advantages=whiten(advantages, responses.mask) if config.normalize_advantages else advantages,
        returns=returns,
    )
