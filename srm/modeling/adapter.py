"""Load a LoRA adapter that was saved beside a backbone's name: the backbone, the adapter and the head, merged into one model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn

from srm.errors import UserError
from srm.extras import name_the_extra
from srm.hub import optional_file
from srm.modeling.alias import resolve_model_name
from srm.modeling.config import SentenceRewardConfig
from srm.modeling.loading import hub_arguments, load_tokenizer, one_line, read_config

__all__ = ["check_adapter", "find_adapter", "is_of_classifier", "load_adapter", "merge_adapter", "read_adapter"]

_CONFIG = "adapter_config.json"
_COPY_AGAIN = "The adapter must be whole: copy or download the folder again."
_OF_SNAPSHOT = ("cache_dir", "force_download", "local_files_only", "token", "revision")
# What AutoModel and transformers hand to every class, and where the adapter lies: of no meaning for the backbone.
_NOT_FOR_BASE = ("config", "adapter_kwargs", "output_loading_info", "_from_auto", "_from_pipeline", "revision", "subfolder")


def find_adapter(name: str, **hub_arguments: Any) -> Path | None:
    """The folder with the LoRA adapter `name`, downloaded where it is one on the hub; None where there is no adapter.

    Where nothing can be read under `name`, that is None, too: reading its configuration says why.
    """
    if Path(name).is_dir():
        return Path(name) if (Path(name) / _CONFIG).is_file() else None
    try:
        if optional_file(name, _CONFIG, **hub_arguments) is None:
            return None
    except (OSError, ValueError):
        return None
    where = {key: value for key, value in hub_arguments.items() if key in _OF_SNAPSHOT}
    with one_line(name, "the adapter could not be downloaded", "Try again."):
        return Path(snapshot_download(name, ignore_patterns=["*checkpoint*"], **where), hub_arguments.get("subfolder") or "")


def load_adapter(cls: Any, path: Path, *, dtype: torch.dtype | str | None = None, **model_kwargs: Any) -> Any:
    """The reward model whose LoRA adapter lies in `path`; `cls` is its class, which stands above this file.

    The folder holds the adapter with the head (`modules_to_save`), our `config.json` and the tokenizer. The backbone is loaded from
    where the adapter says it was trained, and the adapter is merged into it.

    Raises:
        UserError: peft is not installed, or the adapter, its head or its backbone is missing or not whole.
    """
    adapter = read_adapter(path)
    if "head" not in (adapter.modules_to_save or []):
        what, way_out = "saves no reward head of ours (`modules_to_save` lacks 'head')", "Train a sentence reward model with srm-train."
        if is_of_classifier(adapter):
            what, way_out = "belongs to a sequence classifier, whose reward is one number and has no sentences", "srm-eval reads it."
        raise UserError(f"{path}: the adapter {what}. {way_out}")
    with one_line(str(path), "config.json cannot be read", _COPY_AGAIN):
        config = SentenceRewardConfig.from_pretrained(str(path))
    # Older releases of AutoModel write the dtype that was asked for into the configuration they pass.
    dtype = dtype or getattr(model_kwargs.get("config"), "dtype", None) or torch.float32
    model_kwargs = {name: value for name, value in model_kwargs.items() if name not in _NOT_FOR_BASE}
    if adapter.revision is not None:
        # The backbone's, as it was trained on; a folder has none.
        model_kwargs["revision"] = adapter.revision
    base = str(adapter.base_model_name_or_path)
    model = _load_base(cls, base, config, dtype=dtype, tokenizer=load_tokenizer(str(path)), model_kwargs=model_kwargs)
    merged = merge_adapter(model, path)
    merged.name_or_path = str(path)
    merged.config.training = config.training
    return merged.eval()


def read_adapter(path: Path) -> Any:
    """The peft configuration in the folder `path`.

    Raises:
        UserError: peft is not installed, or the file cannot be read.
    """
    with name_the_extra(f"{path} holds a LoRA adapter"):
        from peft import PeftConfig
    with one_line(str(path), f"{_CONFIG} cannot be read", _COPY_AGAIN):
        return PeftConfig.from_pretrained(str(path))


def is_of_classifier(adapter: Any) -> bool:
    """Whether an adapter belongs to a sequence classifier: peft's task says so, or the class it was trained on."""
    trained_on = str((adapter.auto_mapping or {}).get("base_model_class", ""))
    return "head" not in (adapter.modules_to_save or []) and (
        adapter.task_type == "SEQ_CLS" or trained_on.endswith("ForSequenceClassification")
    )


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


def _load_base(cls: Any, base: str, config: SentenceRewardConfig, *, dtype: Any, tokenizer: Any, model_kwargs: dict[str, Any]) -> Any:
    """The model as it was before the adapter was trained: a plain backbone with a fresh head, or a trained reward model."""
    found = read_config(resolve_model_name(base), "The adapter is of no use without it.", **hub_arguments(model_kwargs))
    if found.model_type == SentenceRewardConfig.model_type:
        model = cls.from_pretrained(base, dtype=dtype, **model_kwargs)
        # Training may have changed them. A prompt in another template would have other rewards.
        model.tokenizer = tokenizer
        for name in (*config.own_fields(), "pad_token_id"):
            setattr(model.config, name, getattr(config, name))
        return model
    quantization = getattr(config.backbone_config, "quantization_config", None)
    if quantization is not None and getattr(found, "quantization_config", None) is None:
        model_kwargs = {**model_kwargs, "quantization_config": quantization}
    model = cls.from_backbone(base, tokenizer=tokenizer, dtype=dtype, model_kwargs=model_kwargs, **config.own_fields())
    if quantization is not None:
        # The adapter was trained on the rounded weights, so they are what it is merged into, in a dtype that holds both.
        model.backbone.dequantize(dtype=dtype)
    return model
