"""The settings of `srm-train`, under the names that users of `trl reward` and `transformers.TrainingArguments` know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig

from srm.data import OverlongPolicy
from srm.data.schema import Granularity
from srm.errors import UserError
from srm.packing import PackingMode
from srm.runs.limits import check_limits
from srm.runs.settings import parse_settings, split_settings
from srm.training.launch import is_launch_setting
from srm_kernels import Pooling

__all__ = ["DataArguments", "ModelArguments", "RewardConfig", "parse_arguments", "split_launch_settings"]

# The fields of ModelArguments that go into SentenceRewardConfig as they are.
_VARIANT_FIELDS = ("granularity", "pooling", "rope_theta", "include_prompt", "difference", "boundary_token", "attention_size")


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(kw_only=True)
class ModelArguments:
    """Which model is trained, and as which variant of the method (docs/method.md)."""

    model_name_or_path: str | None = _setting(
        None, "Hub name or folder of a decoder, alias smollm2-135m, or folder of a trained reward model."
    )
    model_revision: str = _setting("main", "Branch, tag or commit on the hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "float32", "Dtype of the backbone's weights; the head stays in float32."
    )
    attn_implementation: str | None = _setting(None, "Attention of the backbone with --packing none; the packed modes bring their own.")
    trust_remote_code: bool = _setting(False, "Run the code that comes with the model.")
    chat_template_path: str | None = _setting(None, "Jinja file with a chat template to use in place of the tokenizer's.")

    granularity: Granularity = _setting("sentence", "What the loss is trained on.")
    pooling: Pooling = _setting("value_attention", "How sentence rewards become the response reward; attention is the paper's.")
    rope_theta: float | None = _setting(10_000.0, "Base of the rotary embedding on the sentence index; none leaves it out.")
    include_prompt: bool = _setting(True, "Let index 0, the prompt, join the pooling.")
    difference: bool = _setting(True, "A sentence's reward is the change of the value over it, not the value at its end.")
    boundary_token: str | None = _setting(None, 'New special token after the prompt and each sentence, such as "<END>".')
    attention_size: int = _setting(256, "Width of the query and the key.")
    segmenter: Literal["punkt", "punkt_tab", "sat", "newline"] = _setting("punkt", "What splits responses into sentences.")
    segmenter_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": """Further segmenter settings as JSON, such as '{"max_chars": 600}'."""}
    )

    use_peft: bool = _setting(False, "Train LoRA adapters and the head instead of all weights.")
    lora_r: int = _setting(16, "LoRA rank.")
    lora_alpha: int = _setting(32, "LoRA alpha.")
    lora_dropout: float = _setting(0.05, "LoRA dropout.")
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Names of the backbone's linear layers that get an adapter; all of them if not set."}
    )
    use_rslora: bool = _setting(False, "Scale adapters by alpha / sqrt(r).")
    use_dora: bool = _setting(False, "Weight-decomposed LoRA.")

    def variant(self) -> dict[str, Any]:
        """The fields of `SentenceRewardConfig` that these settings decide."""
        own = {name: getattr(self, name) for name in _VARIANT_FIELDS}
        # A string has become a mapping in __post_init__.
        more = self.segmenter_config if isinstance(self.segmenter_config, dict) else {}
        return {**own, "segmenter": {"name": self.segmenter, **more}}

    def changed_variant(self) -> dict[str, Any]:
        """The part of `variant()` that differs from the defaults: what the user asked for."""
        default = ModelArguments().variant()
        return {name: value for name, value in self.variant().items() if value != default[name]}

    def __post_init__(self) -> None:
        check_limits(vars(self))
        if isinstance(self.segmenter_config, str):
            self.segmenter_config = _json_mapping("segmenter_config", self.segmenter_config)


@dataclass(kw_only=True)
class DataArguments:
    """Where the preference pairs come from (docs/data.md)."""

    dataset_name: str | None = _setting(None, "Hub name, JSONL, JSONL.gz, Parquet or CSV file, or folder.")
    dataset_config: str | None = _setting(None, "Configuration of a hub data set.")
    dataset_train_split: str = _setting("train", "Split to train on.")
    dataset_test_split: str = _setting("test", "Split to evaluate on.")
    eval_dataset_name: str | None = _setting(None, "Pairs to evaluate on, in the same forms as --dataset_name.")
    max_pairs: int | None = _setting(None, "Use only the first N training pairs.")
    max_eval_pairs: int | None = _setting(None, "Use only the first N evaluation pairs.")
    skip_bad_rows: bool = _setting(False, "Drop rows that cannot be used, and list them, instead of stopping at the first.")

    def __post_init__(self) -> None:
        check_limits(vars(self))


@dataclass
class RewardConfig(TrainingArguments):
    """`transformers.TrainingArguments` with what reward training adds.

    These defaults differ from TrainingArguments: `learning_rate` 2e-5, `num_train_epochs` 1, `logging_steps` 10, `bf16` on where
    the accelerator has it, `use_cpu` where there is no accelerator, `logging_nan_inf_filter` off (a NaN stops the run instead),
    `ddp_find_unused_parameters` off.
    `label_smoothing_factor` is the label smoothing of the Bradley-Terry loss.

    Raises:
        UserError: a value out of range, or settings that exclude each other.
    """

    output_dir: str = _setting("", "Folder for checkpoints and the final model.")
    learning_rate: float = _setting(2e-5, "Learning rate of the backbone or its adapters.")
    head_learning_rate: float | None = _setting(None, "Learning rate of the head's value; ten times --learning_rate if not set.")
    attention_learning_rate: float = _setting(5e-6, "Learning rate of the head's query and key.")
    num_train_epochs: float = _setting(1.0, "Passes over the data.")
    logging_steps: float = _setting(10, "Log every N optimizer steps, or this share of them if below 1.")
    logging_nan_inf_filter: bool = _setting(False, "Leave NaN losses out of the logged mean; costs a wait for the device at each step.")
    bf16: bool | None = _setting(  # type: ignore[assignment]  # None only until __post_init__
        None, "bf16 autocast; by default as `accelerate launch` was told, else on where the accelerator has it, off on the CPU."
    )
    label_smoothing_factor: float = _setting(
        0.0, "Label smoothing of the Bradley-Terry loss: the chance that a preference is the wrong way round."
    )
    ddp_find_unused_parameters: bool | None = _setting(
        False, "Look for weights that a step does not use; true where the backbone has such."
    )

    max_length: int | None = _setting(1024, "Longest prompt + response in tokens; none sets no limit.")
    overlong: OverlongPolicy = _setting("drop", "What happens to rows over --max_length.")
    packing: PackingMode = _setting(
        "shared", "shared: one row without padding, a prompt run once for its responses; packed: without sharing; none: padded."
    )
    tokens_per_batch: int | None = _setting(
        None, "Upper bound on the tokens of one forward pass; more passes make up the same batch, with the same gradient and metrics."
    )
    center_rewards_coefficient: float | None = _setting(
        None, "Weight of (chosen + rejected reward)^2 in the loss, which keeps rewards near zero."
    )
    mean_value_coefficient: float | None = _setting(
        None, "Weight of a second pair loss, on the mean value at sentence ends; if not set 1 at sentence level, 0 at the others."
    )
    sentence_reward_l2: float | None = _setting(
        None, "Weight of each response's mean squared sentence reward in the loss; if not set 0.01 at sentence level, 0 at the others."
    )
    disable_dropout: bool = _setting(True, "Set the backbone's dropout to zero.")
    early_stopping_patience: int | None = _setting(None, "Stop after N evaluations without a better --metric_for_best_model.")
    overwrite_output_dir: bool = _setting(False, "Start anew in an output directory that is not empty; its checkpoints are deleted.")

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise UserError(
                "--output_dir is missing. Add it, for example --output_dir outputs/reward, or set output_dir in the --config file."
            )
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.bf16 is None:
            self._settle_precision()
        self._settle_checkpointing()
        self._check()
        super().__post_init__()
        self._check_schedule()
        assert isinstance(self.accelerator_config, AcceleratorConfig)
        if self.accelerator_config.split_batches or self.accelerator_config.dispatch_batches:
            raise UserError("accelerator_config: split_batches and dispatch_batches do not work with packed batches. Leave both out.")

    @property
    def device(self) -> torch.device:
        """As TrainingArguments', but a CPU is `cpu`: with the index that several processes get, older releases cannot load a checkpoint."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def resolved_head_learning_rate(self) -> float:
        """Learning rate of the head's value."""
        return 10 * self.learning_rate if self.head_learning_rate is None else self.head_learning_rate

    def sentence_terms(self, granularity: str) -> dict[str, float]:
        """Weights of the loss terms that give sentence rewards their meaning, for a model of `granularity`."""
        defaults = {"mean_value_coefficient": 1.0, "sentence_reward_l2": 0.01}
        return {
            name: getattr(self, name) if getattr(self, name) is not None else default if granularity == "sentence" else 0.0
            for name, default in defaults.items()
        }

    def _settle_precision(self) -> None:
        """What `accelerate launch` was told, or what the device has. DeepSpeed takes the launcher's word also where that is `no`."""
        told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if self.fp16:
            self.bf16 = False
        elif told != "no" or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            self.bf16, self.fp16 = told == "bf16", told == "fp16"
        else:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)

    def _settle_checkpointing(self) -> None:
        """Make `gradient_checkpointing` mean the same in every transformers release, without reentrant checkpoints.

        transformers 5.2x calls it `activation_checkpointing` and warns about the older name, which trl's users type.
        """
        names = {setting.name for setting in fields(self)}
        name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
        if name == "activation_checkpointing":
            for suffix in ("", "_kwargs"):
                old = getattr(self, f"gradient_checkpointing{suffix}")
                if getattr(self, name + suffix) is None and old is not None:
                    setattr(self, name + suffix, old)
        if getattr(self, name):
            kwargs = getattr(self, f"{name}_kwargs")
            kwargs = _json_mapping(f"{name}_kwargs", kwargs) if isinstance(kwargs, str) else dict(kwargs or {})
            # A reentrant checkpoint breaks under DDP when a parameter is unused, and drops the packing plan's keyword arguments.
            setattr(self, f"{name}_kwargs", {"use_reentrant": False, **kwargs})

    def _check(self) -> None:
        check_limits(vars(self))
        if self.train_sampling_strategy not in ("random", "sequential", "group_by_length"):
            raise UserError(
                f"--train_sampling_strategy must be random, sequential or group_by_length, got {self.train_sampling_strategy}. "
                "Every global batch is dealt out evenly to the processes anyway."
            )
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise UserError("--early_stopping_patience needs --load_best_model_at_end, with --eval_strategy and --save_strategy set alike.")

    def _check_schedule(self) -> None:
        schedule, kwargs = SchedulerType(self.lr_scheduler_type), self.lr_scheduler_kwargs
        if not isinstance(kwargs, dict) or schedule == SchedulerType.REDUCE_ON_PLATEAU:
            return
        optimizer = torch.optim.SGD([torch.zeros(1)])
        try:
            # Trainer makes the schedule only when it has loaded everything.
            get_scheduler(schedule, optimizer, num_warmup_steps=1, num_training_steps=2, scheduler_specific_kwargs=dict(kwargs))
        except (TypeError, ValueError) as error:
            raise UserError(f"--lr_scheduler_kwargs: {error}. See what transformers' schedule `{schedule.value}` takes.") from None


_GROUPS = (ModelArguments, DataArguments, RewardConfig)
_NEEDED = {"model_name_or_path": "smollm2-135m", "datasets|dataset_name": "pairs.jsonl"}


def parse_arguments(argv: Sequence[str], prog: str = "srm-train") -> tuple[ModelArguments, DataArguments, RewardConfig]:
    """The settings of a training run from `argv` and the YAML file after `--config`; see `srm.runs.settings.parse_settings`.

    Raises:
        UserError: an unknown setting, a value of the wrong type, or no model, data or output directory.
    """
    model, data, training = parse_settings(
        _GROUPS,
        argv,
        prog=prog,
        description="Train a sentence-level reward model on preference pairs.",
        guide="docs/training.md",
        needed=_NEEDED,
        elsewhere=is_launch_setting,
    )
    return model, data, training


def split_launch_settings(argv: Sequence[str], prog: str = "srm-train") -> tuple[list[str], list[str]]:
    """What `argv` and its YAML file have for accelerate's launcher, and `argv` without it; see `srm.runs.settings.split_settings`.

    Raises:
        UserError: an unknown setting, a value of the wrong type or out of range, or no model or data.
    """
    launcher, ours = split_settings(_GROUPS, argv, prog=prog, needed=_NEEDED, elsewhere=is_launch_setting)
    return launcher, ours


def _json_mapping(name: str, text: str) -> dict[str, Any]:
    import json

    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--{name} must be a JSON object such as '{{\"key\": 1}}', got {text!r} ({error.msg}).") from error
    if not isinstance(value, dict):
        raise UserError(f"--{name} must be a JSON object such as '{{\"key\": 1}}', got {text!r}.")
    return value
