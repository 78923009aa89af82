"""verl: `compute_score` gives a response its reward, `SentenceRewardManager` each sentence its own, and `srm` compares them in groups.

Runs inside verl, which imports it by the path `pkg://srm.integrations.verl` (written against 0.9.1). Shape letters: `B` responses,
`L` width of the padded responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer.ppo.core_algos import register_adv_est

from srm.errors import UserError
from srm.integrations.source import PolicyRewards, RewardSource
from srm.rl import ToGo, token_group_advantages

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedTokenizerBase

    from srm.data import Prompt

__all__ = ["SentenceRewardManager", "TokenRewards", "compute_score", "sentence_group_advantages"]


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    token: str | None = None,
    model: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """The response reward of one solution, as verl's `reward.custom_reward_function`.

    Args:
        data_source, ground_truth: verl passes them; a reward model asks neither.
        solution_str: the response. Without text it earns what its prompt does.
        extra_info: must hold `prompt`, a string or a list of messages.
        url, token: of a running `srm-serve`, which batches what all of verl's workers ask. Among the function's `reward_kwargs`.
        model: in place of `url`: a folder or a name on the Hub. Each of verl's workers loads it once.

    Returns:
        `score`, the response reward, and `num_sentences`.

    Raises:
        UserError: no prompt, or neither or both of `url` and `model`.
    """
    if not extra_info or "prompt" not in extra_info:
        raise UserError("compute_score: `extra_info` must hold the prompt. Add a `prompt` to the `extra_info` of each row of the data.")
    scored = await RewardSource(url=url, token=token, model=model).score(_plain(extra_info["prompt"]), solution_str)
    return {"score": scored.reward, "num_sentences": float(len(scored.sentences))}


class TokenRewards(float):
    """A response's reward, as verl's streaming path wants it, that carries what each token earned to the path that wants that.

    Attributes:
        paid: what each token of the response earned, [tokens].
    """

    paid: list[float]

    def __new__(cls, reward: float, paid: list[float]) -> TokenRewards:
        self = super().__new__(cls, reward)
        self.paid = paid
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenRewards, (float(self), self.paid)


@register("srm")
class SentenceRewardManager(RewardManagerBase):
    """Asks a sentence-level reward model for the rewards of verl's rollouts.

    verl's `reward.reward_kwargs` holds `url` (and `token`) of a running `srm-serve`, or `model`, and may hold `kind`, what a sentence earns
    (see `srm.rl.sentence_rewards`).

    Where verl asks for a whole batch (`compute_rm_score`), every sentence's last token gets its reward. Where it asks sample by sample,
    while others are still being written, it takes one number a sample: the response reward, on the last token.

    Args:
        config: verl's whole configuration.
        tokenizer: the policy's. Its vocabulary need not be the reward model's.
        compute_score, reward_router_address, reward_model_tokenizer: verl passes them to every manager; this one asks none of them.

    Raises:
        UserError: `reward.reward_kwargs` lacks both `url` and `model`, has both, or names another `kind`.
    """

    def __init__(
        self,
        config: DictConfig,
        tokenizer: PreTrainedTokenizerBase,
        compute_score: object,
        reward_router_address: str | None = None,
        reward_model_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        settings = dict(config.reward.get("reward_kwargs") or {})
        if unknown := sorted(set(settings) - {"url", "token", "model", "kind"}):
            raise UserError(f"reward.reward_kwargs: unknown setting {', '.join(unknown)}. Choose from url, token, model, kind.")
        self._rewards = PolicyRewards(tokenizer, **settings)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Rewards of one sample.

        Args:
            data: one or more turns of one trajectory, of which the last is scored. `batch` holds `responses` and `attention_mask`,
                `non_tensor_batch` the `raw_prompt`, messages or a string.

        Returns:
            `reward_score`, a `TokenRewards`, and `reward_extra_info` with `num_sentences`.

        Raises:
            UserError: no `raw_prompt`.
        """
        item = data[-1:][0]
        if "raw_prompt" not in item.non_tensor_batch:
            raise UserError("SentenceRewardManager: the batch has no `raw_prompt`. Set data.return_raw_chat=True.")
        ids = item.batch["responses"]
        ids = ids[: int(item.batch["attention_mask"][-len(ids) :].sum())]
        scored, paid = await self._rewards.score(_plain(item.non_tensor_batch["raw_prompt"]), ids.tolist())
        return {"reward_score": TokenRewards(scored.reward, paid), "reward_extra_info": {"num_sentences": len(scored.sentences)}}

    @classmethod
    def assemble_rm_scores(cls, data: DataProto, scores: list[TokenRewards]) -> Tensor:
        """What each token of a batch earned.

        Args:
            data: `batch["responses"]` is [B, L].
            scores: of `run_single`, one a response.

        Returns:
            fp32 [B, L], each sentence's reward on its last token.
        """
        rewards = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
        for row, score in zip(rewards, scores, strict=True):
            row[: len(score.paid)] = row.new_tensor(score.paid)
        return rewards


def sentence_group_advantages(
    token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, config: Any = None, *, to_go: ToGo = "sum", **_: Any
) -> tuple[Tensor, Tensor]:
    """`srm.rl.token_group_advantages` as verl's `algorithm.adv_estimator=srm`, `srm_min` or `srm_own`: GRPO, RLOO and the
    baseline of REINFORCE++ sum a response's rewards before they compare them.

    Args:
        token_level_rewards: [B, L], each sentence's reward on its last token, 0 elsewhere. A reward that is exactly 0 is no sentence's.
        response_mask: [B, L], the policy's tokens.
        index: [B], the same for responses to one prompt; verl's `uid`.
        config: verl's `algorithm`: `norm_adv_by_std_in_grpo` scales by the group's standard deviation.
        to_go: as in `group_advantages`; the estimator's name says which.

    Returns:
        Advantages, twice, fp32 [B, L].

    Raises:
        UserError: `algorithm.use_kl_in_reward`, which pays every token, so that sentences cannot be told from tokens.
    """
    settings = config or {}
    if settings.get("use_kl_in_reward", False):
        name = "srm" if to_go == "sum" else f"srm_{to_go}"
        raise UserError(
            f"algorithm.adv_estimator={name} needs algorithm.use_kl_in_reward=False. Use actor.use_kl_loss=True for the penalty."
        )
    group = torch.from_numpy(np.unique(index, return_inverse=True)[1])
    scale = settings.get("norm_adv_by_std_in_grpo", True)
    advantages = token_group_advantages(token_level_rewards, response_mask, group, scale=scale, to_go=to_go)
    return advantages, advantages


register_adv_est("srm")(sentence_group_advantages)
register_adv_est("srm_min")(partial(sentence_group_advantages, to_go="min"))
register_adv_est("srm_own")(partial(sentence_group_advantages, to_go="own"))


def _plain(prompt: Any) -> Prompt:
    """verl keeps messages in an array of objects."""
    return prompt if isinstance(prompt, str) else list(prompt)
