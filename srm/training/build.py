"""From settings to a model that is ready to train."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.errors import UserError
from srm.modeling import SentenceRewardConfig, SentenceRewardModel
from srm.modeling.alias import resolve_model_name
from srm.modeling.head_start import holds_classifier
from srm.modeling.loading import check_tokenizer_fits, hub_arguments, load_tokenizer, read_config
from srm.training.accelerate_setup import place_model
from srm.training.lora import add_adapters
from srm.training.quantization import keep_gradients, quantization_of
from srm.training.tokens import settle_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel

    from srm.training.arguments import ModelArguments, RewardConfig

__all__ = ["build_model"]

logger = logging.getLogger(__name__)

# Arguments of from_pretrained that are saved with an adapter, or change no weight and nothing that the weights compute.
_KEPT_WITH_ADAPTERS = {
    *("revision", "trust_remote_code", "dtype", "attn_implementation", "use_cache", "use_kernels"),
    *("cache_dir", "force_download", "local_files_only", "token", "low_cpu_mem_usage", "use_safetensors", "num_labels"),
}


def build_model(arguments: ModelArguments, config: RewardConfig) -> SentenceRewardModel | PeftModel:
    """A fresh reward model on a backbone, or a trained one to go on with; with LoRA adapters if asked for.

    Raises:
        UserError: no model there, an unknown variant, or one that contradicts the trained model's; a backbone that cannot be packed.
    """
    assert arguments.model_name_or_path is not None
    path = resolve_model_name(arguments.model_name_or_path)
    if arguments.load_in_8bit:
        # Which columns bitsandbytes multiplies in 16 bits is decided by all tokens of a pass. See without_effect.py.
        config.packing = "none"
    kwargs = arguments.init_kwargs()
    if config.packing != "none":
        # The packed modes bring their own.
        kwargs.pop("attn_implementation", None)
    if arguments.use_peft:
        _check_recorded(kwargs)
    build = _trained if _is_trained(path, kwargs) else _fresh
    model = build(path, arguments, config, **kwargs)
    model.config.packing = config.packing
    model.config.last_layer_rows = config.last_layer_rows or model.config.last_layer_rows
    place_model(model, config)
    model.packing_mode(config.packing)
    return add_adapters(model, arguments) if arguments.use_peft else model


def _check_recorded(kwargs: dict[str, Any]) -> None:
    """An adapter's folder names its backbone, and how it was loaded only as far as these go: with others it would load as another one."""
    unknown = sorted(kwargs.keys() - _KEPT_WITH_ADAPTERS)
    if unknown:
        raise UserError(
            f"--model_init_kwargs: with --use_peft, {unknown[0]!r} would be forgotten when the saved adapter is loaded. Save a model that "
            "was loaded so (save_pretrained, with its tokenizer), and train on that."
        )


def _is_trained(path: str, kwargs: dict[str, Any]) -> bool:
    if (Path(path) / "adapter_config.json").is_file():
        return True
    try:
        return isinstance(read_config(path, "", **hub_arguments(kwargs)), SentenceRewardConfig)
    except UserError:
        # Not there, or a model with code of its own: loading it as a backbone says so, or can.
        return False


def _fresh(path: str, arguments: ModelArguments, config: RewardConfig, *, dtype: Any, **kwargs: Any) -> SentenceRewardModel:
    assert arguments.model_name_or_path is not None
    tokenizer = load_tokenizer(path, **hub_arguments(kwargs))
    settle_tokenizer(tokenizer, arguments)
    if (quantization := quantization_of(arguments)) is not None:
        kwargs["quantization_config"] = quantization
    try:
        model = SentenceRewardModel.from_backbone(
            arguments.model_name_or_path,
            tokenizer=tokenizer,
            dtype=dtype,
            head_init="score" if arguments.init_value_from else arguments.head_init,
            model_kwargs=kwargs,
            packing=config.packing,
            **arguments.variant(),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{arguments.model_name_or_path}: {error}") from error
    if getattr(model.backbone, "is_quantized", False) and not arguments.use_peft:
        raise UserError(f"{path}: these weights are quantised, so that only adapters can be trained. Add --use_peft.")
    if holds_classifier(model.backbone.config) and not arguments.init_value_from:
        logger.warning(
            "%s is a classifier, and its output layer is left out. Where it is a reward model, --init_value_from in place of "
            "--model_name_or_path starts from its score.",
            path,
        )
    keep_gradients(model.backbone)
    return model


def _trained(path: str, arguments: ModelArguments, config: RewardConfig, **kwargs: Any) -> SentenceRewardModel:
    if arguments.load_in_4bit or arguments.load_in_8bit:
        raise UserError(
            f"{path} is a trained reward model, and only a plain backbone is loaded in 4 or 8 bits. Leave --load_in_4bit and "
            "--load_in_8bit out, or start from the backbone."
        )
    if flag := "init_value_from" if arguments.init_value_from else "head_init" if arguments.head_init != "zero" else None:
        raise UserError(f"--{flag}: {path} is a trained sentence reward model, whose head is kept. Leave the flag out.")
    model = SentenceRewardModel.from_pretrained(path, **kwargs)
    for name, wanted in arguments.changed_variant().items():
        has = getattr(model.config, name)
        if has != wanted:
            raise UserError(
                f"{path} is a reward model trained with {name}={has!r}, and --{name} asks for {wanted!r}. "
                "Leave the flag out, or start from the backbone."
            )
    if model.tokenizer is not None:
        settle_tokenizer(model.tokenizer, arguments)
        check_tokenizer_fits(path, model.tokenizer, model)
    return model
