"""A tiny policy, a reward that is easy to learn, and a trainer for both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from srm.rl.arguments import RLConfig
from srm.rl.trainer import RLTrainer
from srm.scoring.token_ids import ScoredTokens

PROMPTS = ("Is this right?", "The cat sat", "Bread needs flour, water", "It was warm there.", "Is it?")


class LowIds(nn.Module):
    """Stands for a reward model: every token of the text is a sentence, and earns 1 / width if its id is in the vocabulary's lower half."""

    def __init__(self, half: int, end_ids: set[int]) -> None:
        super().__init__()
        self.half, self.end_ids = half, end_ids

    def score_tokens(self, prompt_ids: list[list[int]], response_ids: Tensor, *, response_lengths: Tensor, **kwargs: Any) -> ScoredTokens:
        assert len(prompt_ids) == len(response_ids) == len(kwargs["prompts"])
        width = response_ids.shape[1]
        earned, ends = [], []
        for ids, length in zip(response_ids.tolist(), response_lengths.tolist(), strict=True):
            assert not self.end_ids & set(ids[:length])
            earned.append([0.0, *(float(token < self.half) / width for token in ids[:length])])
            ends += [-1, *range(length)]
        flat = torch.tensor([value for row in earned for value in row])
        return ScoredTokens(
            reward=torch.tensor([sum(row) for row in earned]),
            sentence_reward=flat,
            weight=torch.ones_like(flat),
            ends=torch.tensor(ends),
            cu_boundaries=torch.tensor([0, *(len(row) for row in earned)]).cumsum(0),
            lengths=response_lengths,
            width=width,
        )


@pytest.fixture
def load_policy(tiny_policy_dir: Path) -> Callable[[], Any]:
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_pretrained(tiny_policy_dir).eval()


@pytest.fixture
def new_config(tmp_path: Path) -> Callable[..., RLConfig]:
    """new_config(**settings): of a run of a second, into `tmp_path`."""

    def make(**settings: Any) -> RLConfig:
        usual: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "num_generations": 4,
            "max_completion_length": 8,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "learning_rate": 3e-3,
            "max_steps": 3,
            "seed": 0,
        }
        if settings.get("algorithm") in ("ppo", "grpo"):
            usual |= {"num_ppo_epochs": 2, "num_mini_batches": 2, "gradient_accumulation_steps": 1}
        return RLConfig(**{**usual, **settings})

    return make


@pytest.fixture
def new_trainer(tiny_policy_dir: Path, load_policy: Callable[[], Any]) -> Callable[..., RLTrainer]:
    """new_trainer(config, policy=None, on_step=...): with `LowIds` in place of a reward model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_dir)

    def make(config: RLConfig, policy: Any = None, **more: Any) -> RLTrainer:
        return RLTrainer(
            config,
            policy=policy or load_policy(),
            reference=load_policy(),
            tokenizer=tokenizer,
            reward_model=LowIds(len(tokenizer) // 2, {tokenizer.eos_token_id}),  # type: ignore[arg-type]
            prompts=[(prompt, tokenizer(prompt)["input_ids"]) for prompt in PROMPTS],
            accelerator=Accelerator(),
            **more,
        )

    return make
