"""Backbones, tokenizers and configurations from a folder or the hub, with errors that say what was tried."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from srm.errors import UserError
from srm.modeling.config import SentenceRewardConfig

__all__ = ["add_boundary_token", "check_is_reward_model", "hub_arguments", "list_end_tokens", "load_backbone", "load_tokenizer"]


def load_tokenizer(path: str, **hub_arguments: Any) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`, or a `UserError` that names what was tried."""
    try:
        return AutoTokenizer.from_pretrained(path, **hub_arguments)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer could be loaded ({_first_line(error)}). Save one beside the weights.") from error


def load_backbone(path: str, **kwargs: Any) -> PreTrainedModel:
    """The plain decoder at `path`, or a `UserError` that names what was tried."""
    try:
        backbone = AutoModel.from_pretrained(path, **kwargs)
    except OSError as error:
        raise UserError(f"{path}: no model could be loaded ({_first_line(error)}). Give a folder with config.json and weights.") from error
    if isinstance(backbone.config, SentenceRewardConfig):
        raise UserError(f"{path}: is a trained reward model already. Load it with `SentenceRewardModel.from_pretrained`.")
    return backbone


def list_end_tokens(config: PretrainedConfig, path: str, **hub_arguments: Any) -> None:
    """Put the end tokens of the generation config at `path` among those of `config`, with which they are saved."""
    try:
        listed = GenerationConfig.from_pretrained(path, **hub_arguments).eos_token_id
    except (OSError, ValueError):
        return
    text = config.get_text_config()
    own = getattr(text, "eos_token_id", None)
    ids = [token for part in (own, listed) for token in (part if isinstance(part, (list, tuple)) else [part]) if token is not None]
    if len(ids := list(dict.fromkeys(ids))) > 1:
        text.eos_token_id = ids


def check_is_reward_model(path: str, **hub_arguments: Any) -> None:
    """Raise `UserError` unless a trained reward model lies at `path`."""
    try:
        found = AutoConfig.from_pretrained(path, **hub_arguments).model_type
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: no model could be loaded ({_first_line(error)}). Give the folder that srm-train saved, or a hub name."
        ) from error
    if found != SentenceRewardConfig.model_type:
        raise UserError(
            f"{path}: is a plain {found} model, not a trained reward model. Train one on it: srm-train --model_name_or_path {path}"
        )


def add_boundary_token(token: str, tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedModel) -> None:
    """Make `token` a special token of the tokenizer, with an embedding of its own in the backbone."""
    tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    embeddings = backbone.get_input_embeddings()
    assert isinstance(embeddings.weight, Tensor)
    if len(tokenizer) > embeddings.weight.shape[0]:
        backbone.resize_token_embeddings(len(tokenizer))


def hub_arguments(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Those of `kwargs` that say where on the hub something is, for loading its tokenizer from the same place."""
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "trust_remote_code", "subfolder")
    return {name: value for name, value in (kwargs or {}).items() if name in names}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
