"""Dropout of a backbone, turned off."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["disable_dropout"]


def disable_dropout(backbone: nn.Module) -> None:
    """Set every dropout of `backbone` to zero: modules, and the numbers that a forward pass reads from a module or its configuration.

    That of LoRA adapters is among them, as in TRL.
    """
    for module in backbone.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(vars(holder).items()) if holder is not None else ():
                if "drop" in name and isinstance(value, float):
                    setattr(holder, name, 0.0)
