"""Models, tokenizers and configurations from a folder or the hub: whole, or refused in one line that says what was tried.

transformers fills weights that a file lacks with random ones and only warns; `load_whole` refuses them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import deepspeed

from srm.errors import UserError, first_line
from srm.extras import name_the_extra
from srm.hub import at_the_hub, optional_file, why_not_there
from srm.modeling.alias import ways_to_get
from srm.modeling.config import SentenceRewardConfig
from srm.packing.backbone import num_embeddings

__all__ = [
    "add_boundary_token",
    "check_is_reward_model",
    "check_tokenizer_fits",
    "hub_arguments",
    "list_end_tokens",
    "load_backbone",
    "load_tokenizer",
    "load_whole",
    "one_line",
    "read_config",
    "unsharded",
]

_HEADS = {"lm_head", "embed_out", "score", "classifier", "v_head"}
_COPY_AGAIN = "Weights and config.json must be whole and of one model: copy or download the folder again."


def load_whole(
    load: Callable[..., Any], path: str, *, extra_heads: bool = False, new: Collection[str] = (), **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """A model whose every weight comes from the files at `path`.

    Args:
        load: the `from_pretrained` of a class.
        path: a folder, or a name on the hub.
        extra_heads: let pass what the files hold beside the model, such as the language model's head of a bare decoder.
        new: modules of the model whose weights come from elsewhere.
        **kwargs: further arguments of `load`.

    Returns:
        The model, and transformers' loading info.

    Raises:
        UserError: files are missing, cut short, or do not fit the config.
    """
    # Where nothing says whether a folder's own code may run, transformers asks on the terminal.
    kwargs = {"trust_remote_code": False, **kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
    _check_dtype(path, kwargs)
    with one_line(path, "no model could be loaded", _COPY_AGAIN), _without_report():
        try:
            model, info = load(path, **kwargs)
        except TypeError as error:
            unknown = next((name for name in kwargs if f"unexpected keyword argument '{name}'" in str(error)), None)
            if unknown is None:
                raise
            raise UserError(f"{path}: from_pretrained has no argument `{unknown}`. Correct its name, or leave it out.") from error
    unexpected = [key for key in info["unexpected_keys"] if not extra_heads or _is_inside(key, model)]
    faults = [
        *_named("missing", (key for key in info["missing_keys"] if key.split(".")[0] not in new)),
        *_named("without a place in the model", unexpected),
        *_named("of another shape", (f"{key} {list(found)}, not {list(wanted)}" for key, found, wanted in info["mismatched_keys"])),
    ]
    if faults:
        raise UserError(f"{path}: the weights do not make up the model of config.json: {'; '.join(faults)}. {_COPY_AGAIN}")
    return model, info


def _check_dtype(path: str, kwargs: dict[str, Any]) -> None:
    for name in ("dtype", "torch_dtype"):
        value = kwargs.get(name)
        if isinstance(value, str) and value != "auto" and not isinstance(getattr(torch, value, None), torch.dtype):
            raise UserError(f"{path}: `{name}` must be auto or a dtype of torch such as float32 or bfloat16, got {value!r}.")


def load_tokenizer(path: str, **hub_arguments: Any) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`, or a `UserError` that names what was tried."""
    with one_line(path, "no tokenizer could be loaded", "Save one beside the weights."):
        tokenizer = AutoTokenizer.from_pretrained(path, **{"trust_remote_code": False, **hub_arguments})
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"{path}: no tokenizer could be loaded (transformers found none for this model). Save one beside the weights.")
    return tokenizer


def load_backbone(path: str, **kwargs: Any) -> PreTrainedModel:
    """The plain decoder at `path`, all of its weights loaded, or a `UserError` that names what was tried."""
    # An encoder's pooler reads the hidden states and changes none; that it is an encoder is found out later, and said then.
    backbone, _ = load_whole(AutoModel.from_pretrained, path, extra_heads=True, new=("pooler",), **kwargs)
    if isinstance(backbone.config, SentenceRewardConfig):
        raise UserError(f"{path}: is a trained reward model already. Load it with `SentenceRewardModel.from_pretrained`.")
    return backbone


def read_config(path: str, way_out: str, **hub_arguments: Any) -> PretrainedConfig:
    """The configuration at `path`, or a `UserError` that ends with `way_out`."""
    with one_line(path, "no model could be loaded", way_out):
        return AutoConfig.from_pretrained(path, **{"trust_remote_code": False, **hub_arguments})


def list_end_tokens(config: PretrainedConfig, path: str, **hub_arguments: Any) -> None:
    """Put the end tokens of the generation config at `path` among those of `config`, with which they are saved."""
    name = "generation_config.json"
    file = optional_file(path, name, _raise_exceptions_for_connection_errors=False, **hub_arguments)
    if file is None:
        return
    try:
        listed = json.loads(Path(file).read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: {name} is not sound ({_reason(error)}). Copy it again, or delete it.") from None
    text = config.get_text_config()
    own = getattr(text, "eos_token_id", None)
    ids = [token for part in (own, listed) for token in (part if isinstance(part, (list, tuple)) else [part]) if token is not None]
    if ids := list(dict.fromkeys(ids)):
        text.eos_token_id = ids if len(ids) > 1 else ids[0]


def check_is_reward_model(path: str, **hub_arguments: Any) -> None:
    """Raise `UserError` unless a trained reward model lies at `path`."""
    found = read_config(path, "Give the folder that srm-train saved, or a hub name.", **hub_arguments).model_type
    if found != SentenceRewardConfig.model_type:
        raise UserError(
            f"{path}: is a plain {found} model, not a trained reward model. Train one on it: srm-train --model_name_or_path {path}"
        )


def check_tokenizer_fits(path: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Raise `UserError` where padding has no row among the model's embeddings: masked tokens are looked up, too.

    Other ids of the tokenizer may lie behind the last row, as Gemma's for images do: they are refused where they are used.
    """
    rows, pad = num_embeddings(model), tokenizer.pad_token_id
    if pad is not None and not 0 <= pad < rows:
        raise UserError(
            f"{path}: the tokenizer's pad token {tokenizer.pad_token!r} has the id {pad}, and the model has embeddings for 0 to "
            f"{rows - 1}. Choose a pad token that the model knows, such as the eos token, in tokenizer_config.json."
        )


def add_boundary_token(token: str, tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedModel) -> None:
    """Make `token` a special token of the tokenizer, with an embedding of its own in the backbone."""
    tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    if len(tokenizer) > num_embeddings(backbone):
        backbone.resize_token_embeddings(len(tokenizer))


def hub_arguments(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Those of `kwargs` that say where on the hub something is, for loading its tokenizer from the same place."""
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "trust_remote_code", "subfolder")
    return {name: value for name, value in (kwargs or {}).items() if name in names}


@contextmanager
def one_line(path: str, what: str, way_out: str) -> Iterator[None]:
    """Turn whatever reading the files of a model raises into one line: a file that is cut or edited can raise anything.

    Args:
        path: where they are.
        what: could not be done.
        way_out: what the user can do.

    Raises:
        UserError: in place of the error, which is its cause.
    """
    try:
        with name_the_extra(path), at_the_hub(path):
            yield
    except UserError:
        raise
    except Exception as error:
        if not Path(path).exists() and (reason := why_not_there(path, error)) is not None:
            raise UserError(f"{reason} {ways_to_get(path)}".rstrip()) from error
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{path}: {what}, because it needs code that comes with it, which never runs unasked. "
                "Where you trust it, srm-train takes --trust_remote_code and from_pretrained takes trust_remote_code=True."
            ) from error
        raise UserError(f"{path}: {what} ({_reason(error)}). {way_out}") from error


@contextmanager
def unsharded() -> Iterator[None]:
    """Build models whole in every process, also where settings for DeepSpeed's ZeRO-3 are active.

    transformers would share the weights out while it reads them, in steps that all processes take together. But packing is proved, and
    the head compared with its file, on a whole model, and one process may load before the others. DeepSpeed shards it when training begins.
    """
    # transformers has a way to set and to forget the settings, and none to ask for them.
    active = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = active


@contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' table of odd weights: what is wrong becomes our error, and a head that is not wanted is nothing to report."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _is_inside(key: str, model: nn.Module) -> bool:
    """Whether a weight of the file would lie in one of the model's own modules: a layer too many, or a part of another architecture."""
    if _HEADS & set(key.split(".")):
        # Of models that read images it may lie in the part that reads text.
        return False
    prefix = getattr(model, "base_model_prefix", "") + "."
    children = {name for name, _ in model.named_children()}
    return key.split(".")[0] in children or key.removeprefix(prefix).split(".")[0] in children


def _named(what: str, keys: Iterable[str]) -> Iterator[str]:
    """`3 missing (a, b, ...)`, or nothing."""
    found = sorted(keys)
    if found:
        yield f"{len(found)} {what} ({', '.join(found[:2])}{', ...' if len(found) > 2 else ''})"


def _reason(error: Exception) -> str:
    line = first_line(error)
    line = line if len(line) <= 200 else line[:200] + " ..."
    # What transformers and others mean for users says itself what is wrong; `KeyError: 'x'` alone would not.
    return line if isinstance(error, (OSError, ValueError)) or line == type(error).__name__ else f"{type(error).__name__}: {line}"
