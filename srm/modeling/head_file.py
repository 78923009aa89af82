"""The reward head in files: always float32, and in memory exactly what the file holds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations import is_fsdp_enabled
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from srm.errors import UserError
from srm.hub import optional_file

__all__ = ["check_head", "in_float32", "saved_weights"]

_HEAD = "head."


def in_float32(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict` of a reward model, or of peft's wrapper around one, with its head in float32."""
    return {name: weight.float() if f".{_HEAD}" in f".{name}" else weight for name, weight in state_dict.items()}


def check_head(head: nn.Module, path: str, **hub_arguments: Any) -> None:
    """Compare the head that was loaded with the files, bit for bit after the cast to its dtype.

    A head that was initialised again gives rewards of zero, or of noise, and no other sign.

    Args:
        head: of the model that was loaded.
        path: where from, a folder or a hub name.
        **hub_arguments: where on the hub.

    Raises:
        UserError: they differ, or a weight is NaN or infinite.
    """
    if is_fsdp_enabled() and int(os.environ.get("LOCAL_RANK", 0)):
        # This process waits for the first one to send the weights.
        return
    for name, saved in saved_weights(path, _HEAD, **hub_arguments).items():
        weight = head.get_parameter(name).detach().cpu()
        if not bool(weight.isfinite().all()):
            raise UserError(f"{path}: {_HEAD}{name} holds NaN or infinity, so no reward would be a number. Load another checkpoint.")
        if not torch.equal(weight, saved.to(weight.dtype)):
            raise UserError(
                f"{path}: the head in memory is not the one in the file ({_HEAD}{name} differs), so its rewards would mean nothing. "
                "Please report it with the versions of transformers and torch."
            )


def saved_weights(path: str, prefix: str, **hub_arguments: Any) -> dict[str, Tensor]:
    """The weights under `prefix`, from whichever files transformers reads; none where there are no files.

    Args:
        path: a folder, or a hub name.
        prefix: what their names begin with, which is left out of the names here: `head.`.
        **hub_arguments: where on the hub.
    """

    def find(name: str) -> str | None:
        return optional_file(path, name, **hub_arguments)

    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if file := find(whole):
            return _read(file, prefix)
        if file := find(index):
            with open(file, encoding="utf-8") as opened:
                shards = {shard for key, shard in json.load(opened)["weight_map"].items() if key.startswith(prefix)}
            return {name: weight for shard in sorted(shards) for name, weight in _read(str(find(shard)), prefix).items()}
    return {}


def _read(file: str, prefix: str) -> dict[str, Tensor]:
    if file.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return {key.removeprefix(prefix): opened.get_tensor(key) for key in opened.keys() if key.startswith(prefix)}  # noqa: SIM118
    weights = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return {key.removeprefix(prefix): weight for key, weight in weights.items() if key.startswith(prefix)}
