"""What accelerate would do to the whole reward model and is right for its backbone alone: compile it, and round what it returns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from accelerate.utils import DynamoBackend, TorchDynamoPlugin

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

__all__ = ["compile_backbone", "keep_rewards_in_float32"]


def compile_backbone(accelerator: Accelerator, backbone: nn.Module, *, backend: str | None, mode: str | None) -> str | None:
    """Compile `backbone` in place where torch.compile was asked for, by `backend` or `accelerate launch`. Gives the backend that does.

    The steps around the backbone read lengths that change with every batch: traced with it, each batch would compile anew.
    """
    # As Trainer makes it; with neither argument it looks at what `accelerate launch` was told.
    plugin = TorchDynamoPlugin(backend=backend, mode=mode)
    if plugin.backend == DynamoBackend.NO:
        return None
    settings = plugin.to_dict()
    settings.pop("use_regional_compilation")
    backbone.compile(**settings)
    # Else `accelerator.prepare` compiles the whole model.
    accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend=DynamoBackend.NO.value)
    return settings["backend"]


def keep_rewards_in_float32(accelerator: Accelerator) -> None:
    """Under FSDP2 with mixed precision, leave what a module returns in its own dtype.

    accelerate rounds the outputs of every sharded module, and the outermost one's are rewards: differences of values, to three digits.
    """
    if accelerator.is_fsdp2 and accelerator.state.fsdp_plugin.mixed_precision_policy is not None:
        plugin = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)
