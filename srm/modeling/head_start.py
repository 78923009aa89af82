"""Where a new head's weights start: at zero, at random, or at the score of a plain reward model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from srm.errors import UserError
from srm.hub import optional_file
from srm.modeling.config import SentenceRewardConfig
from srm.modeling.head_file import saved_weights
from srm.modeling.loading import one_line, read_config
from srm_kernels import SentenceRewardHead

__all__ = ["HeadInit", "head_start", "holds_classifier"]

HeadInit = Literal["zero", "linear", "score"]
"""How a new head starts.

- `"zero"`: every value is 0, and attention is near uniform.
- `"linear"`: value, query and key as `torch.nn.Linear` starts them, at random. The authors' code does so.
- `"score"`: the value is the score of the sequence classifier whose backbone is loaded; attention is near uniform.
"""

_WAY_OUT = "Start from a reward model with one score, or leave the score out with --model_name_or_path."


def head_start(how: HeadInit, path: str, **hub_arguments: Any) -> Callable[[SentenceRewardHead], None]:
    """What puts a new head's weights to their start. All that is read is read now, before a backbone is loaded.

    Args:
        how: see `HeadInit`.
        path: where the backbone comes from, a folder or a hub name.
        **hub_arguments: where on the hub.

    Raises:
        UserError: with `score`, there is no linear score with one output at `path`.
        ValueError: an unknown start.
    """
    if how not in get_args(HeadInit):
        raise ValueError(f"head_init must be one of {', '.join(get_args(HeadInit))}, got {how!r}.")
    if how == "score":
        weight, bias = _score_row(path, hub_arguments)

        def at_score(head: SentenceRewardHead) -> None:
            with torch.no_grad():
                head.value.weight.copy_(weight)
                head.value.bias.fill_(0.0) if bias is None else head.value.bias.copy_(bias)

        return at_score
    # A head is made at zero.
    return _as_linear_layers if how == "linear" else lambda head: None


def holds_classifier(config: PretrainedConfig) -> bool:
    """Whether the weights beside `config` are those of a sequence classifier; one of ours, whose head has sentences, is none."""
    is_ours = config.model_type == SentenceRewardConfig.model_type
    return not is_ours and any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def _as_linear_layers(head: SentenceRewardHead) -> None:
    for layer in head.children():
        assert isinstance(layer, nn.Linear)
        layer.reset_parameters()


def _score_row(path: str, hub_arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """The weight [1, D] and the bias [1] of the score at `path`, from the file; no bias where the classifier has none."""
    name, score = _score_layer(path, hub_arguments)
    with one_line(path, "its score could not be read", "Copy or download the folder again."):
        saved = saved_weights(path, f"{name}.", **hub_arguments)
    for part, wanted in score.named_parameters():
        if part not in saved:
            raise UserError(f"{path}: the files hold no {name}.{part}, so there is no score to start from. {_WAY_OUT}")
        if saved[part].shape != wanted.shape:
            raise UserError(f"{path}: {name}.{part} is {list(saved[part].shape)}, and config.json says {list(wanted.shape)}. {_WAY_OUT}")
        if not bool(saved[part].isfinite().all()):
            raise UserError(f"{path}: {name}.{part} holds NaN or infinity, so no reward would be a number. {_WAY_OUT}")
    return saved["weight"], saved.get("bias") if score.bias is not None else None


def _score_layer(path: str, hub_arguments: dict[str, Any]) -> tuple[str, nn.Linear]:
    """The name of the classifier's score, and the layer as `config.json` describes it, without its weights."""
    with one_line(path, "no reward model could be loaded", _WAY_OUT):
        adapter = optional_file(path, "adapter_config.json", **hub_arguments)
    if adapter is not None:
        raise UserError(f"{path}: is a LoRA adapter. Merge it into its model, save that as a whole, and start from there.")
    config = read_config(path, "Give the folder or the hub name of a reward model.", **hub_arguments)
    if config.model_type == SentenceRewardConfig.model_type:
        raise UserError(f"{path}: is a sentence reward model already. Go on training it with --model_name_or_path {path}")
    if not holds_classifier(config):
        found = ", ".join(config.architectures or []) or f"a plain {config.model_type} model"
        raise UserError(f"{path}: is no sequence classifier ({found}), so it has no score to start from. {_WAY_OUT}")
    if "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {}):
        raise UserError(f"{path}: is a classifier with code of its own, so nothing says that its score is one linear layer. {_WAY_OUT}")
    if config.num_labels != 1:
        raise UserError(f"{path}: has {config.num_labels} outputs, and a reward model has one (num_labels=1). {_WAY_OUT}")
    # On no device: this is the description of the layers, for the price of none of their weights.
    with one_line(path, "no classifier can be made of its config.json", _WAY_OUT), torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    behind = {
        name: child
        for name, child in classifier.named_children()
        if name != classifier.base_model_prefix and any(True for _ in child.parameters())
    }
    ((name, score), *more) = behind.items() or [("", nn.Identity())]
    if more or not isinstance(score, nn.Linear):
        what = ", ".join(f"{name}: {type(child).__name__}" for name, child in behind.items()) or "nothing"
        raise UserError(f"{path}: its score is not one linear layer on the last hidden state ({what}). {_WAY_OUT}")
    return name, score
