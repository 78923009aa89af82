"""LoRA adapters on the backbone, with the reward head trained and saved in full beside them."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from srm.errors import UserError
from srm.extras import name_the_extra
from srm.modeling import SentenceRewardModel
from srm.modeling.loading import unsharded

if TYPE_CHECKING:
    from peft import PeftModel

    from srm.training.arguments import ModelArguments

__all__ = ["add_adapters"]


@unsharded()
def add_adapters(model: SentenceRewardModel, arguments: ModelArguments) -> PeftModel:
    """`model` with LoRA adapters on linear layers of its backbone; only they, the head and a new boundary token's row are trained.

    Raises:
        UserError: peft is not installed, or `lora_target_modules` names no linear layer of the backbone.
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
    # peft would ask the hub at every save whether the vocabulary has grown; a new token's row is saved by itself.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]  # meant
    return adapted


def _target_pattern(model: SentenceRewardModel, wanted: list[str] | None) -> str:
    """A regular expression for the backbone's linear layers called `wanted`, or for all of them.

    peft would match the names anywhere, and the head has linear layers of its own.
    """
    linear = sorted({name.rsplit(".", 1)[-1] for name, module in model.backbone.named_modules() if _is_linear(module)})
    names = linear if wanted in (None, ["all-linear"]) else wanted
    unknown = [name for name in names if name not in linear]
    if unknown:
        raise UserError(f"--lora_target_modules: the backbone has no linear layer called {unknown[0]!r}. It has {', '.join(linear)}.")
    return rf"backbone\.(.*\.)?({'|'.join(re.escape(name) for name in names)})"


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
