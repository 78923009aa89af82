"""LoRA adapters on the backbone, with the reward head trained and saved in full beside them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from srm.errors import UserError
from srm.extras import name_the_extra
from srm.modeling import SentenceRewardConfig, SentenceRewardModel
from srm.modeling.card import replace_draft, write_card
from srm.modeling.head_file import in_float32
from srm.modeling.loading import unsharded

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from srm.training.arguments import ModelArguments

__all__ = ["add_adapters"]


@unsharded()
def add_adapters(model: SentenceRewardModel, arguments: ModelArguments) -> PeftModel:
    """`model` with LoRA adapters on linear layers of its backbone; only they, the head and a new boundary token's row are trained.

    Raises:
        UserError: peft is not installed, or `lora_target_modules` names no linear layer of the part of the backbone that reads text.
    """
    with name_the_extra("--use_peft"):
        from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        model,
        LoraConfig(
            r=arguments.lora_r,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            use_rslora=arguments.use_rslora,
            use_dora=arguments.use_dora,
            target_modules=_target_pattern(model, arguments.lora_target_modules),
            # Saved with the adapter, so that the head cannot be lost.
            modules_to_save=["head"],
            trainable_token_indices=_new_token_rows(model),
        ),
    )
    adapted.save_pretrained = partial(_save, adapted.save_pretrained, model)  # type: ignore[method-assign]  # meant, as the two below
    adapted.create_or_update_model_card = lambda output_dir: write_card(model.config, Path(output_dir), is_adapter=True)  # type: ignore[method-assign]
    adapted._upload_modified_files = partial(_upload, adapted._upload_modified_files, model.config)  # type: ignore[method-assign]
    return adapted


def _save(
    save_pretrained: Callable[..., None],
    model: SentenceRewardModel,
    save_directory: str,
    *args: Any,
    state_dict: dict[str, Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """peft's own saving, with what the folder needs to be a reward model; the head in float32 whatever a trainer computes in."""
    state_dict = None if state_dict is None else in_float32(state_dict)
    # It would ask the hub at every save whether the vocabulary has grown; a new token's row is saved by itself.
    save_pretrained(save_directory, *args, state_dict=state_dict, save_embedding_layers=False, **kwargs)
    if kwargs.get("is_main_process", True):
        # peft saves the adapter alone; our config says what model it belongs to.
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(save_directory)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(save_directory)


def _upload(upload: Callable[..., Any], config: SentenceRewardConfig, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
    replace_draft(config, Path(working_dir), repo_id, is_adapter=True)
    return upload(working_dir, repo_id, *args, **kwargs)


def _target_pattern(model: SentenceRewardModel, wanted: list[str] | None) -> str:
    """A regular expression for the backbone's linear layers called `wanted`, or for all of them.

    peft would match the names anywhere: the head has linear layers of its own, and so has a vision tower, which never runs on text.
    """
    decoder = _reads_text(model.backbone)
    (prefix,) = (name for name, module in model.named_modules() if module is decoder)
    linear = _linear_layers(decoder)
    names = linear if wanted in (None, ["all-linear"]) else wanted
    unknown = [name for name in names if name not in linear]
    if unknown:
        what = "the backbone" if decoder is model.backbone else f"the part of the backbone that reads text ({prefix})"
        raise UserError(f"--lora_target_modules: {what} has no linear layer called {unknown[0]!r}. It has {', '.join(linear)}.")
    return rf"{re.escape(prefix)}\.(.*\.)?({'|'.join(re.escape(name) for name in names)})"


def _reads_text(backbone: PreTrainedModel) -> nn.Module:
    """The backbone itself, or the part of it that reads text where it reads images or sound, too."""
    decoder = backbone.get_decoder() if backbone.config.get_text_config() is not backbone.config else backbone
    return decoder if any(module is decoder for module in backbone.modules()) else backbone


def _linear_layers(decoder: nn.Module) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if _is_linear(module)})


def _new_token_rows(model: SentenceRewardModel) -> dict[str, list[int]] | None:
    """The embedding row of the boundary token: new, so it must be learnt, and it is in no other file than the adapter's."""
    token = model.config.boundary_token
    if token is None:
        return None
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    return {name: list(model.encoder.boundary_ids)}


def _is_linear(module: nn.Module) -> bool:
    # GPT-2's Conv1D is a linear layer with the weight transposed; peft adapts it too.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
