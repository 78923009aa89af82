"""Settings that a command for `trl reward` may have and that change nothing here: each is taken, and one line says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.training.lora import HEADS
from srm.training.model_arguments import PLACED_BY_TRAINER

if TYPE_CHECKING:
    from srm.training.arguments import RewardConfig
    from srm.training.data_arguments import DataArguments
    from srm.training.model_arguments import ModelArguments

__all__ = ["without_effect"]

_INSTEAD_OF_MIXTURE = ("dataset_name", "dataset_config", "dataset_streaming", "dataset_train_split")
_OF_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save")
_OF_4_BITS = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")


def without_effect(model: ModelArguments, data: DataArguments, config: RewardConfig) -> Iterator[str]:
    """One line for each setting that was given and changes nothing in this run.

    Args:
        model: settings of the model.
        data: of its data.
        config: of the run.
    """
    for name, reason in _reasons(model, data, config):
        yield f"--{name} has no effect: {reason}"


def _reasons(model: ModelArguments, data: DataArguments, config: RewardConfig) -> Iterator[tuple[str, str]]:
    if model.lora_task_type is not None:
        yield "lora_task_type", "the head is always trained and saved with an adapter"
    if not model.use_peft:
        for name in _changed(model, *_OF_ADAPTERS, "use_rslora", "use_dora"):
            yield name, "there are no adapters without --use_peft"
    if model.use_peft and model.lora_dropout and config.disable_dropout:
        for name in _changed(model, "lora_dropout"):
            yield name, "--disable_dropout, which is on by default, turns it off too, as in TRL"
    for head in HEADS:
        if model.use_peft and head in (model.lora_modules_to_save or []):
            yield f"lora_modules_to_save {head}", "the head is trained and saved anyway"
    if not model.load_in_4bit:
        for name in _changed(model, *_OF_4_BITS):
            yield name, "there are no 4-bit numbers without --load_in_4bit"
    if model.load_in_8bit and config.packing != "none":
        yield (
            f"packing {config.packing}",
            "in 8 bits a token's result depends on the other tokens of its pass, so rows are padded: packing none",
        )
    kwargs = model.model_init_kwargs if isinstance(model.model_init_kwargs, dict) else {}
    if config.packing != "none" and (model.attn_implementation or "attn_implementation" in kwargs):
        yield "attn_implementation", f"--packing {config.packing} brings its own attention; --packing none takes the backbone's"
    for name in PLACED_BY_TRAINER:
        if name in kwargs:
            yield f"model_init_kwargs {name}", "the trainer puts the model on its device, or shards it"
    if data.datasets:
        for name in _changed(data, *_INSTEAD_OF_MIXTURE):
            yield name, "the mixture in `datasets` is read instead"
    elif data.dataset_config is not None and all(name is None or Path(name).expanduser().exists() for name in data.read().values()):
        yield "dataset_config", "only data sets of the hub have configurations"
    if data.dataset_num_proc is not None:
        yield "dataset_num_proc", "rows are tokenised in batches by the tokenizer's own threads, as many as RAYON_NUM_THREADS says"
    if data.ignore_bias_buffers:
        yield "ignore_bias_buffers", "the reward trainer of trl does not look at it either, and DDP sends no such buffers here"
    if config.pad_to_multiple_of not in (None, "auto"):
        yield "pad_to_multiple_of", "rows are not padded, or with --packing none to the longest of a pass"


def _changed(settings: Any, *names: str) -> list[str]:
    defaults = {entry.name: entry.default for entry in fields(settings)}
    return [name for name in names if getattr(settings, name) != defaults[name]]
