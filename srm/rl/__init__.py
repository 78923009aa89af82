"""Rewards and advantages for reinforcement learning, from what `SentenceRewardModel.score_tokens` says."""

from srm.rl.advantages import group_advantages, leave_one_out, padded_gae, token_group_advantages
from srm.rl.rewards import RewardKind, sentence_rewards, token_level_rewards, whiten

__all__ = [
    "RewardKind",
    "group_advantages",
    "leave_one_out",
    "padded_gae",
    "sentence_rewards",
    "token_group_advantages",
    "token_level_rewards",
    "whiten",
]
