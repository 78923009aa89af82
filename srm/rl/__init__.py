"""Rewards and advantages for reinforcement learning, from what `SentenceRewardModel.score_tokens` says."""

from srm.rl.advantages import group_advantages, leave_one_out, padded_gae, token_group_advantages
from srm.rl.rewards import (
    Placement,
    RewardKind,
    ToGo,
    Whitening,
    rewards_to_go,
    sentence_rewards,
    sum_form,
    token_level_rewards,
    whiten,
    whiten_by_position,
)

__all__ = [
    "Placement",
    "RewardKind",
    "ToGo",
    "Whitening",
    "group_advantages",
    "leave_one_out",
    "padded_gae",
    "rewards_to_go",
    "sentence_rewards",
    "sum_form",
    "token_group_advantages",
    "token_level_rewards",
    "whiten",
    "whiten_by_position",
]
