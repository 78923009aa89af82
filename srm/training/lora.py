"""LoRA adapters on the backbone, with the reward head trained and saved in full beside them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from srm.errors import UserError, first_line
from srm.extras import name_the_extra
from srm.modeling import SentenceRewardConfig, SentenceRewardModel
from srm.modeling.card import replace_draft, write_card
from srm.modeling.head_file import in_float32
from srm.modeling.loading import unsharded

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from srm.training.arguments import ModelArguments

__all__ = ["HEADS", "add_adapters"]

# What other libraries call the head of a reward model.
HEADS = ("head", "score", "classifier", "v_head")


@unsharded()
def add_adapters(model: SentenceRewardModel, arguments: ModelArguments) -> PeftModel:
    """`model` with LoRA adapters on linear layers of its backbone; only they, the head and a new boundary token's row are trained.

    Raises:
        UserError: peft is not installed, or `lora_target_modules` names no linear layer of the part of the backbone that reads text.
    """
    with name_the_extra("--use_peft"):
        from peft import LoraConfig, get_peft_model

    saved = _saved_modules(model, arguments.lora_modules_to_save or [])
    parameters = _target_parameters(model, arguments.lora_target_parameters)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        # peft asks the outermost model what its layers are.
        setattr(model, name, getattr(model.backbone, name, False))
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        use_rslora=arguments.use_rslora,
        use_dora=arguments.use_dora,
        target_modules=_target_pattern(model, arguments.lora_target_modules, saved),
        # Saved with the adapter, so that the head cannot be lost.
        modules_to_save=["head", *saved],
        trainable_token_indices=_new_token_rows(model, saved),
        revision=arguments.init_kwargs()["revision"],
        target_parameters=parameters,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        # What peft does not do together, such as adapters with dropout on weights that are no layer.
        raise UserError(f"--use_peft: {first_line(error)}. See the --lora flags.") from error
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


def _target_pattern(model: SentenceRewardModel, wanted: list[str] | None, saved: list[str]) -> str:
    """A regular expression for the backbone's linear layers called `wanted`, or for all of them, but for those that are `saved` whole.

    peft would match the names anywhere: the head has linear layers of its own, and so has a vision tower, which never runs on text.
    """
    decoder, prefix = _decoder_of(model)
    linear = _linear_layers(decoder)
    names = linear if wanted in (None, ["all-linear"]) else wanted
    if wanted is not None and len(wanted) == 1 and (layers := _matching_layers(decoder, wanted[0])):
        # One that is no name is taken as a regular expression on whole names, as trl and peft do.
        target = rf"{re.escape(prefix)}\.({'|'.join(map(re.escape, layers))})"
    else:
        unknown = [name for name in names if name not in linear]
        if unknown:
            what = "the backbone" if decoder is model.backbone else f"the part of the backbone that reads text ({prefix})"
            raise UserError(f"--lora_target_modules: {what} has no linear layer called {unknown[0]!r}. It has {', '.join(linear)}.")
        target = rf"{re.escape(prefix)}\.(.*\.)?({'|'.join(re.escape(name) for name in names)})"
    return rf"(?!(?:{'|'.join(map(re.escape, saved))})(?:\.|$)){target}" if saved else target


def _matching_layers(decoder: nn.Module, expression: str) -> list[str]:
    """The linear layers whose name, alone or as it is in a language model, `expression` matches; none where it is the name of a kind."""
    names = [name for name, module in decoder.named_modules() if _is_linear(module)]
    if expression == "all-linear" or any(name.rsplit(".", 1)[-1] == expression for name in names):
        return []
    try:
        pattern = re.compile(expression)
    except re.error:
        return []
    return [name for name in names if pattern.fullmatch(name) or pattern.fullmatch(f"model.{name}")]


def _saved_modules(model: SentenceRewardModel, wanted: list[str]) -> list[str]:
    """Whole names of the modules that are trained in full and saved with the adapter, beside our head."""
    decoder, prefix = _decoder_of(model)
    names = [name for name, module in decoder.named_modules() if name and any(True for _ in module.parameters())]
    saved: list[str] = []
    for given in wanted:
        if given in HEADS:
            continue
        name = given.removeprefix("model.")
        found = [f"{prefix}.{whole}" for whole in names if whole == name or whole.endswith(f".{name}")]
        if not found:
            kinds = sorted({whole.rsplit(".", 1)[-1] for whole in names if not whole.rsplit(".", 1)[-1].isdigit()})
            raise UserError(f"--lora_modules_to_save: the backbone has no module called {given!r}. It has {', '.join(kinds)}.")
        saved += found
    return list(dict.fromkeys(saved))


def _target_parameters(model: SentenceRewardModel, wanted: list[str] | None) -> list[str] | None:
    names = [name for name, _ in _decoder_of(model)[0].named_parameters()]
    for given in wanted or []:
        if not any(f".{name}".endswith(f".{given}") for name in names):
            kinds = sorted({".".join(name.rsplit(".", 2)[-2:]) for name in names})
            raise UserError(f"--lora_target_parameters: the backbone has no weight called {given!r}. It has {', '.join(kinds)}.")
    return wanted


def _decoder_of(model: SentenceRewardModel) -> tuple[nn.Module, str]:
    """The part of the backbone that reads text, and its name in the model."""
    decoder = _reads_text(model.backbone)
    (prefix,) = (name for name, module in model.named_modules() if module is decoder)
    return decoder, prefix


def _reads_text(backbone: PreTrainedModel) -> nn.Module:
    """The backbone itself, or the part of it that reads text where it reads images or sound, too."""
    decoder = backbone.get_decoder() if backbone.config.get_text_config() is not backbone.config else backbone
    return decoder if any(module is decoder for module in backbone.modules()) else backbone


def _linear_layers(decoder: nn.Module) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if _is_linear(module)})


def _new_token_rows(model: SentenceRewardModel, saved: list[str]) -> dict[str, list[int]] | None:
    """The embedding row of the boundary token: new, so it must be learnt, and it is in no other file than the adapter's."""
    token = model.config.boundary_token
    if token is None:
        return None
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    # All of its rows are learnt where it is saved whole.
    return None if name in saved else {name: list(model.encoder.boundary_ids)}


def _is_linear(module: nn.Module) -> bool:
    # GPT-2's Conv1D is a linear layer with the weight transposed; peft adapts it too.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
