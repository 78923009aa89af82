"""Which numbers each setting of every command takes: one table, asked by flags, configuration files and dataclasses alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srm.errors import UserError

__all__ = ["LIMITS", "RL_LIMITS", "Limit", "check_limits", "check_text"]

# Tensors, samplers and steps count in 32 or 64 bits: beyond this nothing means what it says.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Limit:
    """The numbers that a setting takes. NaN lies in no range.

    Attributes:
        low: the smallest, or None where there is none.
        high: the largest.
        above: `low` itself is not taken.
        below: `high` itself is not taken.
        also: a number outside that has a meaning of its own.
    """

    low: float | None = None
    high: float = _MOST
    above: bool = False
    below: bool = False
    also: float | None = None

    def takes(self, value: float) -> bool:
        """Whether `value` is one of them."""
        low = -self.high if self.low is None else self.low
        enough = value > low if self.above else value >= low
        return value == self.also or (enough and (value < self.high if self.below else value <= self.high))

    def __str__(self) -> str:
        bounds = [] if self.low is None else [f"{'above' if self.above else 'at least'} {self.low:g}"]
        bounds += [f"{'below' if self.below else 'at most'} {self.high:,}"]
        return " and ".join(bounds) + ("" if self.also is None else f", or {self.also:g}")


_COUNT = Limit(1)
_NOT_NEGATIVE = Limit(0)
_POSITIVE = Limit(0, above=True)
_SHARE = Limit(0, 1)
# A rate that blows up is found by its loss; what float32 cannot hold is none.
_RATE = Limit(0, 1e38)
_SEED = Limit(0, 2**32 - 1)

LIMITS: Mapping[str, Limit] = {
    # Rows and lengths.
    "max_length": Limit(2),
    "max_prompt_length": _COUNT,
    "max_completion_length": _COUNT,
    "max_pairs": _COUNT,
    "max_eval_pairs": _COUNT,
    "num_pairs": _COUNT,
    "test_split_size": _POSITIVE,
    "dataset_num_proc": _COUNT,
    "pad_to_multiple_of": _COUNT,
    "num_eval_pairs": _COUNT,
    "show": _NOT_NEGATIVE,
    # Batches and steps.
    "tokens_per_batch": _COUNT,
    "batch_size": _COUNT,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "num_train_epochs": Limit(0, 1_000_000, above=True),
    "max_steps": Limit(1, also=-1),
    "warmup_steps": _NOT_NEGATIVE,
    "logging_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "eval_delay": _NOT_NEGATIVE,
    "save_steps": _POSITIVE,
    "save_total_limit": _NOT_NEGATIVE,
    "early_stopping_patience": _COUNT,
    "torch_empty_cache_steps": _COUNT,
    # Optimisation.
    "learning_rate": _RATE,
    "head_learning_rate": _RATE,
    "attention_learning_rate": _RATE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": Limit(0, 1, below=True),
    "adam_beta2": Limit(0, 1, below=True),
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "label_smoothing_factor": Limit(0, 0.5, below=True),
    "center_rewards_coefficient": _NOT_NEGATIVE,
    "mean_value_coefficient": _NOT_NEGATIVE,
    "sentence_reward_l2": _NOT_NEGATIVE,
    # The model.
    "rope_theta": Limit(0, 1e12, above=True),
    "attention_size": Limit(1, 65_536),
    "lora_r": Limit(1, 65_536),
    "lora_alpha": _COUNT,
    "lora_dropout": Limit(0, 1, below=True),
    # Chance.
    "seed": _SEED,
    "data_seed": _SEED,
    # Fewer have no tails, and an interval would miss its own estimate.
    "draws": Limit(100, 1_000_000),
    "num_permutations": Limit(1, 1_000_000),
    # A reward, which has no range of its own; no head comes near these.
    "threshold": Limit(-100_000, 100_000),
    # Machines.
    "dataloader_num_workers": Limit(0, 1024),
    "num_workers": Limit(1, 100_000),
    "dataloader_prefetch_factor": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _COUNT,
    "local_rank": Limit(-1),
    "port": Limit(0, 65_535),
    "max_queue": _COUNT,
    "max_half_sent": _COUNT,
    "max_wait_ms": Limit(0, 60_000),
    "max_body_mb": Limit(0, 100_000, above=True),
    "drain_seconds": Limit(0, 86_400),
    "receive_seconds": Limit(0, 86_400, above=True),
    # Policies.
    "num_generations": _COUNT,
    "beta": _POSITIVE,
    "num_ppo_epochs": _COUNT,
    "num_mini_batches": _COUNT,
    # Below this a policy writes one response to a prompt, of which nothing is learned, and logits over it soon overflow.
    "temperature": Limit(0.01),
    "kl_coef": _NOT_NEGATIVE,
    "vf_coef": _NOT_NEGATIVE,
    "cliprange": _POSITIVE,
    "cliprange_value": _POSITIVE,
    "gamma": _SHARE,
    "lam": _SHARE,
}
# Where srm-rl is stricter: it has no word for "as many as the epochs have" or "no clipping", and a policy that cannot learn is a mistake.
RL_LIMITS: Mapping[str, Limit] = {**LIMITS, "max_steps": _COUNT, "learning_rate": Limit(0, 1e38, above=True), "max_grad_norm": _POSITIVE}
# Of settings that a newer transformers brings.
_ANY = Limit()


def check_limits(settings: Mapping[str, Any], limits: Mapping[str, Limit] = LIMITS) -> None:
    """Refuse the first number that its setting does not take.

    Args:
        settings: by name; what is no number is passed over, and so is None.
        limits: the table.

    Raises:
        UserError: a number out of range, NaN or infinite.
    """
    for name, value in settings.items():
        limit = limits.get(name, _ANY)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not limit.takes(value):
            got = value if isinstance(value, float) or abs(value) < 10**20 else "more than 20 digits"
            raise UserError(f"--{name} must be {limit}, got {got}.")


def check_text(word: str, before: str) -> None:
    """Refuse a word of a command line that says nothing, or that no file can hold.

    Args:
        word: `value`, or `--flag=value`.
        before: what stands in front of it, for the message.

    Raises:
        UserError: the value is empty, is no UTF-8, or holds a NUL.
    """
    flag, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
    if equals and not value.strip():
        raise UserError(f"the value after {flag} is empty. Give one, or leave the flag out.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"the value after {flag} is no UTF-8. Rename what it names.") from None
    if "\0" in value:
        raise UserError(f"the value after {flag} holds a NUL character. Leave it out.")
