"""SkyRL: `SentenceRewardGenerator` gives each sentence of a rollout its reward, and `srm` compares them in groups.

Written against SkyRL 0.3.0. Importing it enters the environment `srm` into skyrl_gym, in which the policy answers once, and the advantage
estimators `srm`, `srm_min` and `srm_own` into SkyRL. Shape letters: `B` responses, `L` width of the padded responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import skyrl_gym
import torch
from skyrl.backends.skyrl_train.utils.ppo_utils import register_advantage_estimator
from skyrl.train.generators.skyrl_gym_generator import SkyRLGymGenerator, TrajectoryOutput
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput
from torch import Tensor

from srm.errors import UserError
from srm.integrations.source import PolicyRewards
from srm.rl import RewardKind, ToGo, token_group_advantages

__all__ = ["OneAnswer", "SentenceRewardGenerator", "sentence_group_advantages"]


class OneAnswer(BaseTextEnv):
    """The environment `srm`: the policy answers once. It pays nothing itself."""

    def __init__(self, env_config: object = None, extras: object = None) -> None:
        super().__init__()

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """The end of the trajectory."""
        return BaseTextEnvStepOutput(observations=[], reward=0.0, done=True, metadata={})


class SentenceRewardGenerator(SkyRLGymGenerator):
    """SkyRL's own generator, whose rollouts get a sentence-level reward model's rewards on top of what their environment pays.

    Args:
        kind: what a sentence earns, as in `srm.rl.sentence_rewards`.
        url: of a running `srm-serve`.
        token: the server's, if it has one.
        model: in place of `url`: a folder or a name on the Hub.
        *args, **kwargs: go to `SkyRLGymGenerator`.

    Raises:
        UserError: neither or both of `url` and `model`, another `kind`, or settings of the generator under which a rollout is not one
            response on the policy's own token ids.
    """

    def __init__(
        self,
        *args: Any,
        url: str | None = None,
        token: str | None = None,
        model: str | None = None,
        kind: RewardKind = "weighted",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        config = self.generator_cfg
        one_response = {"batched": False, "max_turns": 1, "step_wise_trajectories": False}
        if wrong := [f"generator.{name}={value}" for name, value in one_response.items() if getattr(config, name) != value]:
            raise UserError(f"SentenceRewardGenerator: a rollout must be one response, scored when it is there. Set {', '.join(wrong)}.")
        if self.custom_chat_template is not None:
            raise UserError("SentenceRewardGenerator: generator.chat_template makes SkyRL tokenize the response anew. Leave it out.")
        self._rewards = PolicyRewards(self.tokenizer, url=url, token=token, model=model, kind=kind)

    async def agent_loop(self, prompt: list[dict[str, str]], *args: Any, **kwargs: Any) -> TrajectoryOutput:
        """SkyRL's, then the rewards of what the policy wrote, on its token ids."""
        output = await super().agent_loop(prompt, *args, **kwargs)
        _, paid = await self._rewards.score(prompt, output.response_ids)
        output.reward = [own + added for own, added in zip(output.reward, paid, strict=True)]
        return output


def sentence_group_advantages(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Sequence[str],
    config: Any = None,
    grpo_norm_by_std: bool = True,
    *,
    to_go: ToGo = "sum",
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """`srm.rl.token_group_advantages` as SkyRL's `trainer.algorithm.advantage_estimator=srm`, `srm_min` or `srm_own`: its GRPO, RLOO and
    MAXRL sum a response's rewards before they compare them.

    Args:
        token_level_rewards: [B, L], each sentence's reward on its last token, 0 elsewhere.
        response_mask: [B, L], the policy's tokens.
        index: [B], the same for responses to one prompt.
        config: SkyRL's `trainer.algorithm`.
        grpo_norm_by_std: whether to divide by the group's standard deviation.
        to_go: as in `group_advantages`; the estimator's name says which.

    Returns:
        Advantages, twice, fp32 [B, L].

    Raises:
        UserError: `trainer.algorithm.use_kl_in_reward`, which pays every token, so that sentences cannot be told from tokens.
    """
    if config is not None and config.use_kl_in_reward:
        name = "srm" if to_go == "sum" else f"srm_{to_go}"
        raise UserError(f"advantage_estimator={name} needs trainer.algorithm.use_kl_in_reward=false. Use use_kl_loss=true for the penalty.")
    group = torch.from_numpy(np.unique(index, return_inverse=True)[1])
    advantages = token_group_advantages(token_level_rewards, response_mask, group, scale=grpo_norm_by_std, to_go=to_go)
    return advantages, advantages


register_advantage_estimator("srm")(sentence_group_advantages)
register_advantage_estimator("srm_min")(partial(sentence_group_advantages, to_go="min"))
register_advantage_estimator("srm_own")(partial(sentence_group_advantages, to_go="own"))


if "srm" not in skyrl_gym.registry:
    skyrl_gym.register(id="srm", entry_point="srm.integrations.skyrl:OneAnswer")
