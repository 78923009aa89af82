"""Load a LoRA adapter that was saved beside a backbone's name: the backbone, the adapter and the head, merged into one model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srm.errors import UserError
from srm.extras import name_the_extra
from srm.modeling.alias import resolve_model_name
from srm.modeling.config import SentenceRewardConfig
from srm.modeling.loading import hub_arguments, load_tokenizer, one_line, read_config

__all__ = ["check_adapter", "load_adapter", "merge_adapter", "read_adapter"]

_COPY_AGAIN = "The adapter must be whole: copy or download the folder again."
# What AutoModel and transformers hand to every class, and has no meaning for the backbone.
_OF_AUTOMODEL = ("config", "adapter_kwargs", "output_loading_info", "_from_auto", "_from_pipeline")


def load_adapter(cls: Any, path: Path, *, dtype: torch.dtype | str | None = None, **model_kwargs: Any) -> Any:
    """The reward model whose LoRA adapter lies in `path`; `cls` is its class, which stands above this file.

    The folder holds the adapter with the head (`modules_to_save`), our `config.json` and the tokenizer. The backbone is loaded from
    where the adapter says it was trained, and the adapter is merged into it.

    Raises:
        UserError: peft is not installed, or the adapter, its head or its backbone is missing or not whole.
    """
    adapter = read_adapter(path)
    if "head" not in (adapter.modules_to_save or []):
        way_out = "It has no sentences: srm-eval reads it" if adapter.task_type == "SEQ_CLS" else "Train one with srm-train"
        raise UserError(f"{path}: the adapter saves no reward head of ours (`modules_to_save` lacks 'head'). {way_out}.")
    # Older releases of AutoModel write the dtype that was asked for into the configuration they pass.
    dtype = dtype or getattr(model_kwargs.get("config"), "dtype", None) or torch.float32
    model_kwargs = {name: value for name, value in model_kwargs.items() if name not in _OF_AUTOMODEL}
    if adapter.revision is not None:
        # The backbone's, as it was trained on; a folder has none.
        model_kwargs["revision"] = adapter.revision
    base = str(adapter.base_model_name_or_path)
    model = _load_base(cls, base, path, dtype=dtype, tokenizer=load_tokenizer(str(path)), model_kwargs=model_kwargs)
    merged = merge_adapter(model, path)
    merged.name_or_path = str(path)
    return merged.eval()


def read_adapter(path: Path) -> Any:
    """The peft configuration in the folder `path`.

    Raises:
        UserError: peft is not installed, or the file cannot be read.
    """
    with name_the_extra(f"{path} holds a LoRA adapter"):
        from peft import PeftConfig
    with one_line(str(path), "adapter_config.json cannot be read", _COPY_AGAIN):
        return PeftConfig.from_pretrained(str(path))


def merge_adapter(model: nn.Module, path: Path) -> Any:
    """`model` with the adapter in the folder `path`, merged.

    Raises:
        UserError: the adapter is not whole, or of another model.
    """
    from peft import PeftModel

    with one_line(str(path), "the adapter could not be loaded", _COPY_AGAIN):
        adapted = PeftModel.from_pretrained(model, str(path))
    check_adapter(adapted, str(path))
    return adapted.merge_and_unload()


def check_adapter(adapted: Any, path: str) -> None:
    """Compare the adapter that a `PeftModel` has loaded with its file: peft only warns of missing weights, and drops odd ones.

    Raises:
        UserError: they differ, or a weight is NaN.
    """
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    saved, loaded = load_peft_weights(path, device="cpu"), get_peft_model_state_dict(adapted, save_embedding_layers=False)
    _require_same(path, saved, loaded)


def _require_same(path: str, saved: Mapping[str, torch.Tensor], loaded: Mapping[str, torch.Tensor]) -> None:
    for what, names in (("missing", loaded.keys() - saved.keys()), ("without a place in the model", saved.keys() - loaded.keys())):
        if names:
            raise UserError(f"{path}: the adapter does not fit its model: {len(names)} weights {what} ({min(names)}, ...). {_COPY_AGAIN}")
    for name, weight in loaded.items():
        if not torch.equal(weight.cpu(), saved[name].to(weight.dtype)):
            raise UserError(f"{path}: the adapter's {name} in memory is not the one in the file, or is NaN. {_COPY_AGAIN}")


def _load_base(cls: Any, base: str, path: Path, *, dtype: Any, tokenizer: Any, model_kwargs: dict[str, Any]) -> Any:
    """The model as it was before the adapter was trained: a plain backbone with a fresh head, or a trained reward model."""
    if Path(base).is_dir() and read_config(base, _COPY_AGAIN).model_type == SentenceRewardConfig.model_type:
        return cls.from_pretrained(base, dtype=dtype, **model_kwargs)
    with one_line(str(path), "config.json cannot be read", _COPY_AGAIN):
        config = SentenceRewardConfig.from_pretrained(str(path))
    quantization = getattr(config.backbone_config, "quantization_config", None)
    if quantization is not None and not _is_rounded(base, model_kwargs):
        model_kwargs = {**model_kwargs, "quantization_config": quantization}
    model = cls.from_backbone(base, tokenizer=tokenizer, dtype=dtype, model_kwargs=model_kwargs, **config.own_fields())
    if quantization is not None:
        # The adapter was trained on the rounded weights, so they are what it is merged into, in a dtype that holds both.
        model.backbone.dequantize(dtype=dtype)
    return model


def _is_rounded(base: str, model_kwargs: dict[str, Any]) -> bool:
    """Whether the weights in the files of `base` are quantised already."""
    config = read_config(resolve_model_name(base), _COPY_AGAIN, **hub_arguments(model_kwargs))
    return getattr(config, "quantization_config", None) is not None
