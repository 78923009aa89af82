"""The settings of `srm-rl`, under the names that users of trl's PPO, RLOO and GRPO and of `transformers.TrainingArguments` know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from srm.errors import UserError
from srm.packing import PackingMode
from srm.rl.rewards import Placement, ToGo, Whitening
from srm.runs.limits import RL_LIMITS, check_limits
from srm.runs.settings import Command, parse_settings

__all__ = ["RLConfig", "parse_rl_config"]

_CLIPPED = ("num_ppo_epochs", "num_mini_batches", "cliprange")
_PPO_ONLY = ("lam", "cliprange_value", "vf_coef", "head_learning_rate")
# What an algorithm does not ask. The advantages of grpo are no sum of token rewards, and it has its KL in the loss.
_NOT_ASKED = {
    "reinforce": (*_CLIPPED, *_PPO_ONLY),
    "ppo": (),
    "grpo": (*_PPO_ONLY, "gamma", "reward_placement", "whitening"),
}
# What --reward response takes of the settings for sentences.
_SENTENCE_ONLY = {
    "sentence_reward": ("weighted",),
    "to_go": ("sum",),
    "reward_placement": ("last",),
    "whitening": ("none", "scale", "full"),
}


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """Which policy is trained, on which rewards, and how; each field is a flag of `srm-rl`.

    A step collects `rollout_size` responses on each process and learns from them.

    Raises:
        UserError: a value out of range, or settings that exclude each other.
    """

    model_name_or_path: str = _setting(
        "", "Policy to start from: hub name, folder, or alias smollm2-135m. Its frozen copy is the reference."
    )
    reward_model_path: str = _setting("", "Folder or hub name of a trained sentence-level reward model.")
    dataset_name: str = _setting("", "Prompts: hub name, JSONL, JSONL.gz, Parquet or CSV file, or folder; rows with a `prompt`, or pairs.")
    dataset_config: str | None = _setting(None, "Configuration of a hub data set.")
    dataset_train_split: str = _setting("train", "Split to take prompts from.")
    skip_bad_rows: bool = _setting(False, "Drop rows that cannot be used, and list them, instead of stopping at the first.")
    max_prompt_length: int = _setting(512, "Prompts of more tokens are left out, and counted.")

    output_dir: str = _setting("", "Folder for the log, checkpoints and the final policy.")
    overwrite_output_dir: bool = _setting(False, "Start anew in an output directory that is not empty; its checkpoints are deleted.")
    resume_from_checkpoint: str | None = _setting(None, "A checkpoint's folder, or true for the last one in --output_dir.")
    save_steps: int = _setting(50, "Write a checkpoint every N steps.")
    save_total_limit: int | None = _setting(2, "Keep only the newest N checkpoints; none keeps all.")
    seed: int = _setting(42, "Of the order of prompts and of sampling.")
    bf16: bool | None = _setting(None, "bf16 autocast; on by default where the accelerator has it, off on the CPU.")

    algorithm: Literal["reinforce", "ppo", "grpo"] = _setting(
        "reinforce",
        "reinforce: leave-one-out baseline; ppo: value head, clipped objective; grpo: the group's mean and deviation, clipped objective.",
    )
    reward: Literal["sentence", "response"] = _setting(
        "sentence", "sentence: each sentence's reward on its tokens; response: the response's reward on its last token."
    )
    sentence_reward: Literal["weighted", "sentence"] = _setting(
        "weighted", "What a sentence earns with --reward sentence: its part w_i * r_i of the response's reward, or r_i."
    )
    to_go: ToGo = _setting(
        "sum", "A token answers for the sum or minimum of its sentence's reward and the later ones, or for its own alone."
    )
    reward_placement: Placement = _setting("last", "A sentence's reward is paid on its last token, or in even parts on all of its tokens.")
    whitening: Whitening = _setting(
        "none",
        "Of each step's rewards, before the KL penalty. scale: deviations from the mean are scaled to variance 1, and the mean is added "
        "back; full: mean 0 and variance 1; position: both for the sentence's position.",
    )
    normalize_advantages: bool = _setting(True, "Scale the advantages of each step to mean 0 and variance 1 over its tokens.")
    kl_coef: float = _setting(0.1, "Price of one nat of KL from the reference: in the reward, or in the loss of grpo.")
    kl_estimator: Literal["k1", "k2", "k3"] | None = _setting(
        None, "Estimator of the KL: if not set, k1 in the reward and k2 in the loss of grpo, whose paper has k3."
    )
    gamma: float = _setting(1.0, "Discount for each token.")

    num_generations: int = _setting(4, "Responses to each prompt of a step; reinforce and grpo compare them, so at least 2 there.")
    max_completion_length: int = _setting(64, "Longest response in tokens.")
    temperature: float = _setting(1.0, "Of sampling, and of every log-probability.")

    learning_rate: float = _setting(3e-6, "Learning rate of the policy.")
    lr_scheduler_type: Literal["constant_with_warmup", "linear", "cosine"] = _setting(
        "constant_with_warmup", "What the learning rate does after --warmup_steps."
    )
    warmup_steps: int = _setting(0, "Steps over which the learning rate rises.")
    max_grad_norm: float = _setting(1.0, "Gradients are scaled down to this norm.")
    max_steps: int = _setting(100, "Steps of the run.")
    per_device_train_batch_size: int = _setting(8, "Responses of one forward and backward pass on each process.")
    gradient_accumulation_steps: int = _setting(1, "Such passes for each update of the weights.")
    packing: PackingMode = _setting(
        "shared", "Passes of policy and reference. shared: a prompt run once for its responses; packed: without sharing; none: padded."
    )

    lam: float = _setting(0.95, "ppo: lambda of generalised advantage estimation.")
    num_ppo_epochs: int = _setting(4, "ppo, grpo: how often a step goes over its responses.")
    num_mini_batches: int = _setting(1, "ppo, grpo: updates of the weights in each of these.")
    cliprange: float = _setting(0.2, "ppo, grpo: how far the ratio of new to old probability counts.")
    cliprange_value: float = _setting(0.2, "ppo: how far a value may move from the old one before its loss stops falling.")
    vf_coef: float = _setting(0.1, "ppo: weight of the value loss.")
    head_learning_rate: float | None = _setting(None, "ppo: learning rate of the value head; ten times --learning_rate if not set.")

    def __post_init__(self) -> None:
        check_limits(vars(self), RL_LIMITS)
        defaults = {entry.name: entry.default for entry in fields(self)}
        for name in _NOT_ASKED[self.algorithm]:
            if getattr(self, name) != defaults[name]:
                takers = [algorithm for algorithm, names in _NOT_ASKED.items() if name not in names]
                raise UserError(f"--{name} is a setting of --algorithm {' or '.join(takers)}, got {self.algorithm}. Drop one of them.")
        if self.algorithm != "ppo" and self.num_generations < 2:
            raise UserError(
                f"--num_generations must be at least 2 with --algorithm {self.algorithm}, got {self.num_generations}: a response is "
                "compared with the others to its prompt."
            )
        if self.algorithm == "grpo" and self.kl_estimator == "k1":
            raise UserError(
                "--kl_estimator k1 in the loss of --algorithm grpo has a gradient of mean 0, which keeps the policy nowhere. Take k2 or k3."
            )
        if self.reward == "response":
            for name, taken in _SENTENCE_ONLY.items():
                if getattr(self, name) not in taken:
                    raise UserError(f"--{name} {getattr(self, name)} is a setting of --reward sentence. Drop it, or add --reward sentence.")
        if self.to_go != "sum" and self.gamma != 1:
            raise UserError(f"--to_go {self.to_go} knows no discount, got --gamma {self.gamma}. Drop one of them.")
        if self.to_go == "own" and self.reward_placement == "even":
            raise UserError(
                "--to_go own gives all tokens of a sentence its whole reward, so --reward_placement even has nothing to spread. "
                "Drop one of them."
            )
        if self.rollout_size % self.num_generations:
            raise UserError(
                f"a step collects {self.rollout_size} responses (--per_device_train_batch_size {self.per_device_train_batch_size} x "
                f"--gradient_accumulation_steps {self.gradient_accumulation_steps} x --num_mini_batches {self.num_mini_batches}), "
                f"which --num_generations {self.num_generations} does not divide. Change one of them."
            )

    @property
    def rollout_size(self) -> int:
        """Responses that one process collects for a step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches

    @property
    def resolved_kl_estimator(self) -> Literal["k1", "k2", "k3"]:
        """In the reward, or in the loss of grpo."""
        return self.kl_estimator or ("k2" if self.algorithm == "grpo" else "k1")

    @property
    def resolved_head_learning_rate(self) -> float:
        """Learning rate of the value head."""
        return 10 * self.learning_rate if self.head_learning_rate is None else self.head_learning_rate


_SECTIONS = {
    "what is trained, and on what": (
        *("model_name_or_path", "reward_model_path", "dataset_name", "output_dir", "config"),
        *("dataset_config", "dataset_train_split", "skip_bad_rows", "max_prompt_length"),
    ),
    "rewards and algorithm": (
        *("algorithm", "reward", "sentence_reward", "to_go", "reward_placement", "whitening", "normalize_advantages"),
        *("kl_coef", "kl_estimator", "gamma"),
        *("num_generations", "max_completion_length", "temperature"),
    ),
    "with --algorithm ppo or grpo": _CLIPPED,
    "with --algorithm ppo": _PPO_ONLY,
    "training": (
        *("learning_rate", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "max_steps"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "packing", "bf16", "seed"),
    ),
    "the run": ("overwrite_output_dir", "resume_from_checkpoint", "save_steps", "save_total_limit"),
}

_COMMAND = Command(
    prog="srm-rl",
    description="Train a policy on the rewards of a sentence-level reward model.",
    guide="docs/rl.md",
    groups=(RLConfig,),
    needed={
        "model_name_or_path": "smollm2-135m",
        "reward_model_path": "outputs/reward",
        "dataset_name": "prompts.jsonl",
        "output_dir": "outputs/policy",
    },
    sections=_SECTIONS,
)


def parse_rl_config(argv: Sequence[str]) -> RLConfig:
    """The settings that `argv` gives, on top of those of the YAML file after `--config`, on top of the defaults.

    Raises:
        UserError: an unknown setting, a wrong value, or one that is missing.
    """
    (config,) = parse_settings(_COMMAND, argv)
    assert isinstance(config, RLConfig)
    return config
