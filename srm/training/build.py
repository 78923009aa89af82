"""From settings to a model that is ready to train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.errors import UserError
from srm.modeling import SentenceRewardConfig, SentenceRewardModel
from srm.modeling.alias import resolve_model_name
from srm.modeling.loading import hub_arguments, read_config
from srm.training.lora import add_adapters

if TYPE_CHECKING:
    from peft import PeftModel

    from srm.training.arguments import ModelArguments, RewardConfig

__all__ = ["build_model"]


def build_model(arguments: ModelArguments, config: RewardConfig) -> SentenceRewardModel | PeftModel:
    """A fresh reward model on a backbone, or a trained one to go on with; with LoRA adapters if asked for.

    Raises:
        UserError: no model there, an unknown variant, or one that contradicts the trained model's; a backbone that cannot be packed.
    """
    assert arguments.model_name_or_path is not None
    path = resolve_model_name(arguments.model_name_or_path)
    model = _trained(path, arguments) if _is_trained(path, arguments) else _fresh(arguments, config)
    model.config.packing = config.packing
    if arguments.chat_template_path is not None:
        _set_chat_template(model, arguments.chat_template_path)
    model.packing_mode(config.packing)
    return add_adapters(model, arguments) if arguments.use_peft else model


def _set_chat_template(model: SentenceRewardModel, path: str) -> None:
    """Give the tokenizer another template; it is saved with the model, so that scoring uses the same one."""
    assert model.tokenizer is not None
    try:
        model.tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat_template_path {path}: cannot be read ({error}). Give a Jinja text file.") from error


def _is_trained(path: str, arguments: ModelArguments) -> bool:
    if (Path(path) / "adapter_config.json").is_file():
        return True
    try:
        return isinstance(read_config(path, "", **hub_arguments(_hub_arguments(arguments))), SentenceRewardConfig)
    except UserError:
        # Not there, or a model with code of its own: loading it as a backbone says so, or can.
        return False


def _hub_arguments(arguments: ModelArguments) -> dict[str, Any]:
    hub = {"revision": arguments.model_revision, "trust_remote_code": arguments.trust_remote_code}
    return hub if arguments.attn_implementation is None else {**hub, "attn_implementation": arguments.attn_implementation}


def _fresh(arguments: ModelArguments, config: RewardConfig) -> SentenceRewardModel:
    assert arguments.model_name_or_path is not None
    try:
        return SentenceRewardModel.from_backbone(
            arguments.model_name_or_path,
            dtype=arguments.dtype,
            model_kwargs=_hub_arguments(arguments),
            packing=config.packing,
            **arguments.variant(),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{arguments.model_name_or_path}: {error}") from error


def _trained(path: str, arguments: ModelArguments) -> SentenceRewardModel:
    model = SentenceRewardModel.from_pretrained(path, dtype=arguments.dtype, **_hub_arguments(arguments))
    for name, wanted in arguments.changed_variant().items():
        has = getattr(model.config, name)
        if has != wanted:
            raise UserError(
                f"{path} is a reward model trained with {name}={has!r}, and --{name} asks for {wanted!r}. "
                "Leave the flag out, or start from the backbone."
            )
    return model
