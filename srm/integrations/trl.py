"""TRL: a sentence-level reward model in GRPO, as a reward function and with an advantage for each sentence.

Needs `trl` (written against 1.16). Shape letters: `B` completions, `L` width of the padded completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor

from srm.extras import name_the_extra

# First, so that its extra is named, which brings what the rest needs.
with name_the_extra("srm.integrations.trl"):
    from trl import GRPOTrainer

from accelerate.utils import gather_object

from srm.data.settings import with_columns
from srm.errors import UserError
from srm.rl import ToGo, group_advantages
from srm.scoring.token_ids import ScoredTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from srm.data import Prompt
    from srm.modeling import SentenceRewardModel
    from srm.scoring.results import ScoredResponse

__all__ = ["SentenceGRPOTrainer", "SentenceRewardFunction"]


class SentenceRewardFunction:
    """A reward function of `GRPOTrainer`: the response reward of each completion, from the policy's own token ids.

    Args:
        model: the reward model.
        tokenizer: the policy's, where its vocabulary is not the reward model's.
        tokens_per_batch: bound on the tokens of one forward pass.
    """

    def __init__(
        self, model: SentenceRewardModel, *, tokenizer: PreTrainedTokenizerBase | None = None, tokens_per_batch: int = 8192
    ) -> None:
        # TRL logs `rewards/<name>/mean`.
        self.__name__ = "sentence_reward"
        self.model = model
        self.tokenizer = tokenizer
        self.tokens_per_batch = tokens_per_batch
        self.last: ScoredTokens | None = None

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: object
    ) -> list[float]:
        """Rewards of the completions, in order. What the model said about their sentences stays in `last`.

        Prompts, strings or messages, are read through the reward model's own chat template, with the columns `tools` and
        `chat_template_kwargs` where there are any. So is a completion of several messages, as a policy with tools writes it, up to the
        policy's last words: its ids hold the tools' turns too. Its sentences have no place in the policy's ids, so nothing stays in `last`.
        """
        prompts = with_columns(prompts, columns)
        written = [_up_to_last_words(completion) for completion in completions]
        several = [index for index, messages in enumerate(written) if len(messages) > 1]
        if several:
            self.last = None
            alone = [index for index in range(len(prompts)) if index not in several]
            rewards = dict(
                zip(alone, self._score_ids([prompts[i] for i in alone], [completion_ids[i] for i in alone]).reward.tolist(), strict=True)
            )
            scored = self.model.score([prompts[i] for i in several], [written[i] for i in several], tokens_per_batch=self.tokens_per_batch)
            rewards |= {index: one.reward for index, one in zip(several, cast("list[ScoredResponse]", scored), strict=True)}
            return [rewards[index] for index in range(len(prompts))]
        self.last = self._score_ids(prompts, completion_ids)
        return self.last.reward.tolist()

    def _score_ids(self, prompts: Sequence[Prompt], completion_ids: Sequence[Sequence[int]]) -> ScoredTokens:
        return self.model.score_tokens(
            self._prompt_ids(prompts),
            completion_ids,
            tokenizer=self.tokenizer,
            prompts=prompts,
            tokens_per_batch=self.tokens_per_batch,
        )

    def _prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        encoder = self.model.encoder
        # `score_tokens` puts the model's boundary token behind the prompt itself.
        return [ids[: len(ids) - len(encoder.boundary_ids)] for ids in map(encoder.encode_prompt, prompts)]


class SentenceGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` whose advantages differ from sentence to sentence.

    The only reward function must be a `SentenceRewardFunction`. What a completion has `to_go` from its i-th sentence is compared with what
    the others of its group have from theirs (`srm.rl.group_advantages`). `scale_rewards="none"` in the arguments leaves out the division by
    the deviation, and `reward_weights` multiplies what every sentence earns.

    Args:
        sentence_reward: what a sentence earns, `weighted` (`w_i * r_i`) or `sentence` (`r_i`).
        to_go: the `sum` or the `min` over a token's own sentence and the later ones, or its `own` sentence's reward alone.
        *args, **kwargs: go to `GRPOTrainer`.

    Raises:
        ValueError: other reward functions, a `scale_rewards` that is neither `group` nor `none`, a `multi_objective_aggregation` other than
            `sum_then_normalize`, or another `to_go`.
    """

    def __init__(
        self, *args: Any, sentence_reward: Literal["weighted", "sentence"] = "weighted", to_go: ToGo = "sum", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if len(self.reward_funcs) != 1 or not isinstance(self.reward_funcs[0], SentenceRewardFunction):
            names = ", ".join(type(function).__name__ for function in self.reward_funcs)
            raise ValueError(
                f"SentenceGRPOTrainer: `reward_funcs` must be one SentenceRewardFunction, got {names}. "
                "With several functions use GRPOTrainer."
            )
        if self.scale_rewards not in ("group", "none"):
            raise ValueError(f"SentenceGRPOTrainer: `scale_rewards` must be 'group' or 'none', got {self.scale_rewards!r}.")
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                "SentenceGRPOTrainer: `multi_objective_aggregation` must be 'sum_then_normalize', got "
                f"{self.multi_objective_aggregation!r}, which knows response rewards alone. Leave it out, or use GRPOTrainer."
            )
        if to_go not in get_args(ToGo):
            raise ValueError(f"SentenceGRPOTrainer: `to_go` must be one of {', '.join(get_args(ToGo))}, got {to_go!r}.")
        self.sentence_reward = sentence_reward
        self.to_go = to_go

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        function = self.reward_funcs[0]
        assert isinstance(function, SentenceRewardFunction), "checked at construction"
        if function.last is None:
            raise UserError(
                "SentenceGRPOTrainer: a completion has several messages, and the sentences of such have no place in the policy's ids. "
                "Train without tools, or use GRPOTrainer with the same reward function."
            )
        mask = output["completion_mask"]
        # Groups may be spread over processes.
        everyone = _weighed(_join(gather_object(_split(function.last))), float(self.reward_weights[0]))
        assert self.model is not None, "GRPOTrainer made or took one"
        size = self.num_generations if self.model.training else self.num_generations_eval
        assert size is not None, "GRPOConfig fills both in"
        advantages = group_advantages(
            everyone,
            torch.arange(everyone.reward.numel()) // size,
            kind=self.sentence_reward,
            scale=self.scale_rewards == "group",
            to_go=self.to_go,
            mask=torch.ones(everyone.reward.numel(), everyone.width, dtype=torch.bool),
        )
        first = self.accelerator.process_index * mask.shape[0]
        output["advantages"] = _fit(advantages[first : first + mask.shape[0]].to(mask.device), mask.shape[1]) * mask
        return output


def _up_to_last_words(completion: Any) -> list[dict[str, Any]]:
    """The messages of a completion up to the policy's last one that says something: a tool may have had the last word. None of a text's."""
    messages = [] if isinstance(completion, str) else list(completion)
    while messages and not (
        messages[-1]["role"] == "assistant" and ((messages[-1].get("content") or "").strip() or messages[-1].get("tool_calls"))
    ):
        messages.pop()
    return messages


def _split(scored: ScoredTokens) -> list[dict[str, Any]]:
    """A part for each response, that processes can exchange."""
    cu = scored.cu_boundaries.tolist()
    parts = []
    for index, (reward, length) in enumerate(zip(scored.reward.tolist(), scored.lengths.tolist(), strict=True)):
        rows = slice(cu[index], cu[index + 1])
        parts.append(
            {
                "reward": reward,
                "length": length,
                "width": scored.width,
                "sentence_reward": scored.sentence_reward[rows].tolist(),
                "weight": scored.weight[rows].tolist(),
                "ends": scored.ends[rows].tolist(),
                "opening": 0 if scored.opening is None else int(scored.opening[index]),
            }
        )
    return parts


def _join(parts: list[dict[str, Any]]) -> ScoredTokens:
    return ScoredTokens(
        reward=torch.tensor([part["reward"] for part in parts]),
        sentence_reward=torch.tensor([reward for part in parts for reward in part["sentence_reward"]]),
        weight=torch.tensor([weight for part in parts for weight in part["weight"]]),
        ends=torch.tensor([end for part in parts for end in part["ends"]], dtype=torch.int64),
        cu_boundaries=torch.tensor([0, *accumulate(len(part["ends"]) for part in parts)]),
        lengths=torch.tensor([part["length"] for part in parts]),
        width=max(part["width"] for part in parts),
        opening=torch.tensor([part["opening"] for part in parts]),
    )


def _weighed(scored: ScoredTokens, weight: float) -> ScoredTokens:
    """`scored` with all rewards times the weight that TRL gives the reward function."""
    return replace(scored, reward=weight * scored.reward, sentence_reward=weight * scored.sentence_reward)


def _fit(advantages: Tensor, width: int) -> Tensor:
    """`advantages` [B, *] as [B, width]: TRL may pad completions to a width of its own."""
    return torch.nn.functional.pad(advantages, (0, max(width - advantages.shape[1], 0)))[:, :width]
