"""slime: a reward and an advantage for every sentence, by three functions that its command line names.

Written against slime 0.3.1. One reward a response needs none of this: `srm-serve` answers slime's own `remote_rm`.

    --custom-rm-path srm.integrations.slime.reward --rm-url http://localhost:8000 --reward-key reward
    --custom-reward-post-process-path srm.integrations.slime.group_rewards
    --custom-advantage-function-path srm.integrations.slime.advantages
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from srm.errors import UserError
from srm.integrations.source import PolicyRewards
from srm.rl import ToGo, token_group_advantages

__all__ = ["advantages", "group_rewards", "reward"]


async def reward(args: Namespace, sample: Any, **_: Any) -> dict[str, Any]:
    """slime's `--custom-rm-path`: asks the `srm-serve` at `--rm-url` for the rewards of one sample.

    Args:
        args: slime's. The policy's tokenizer is that of `--hf-checkpoint`.
        sample: slime's. Its `metadata` must hold `prompt`, text or messages, which are read through the reward model's own
            template.
        **_: what else slime may pass.

    Returns:
        `reward`, the response's, and `tokens`, what each of its tokens earned.

    Raises:
        UserError: no `prompt` in the metadata, or no `--rm-url`.
    """
    if "prompt" not in (sample.metadata or {}):
        raise UserError(
            "srm.integrations.slime.reward: give each row of the data a `metadata` with its `prompt`, as examples/prompts.py does."
        )
    ids = sample.tokens[len(sample.tokens) - sample.response_length :]
    scored, paid = await _rewards(args.hf_checkpoint, args.rm_url).score(sample.metadata["prompt"], ids)
    return {"reward": scored.reward, "tokens": paid}


def group_rewards(args: Namespace, samples: Sequence[Any]) -> tuple[list[float], list[Tensor]]:
    """slime's `--custom-reward-post-process-path`: sentences are compared here, where all answers to a prompt are together.

    Args:
        args: slime's. `--disable-grpo-std-normalization` leaves out the division by the group's standard deviation. `srm_to_go` in the file
            of `--custom-config-path` is `group_advantages`' `to_go`: sum, min or own.
        samples: a whole rollout, scored by `reward`.

    Returns:
        The response rewards, for the log, and of each response the advantages of its tokens, for `advantages`.

    Raises:
        UserError: samples that `reward` has not scored, or another `srm_to_go`.
    """
    if not all(isinstance(sample.reward, dict) and "tokens" in sample.reward for sample in samples):
        raise UserError(
            "srm.integrations.slime.group_rewards: needs --custom-rm-path srm.integrations.slime.reward, and --reward-key reward."
        )
    to_go: Any = getattr(args, "srm_to_go", "sum")
    if to_go not in get_args(ToGo):
        raise UserError(f"srm_to_go in the file of --custom-config-path must be one of {', '.join(get_args(ToGo))}, got {to_go!r}.")
    paid = pad_sequence([torch.tensor(sample.reward["tokens"]) for sample in samples], batch_first=True)
    lengths = torch.tensor([sample.response_length for sample in samples])
    mask = torch.arange(paid.shape[1]) < lengths[:, None]
    group = torch.from_numpy(np.unique([sample.group_index for sample in samples], return_inverse=True)[1])
    compared = token_group_advantages(paid, mask, group, scale=args.grpo_std_normalization, to_go=to_go)
    return [sample.reward["reward"] for sample in samples], [row[:length] for row, length in zip(compared, lengths, strict=True)]


def advantages(args: Namespace, rollout_data: dict[str, Any]) -> None:
    """slime's `--custom-advantage-function-path`: takes over what `group_rewards` made of the rewards.

    Args:
        args: slime's.
        rollout_data: of one process; gets `advantages` and `returns`, for each response those of the tokens that the process holds.

    Raises:
        UserError: `--kl-coef`, a penalty inside the rewards, which have been compared already.
    """
    if args.kl_coef:
        raise UserError("srm.integrations.slime.advantages: --kl-coef has no rewards to take the penalty from. Use --use-kl-loss.")
    from slime.backends.megatron_utils.cp_utils import slice_log_prob_with_cp

    rows = zip(rollout_data["rewards"], rollout_data["total_lengths"], rollout_data["response_lengths"], rollout_data["kl"], strict=True)
    rollout_data["advantages"] = [slice_log_prob_with_cp(row, total, length).to(kl) for row, total, length, kl in rows]
    rollout_data["returns"] = rollout_data["advantages"]


@cache
def _rewards(checkpoint: str, url: str | None) -> PolicyRewards:
    return PolicyRewards(AutoTokenizer.from_pretrained(checkpoint), url=url)
