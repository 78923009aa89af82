"""Load a LoRA adapter saved by `srm-train --use_peft`: its backbone, the adapter and the head, merged into one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from srm.errors import UserError
from srm.extras import name_the_extra
from srm.modeling.config import SentenceRewardConfig
from srm.modeling.loading import load_tokenizer

__all__ = ["load_adapter"]


def load_adapter(cls: Any, path: Path, *, dtype: torch.dtype | str = torch.float32, **model_kwargs: Any) -> Any:
    """The reward model whose LoRA adapter lies in `path`; `cls` is its class, which stands above this file.

    The folder holds the adapter with the head (`modules_to_save`), our `config.json` and the tokenizer. The backbone is loaded from
    where the adapter says it was trained, and the adapter is merged into it.

    Raises:
        UserError: peft is not installed, or the adapter's head is missing.
    """
    with name_the_extra(f"{path} holds a LoRA adapter"):
        from peft import PeftConfig, PeftModel

    adapter = PeftConfig.from_pretrained(str(path))
    if "head" not in (getattr(adapter, "modules_to_save", None) or []):
        raise UserError(
            f"{path}: adapter_config.json does not save the reward head (`modules_to_save` lacks 'head'). Train it with srm-train."
        )
    base = adapter.base_model_name_or_path
    model = _load_base(cls, base, path, dtype=dtype, tokenizer=load_tokenizer(str(path)), model_kwargs=model_kwargs)
    merged = PeftModel.from_pretrained(model, str(path)).merge_and_unload()
    merged.name_or_path = str(path)
    return merged.eval()


def _load_base(cls: Any, base: str, path: Path, *, dtype: Any, tokenizer: Any, model_kwargs: dict[str, Any]) -> Any:
    """The model as it was before the adapter was trained: a plain backbone with a fresh head, or a trained reward model."""
    if Path(base).is_dir() and AutoConfig.from_pretrained(base).model_type == SentenceRewardConfig.model_type:
        return cls.from_pretrained(base, dtype=dtype, **model_kwargs)
    fields = SentenceRewardConfig.from_pretrained(str(path)).own_fields()
    return cls.from_backbone(base, tokenizer=tokenizer, dtype=dtype, model_kwargs=model_kwargs, **fields)
