"""Settings that a command for `trl reward` may have and that change nothing here: each is taken, and one line says why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from srm.training.lora import HEADS
from srm.training.model_arguments import PLACED_BY_TRAINER

if TYPE_CHECKING:
    from srm.training.arguments import RewardConfig
    from srm.training.data_arguments import DataArguments
    from srm.training.model_arguments import ModelArguments

__all__ = ["without_effect"]

_INSTEAD_OF_MIXTURE = {"dataset_name": None, "dataset_config": None, "dataset_streaming": False, "dataset_train_split": "train"}
_OF_ADAPTERS = ("lora_target_modules", "lora_target_parameters", "lora_modules_to_save", "use_rslora", "use_dora")


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
    for name in _OF_ADAPTERS:
        if getattr(model, name) and not model.use_peft:
            yield name, "there are no adapters without --use_peft"
    for head in HEADS:
        if model.use_peft and head in (model.lora_modules_to_save or []):
            yield f"lora_modules_to_save {head}", "the head is trained and saved anyway"
    if not model.load_in_4bit:
        for name, default in (("bnb_4bit_quant_type", "nf4"), ("use_bnb_nested_quant", False), ("bnb_4bit_quant_storage", None)):
            if getattr(model, name) != default:
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
    for name, default in _INSTEAD_OF_MIXTURE.items():
        if data.datasets and getattr(data, name) != default:
            yield name, "the mixture in `datasets` is read instead"
    if data.dataset_num_proc is not None:
        yield "dataset_num_proc", "rows are tokenised in batches by the tokenizer's own threads, as many as RAYON_NUM_THREADS says"
    if data.ignore_bias_buffers:
        yield "ignore_bias_buffers", "the reward trainer of trl does not look at it either, and DDP sends no such buffers here"
    if config.pad_to_multiple_of not in (None, "auto"):
        yield "pad_to_multiple_of", "rows are not padded, or with --packing none to the longest of a pass"
