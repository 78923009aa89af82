"""verl: a reward manager with a reward on every sentence's last token, and a `compute_score` with one number a response.

Written against verl 0.9 and its `DataProto`; verl itself is imported by `register` only.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from srm.errors import UserError
from srm.modeling import SentenceRewardModel
from srm.rl import RewardKind, token_level_rewards

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

__all__ = ["SentenceRewardManager", "compute_score", "register"]


class SentenceRewardManager:
    """Returns verl's dense `reward_tensor` [batch, response_length].

    Args:
        tokenizer: the policy's, as verl passes it.
        num_examine, compute_score, reward_fn_key: verl passes these to every manager; a reward model asks none of them.
        model: the reward model, or where to load it from.
        kind: what a sentence earns, see `srm.rl.sentence_rewards`.
        tokens_per_batch: bound on the tokens of one forward pass.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_examine: int = 0,
        compute_score: object = None,
        reward_fn_key: str = "data_source",
        *,
        model: SentenceRewardModel | str,
        kind: RewardKind = "weighted",
        tokens_per_batch: int = 8192,
    ) -> None:
        self.tokenizer = tokenizer
        self.model = _load(model) if isinstance(model, str) else model
        self.kind: RewardKind = kind
        self.tokens_per_batch = tokens_per_batch

    def __call__(self, data: Any, return_dict: bool = False) -> Tensor | dict[str, Any]:
        """Rewards of a `DataProto`.

        Args:
            data: `batch` holds `prompts` [B, P], padded on the left, `responses` [B, L], padded on the right, and `attention_mask`
                [B, P + L]. `non_tensor_batch["raw_prompt"]` (messages or strings) is needed where the policy's vocabulary is not the reward
                model's.
            return_dict: as verl asks.

        Returns:
            fp32 [B, L], or with `return_dict` `{"reward_tensor": ..., "reward_extra_info": {"response_reward": [...],
            "num_sentences": [...]}}`.
        """
        prompts, responses, mask = (data.batch[name] for name in ("prompts", "responses", "attention_mask"))
        width = prompts.shape[1]
        raw = data.non_tensor_batch.get("raw_prompt")
        scored = self.model.score_tokens(
            prompts,
            responses,
            prompt_mask=mask[:, :width],
            response_lengths=mask[:, width:].sum(1),
            tokenizer=self.tokenizer,
            prompts=None if raw is None else list(raw),
            tokens_per_batch=self.tokens_per_batch,
        )
        rewards = token_level_rewards(scored, kind=self.kind)
        if not return_dict:
            return rewards
        extra = {"response_reward": scored.reward.tolist(), "num_sentences": (scored.cu_boundaries.diff() - 1).tolist()}
        return {"reward_tensor": rewards, "reward_extra_info": extra}


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    *,
    model: SentenceRewardModel | str,
) -> float:
    """The response reward of one solution, in the form of verl's custom reward functions.

    Args:
        data_source, ground_truth: verl passes them; a reward model asks neither.
        solution_str: the response.
        extra_info: must hold `prompt`, a string or a list of messages.
        model: the reward model, or where to load it from; loaded once. In verl's settings it stands among the function's `reward_kwargs`.

    Returns:
        The response reward.

    Raises:
        UserError: no prompt, or an empty solution.
    """
    if not extra_info or "prompt" not in extra_info:
        raise UserError("compute_score: `extra_info` must hold the prompt. Add a `prompt` to the `extra_info` of each row of the data.")
    loaded = _load(model) if isinstance(model, str) else model
    return loaded.score([extra_info["prompt"]], [[solution_str]])[0][0].reward  # type: ignore[index]


def register(name: str = "srm") -> None:
    """Make the manager known to verl.

    Args:
        name: what verl's settings call it.

    Raises:
        ImportError: verl is not installed.
    """
    from verl.workers.reward_manager import register as register_with_verl

    register_with_verl(name)(SentenceRewardManager)


@cache
def _load(path: str) -> SentenceRewardModel:
    model = SentenceRewardModel.from_pretrained(path)
    return model.to("cuda").eval() if torch.cuda.is_available() else model.eval()  # type: ignore[arg-type]  # transformers wraps `to`
