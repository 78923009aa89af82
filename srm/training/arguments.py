"""The settings of `srm-train`, under the names that users of `trl reward` and `transformers.TrainingArguments` know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import get_args

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig

from srm.data import OverlongPolicy
from srm.errors import UserError
from srm.extras import way_to_install
from srm.packing import LastLayerRows, PackingMode
from srm.runs.limits import check_limits
from srm.runs.settings import Command, json_value, parse_settings, setting, split_settings
from srm.training.data_arguments import DataArguments
from srm.training.help import BRIEFS, SECTIONS
from srm.training.launch import launch_settings
from srm.training.model_arguments import ModelArguments

__all__ = ["DataArguments", "ModelArguments", "RewardConfig", "parse_arguments", "split_launch_settings"]


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

    output_dir: str = setting("trainer_output", "Folder for checkpoints and the model.")
    learning_rate: float = setting(2e-5, "Of the backbone or its adapters.")
    head_learning_rate: float | None = setting(None, "Of the head's value [10 x learning_rate]")
    attention_learning_rate: float = setting(5e-6, "Of the head's query and key.")
    num_train_epochs: float = setting(1.0, "Passes over the data.")
    logging_steps: float = setting(10, "Print a line every N steps.")
    logging_nan_inf_filter: bool = setting(False, "Leave NaN losses out of the logged mean; costs a wait for the device at each step.")
    bf16: bool | None = setting(  # type: ignore[assignment]  # None only until __post_init__
        None, "bf16 autocast [on, where a GPU has it]"
    )
    label_smoothing_factor: float = setting(0.0, "Chance that a preference is the wrong way round.")
    ddp_find_unused_parameters: bool | None = setting(False, "Look for weights that a step does not use; true where the backbone has such.")

    max_length: int | None = setting(1024, "Longest prompt + response, or none.")
    overlong: OverlongPolicy = setting("drop", "What happens to rows over --max_length.")
    packing: PackingMode = setting("shared", "shared: no padding, a prompt run once; packed: run each time; none: padded.")
    last_layer_rows: LastLayerRows | None = setting(None, "Rows that the last layer runs on [boundaries, where proved]")
    tokens_per_batch: int | None = setting(None, "Most tokens of one forward pass.")
    center_rewards_coefficient: float | None = setting(None, "Weight of (chosen + rejected reward)^2.")
    mean_value_coefficient: float | None = setting(None, "Pair loss on the mean value [sentence level: 1]")
    sentence_reward_l2: float | None = setting(None, "Squared sentence rewards [sentence level: 0.01]")
    pad_to_multiple_of: int | str | None = setting("auto", "Taken for trl's sake: rows are not padded, or to the longest one of a pass.")
    activation_offloading: bool = setting(False, "Keep activations in the CPU's memory.")
    disable_dropout: bool = setting(True, "Set the backbone's dropout to zero.")
    early_stopping_patience: int | None = setting(None, "Stop after N evaluations without a better one.")
    overwrite_output_dir: bool = setting(False, "Delete the run in --output_dir first.")

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.bf16 is None:
            self._settle_precision()
        self._settle_checkpointing()
        if self.deepspeed and find_spec("deepspeed") is None:
            raise UserError(f"--deepspeed: {way_to_install('deepspeed')}")
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
            kwargs = (
                json_value(f"{name}_kwargs", kwargs, dict, '{"use_reentrant": false}') if isinstance(kwargs, str) else dict(kwargs or {})
            )
            # A reentrant checkpoint breaks under DDP when a parameter is unused, and drops the packing plan's keyword arguments.
            setattr(self, f"{name}_kwargs", {"use_reentrant": False, **kwargs})

    def _check(self) -> None:
        if isinstance(self.pad_to_multiple_of, str) and self.pad_to_multiple_of != "auto":
            try:
                self.pad_to_multiple_of = int(self.pad_to_multiple_of)
            except ValueError:
                raise UserError(f"--pad_to_multiple_of must be auto or a whole number, got {self.pad_to_multiple_of!r}.") from None
        check_limits(vars(self))
        for name, choices in (("overlong", OverlongPolicy), ("packing", PackingMode), ("last_layer_rows", LastLayerRows)):
            value, optional = getattr(self, name), name == "last_layer_rows"
            if value not in get_args(choices) and not (optional and value is None):
                raise UserError(f"--{name} must be one of {', '.join(get_args(choices))}, got {value!r}.")
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


_COMMAND = Command(
    prog="srm-train",
    description="Train a sentence-level reward model on preference pairs. Flags of `accelerate launch` work, too: --num_processes 2.",
    guide="docs/training.md",
    groups=(ModelArguments, DataArguments, RewardConfig),
    needed={"init_value_from|model_name_or_path": "smollm2-135m", "datasets|dataset_name": "pairs.jsonl"},
    sections=SECTIONS,
    briefs=BRIEFS,
    elsewhere=launch_settings,
)


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, RewardConfig]:
    """The settings of a training run from `argv` and the YAML file after `--config`; see `srm.runs.settings.parse_settings`.

    Raises:
        UserError: an unknown setting, a value of the wrong type, or no model or data.
    """
    model, data, training = parse_settings(_COMMAND, argv)
    return model, data, training


def split_launch_settings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What `argv` and its YAML file have for accelerate's launcher, and `argv` without it; see `srm.runs.settings.split_settings`.

    Raises:
        UserError: an unknown setting, a value of the wrong type or out of range, or no model or data.
    """
    return split_settings(_COMMAND, argv)
