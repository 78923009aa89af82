"""What saves memory or time on an accelerator when asked for: activations kept in the CPU's memory, and Liger's kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from srm.errors import UserError
from srm.extras import name_the_extra

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["offloaded_activations", "use_liger_kernels"]

# Moving less costs more than it saves; trl's limit.
_LEAST_NUMBERS = 1024


def offloaded_activations(model: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """A context in which what the backward pass needs waits in the CPU's memory, but for the weights, which are there anyway.

    Args:
        model: whose forward pass runs in it.
        wanted: else it is a context of nothing.
    """
    if not wanted:
        return nullcontext()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor: Tensor) -> tuple[torch.device | None, Tensor]:
        if tensor.numel() < _LEAST_NUMBERS or tensor.untyped_storage().data_ptr() in weights:
            return None, tensor
        return tensor.device, _moved(tensor)

    def unpack(packed: tuple[torch.device | None, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor if device is None else tensor.to(device, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)


def _moved(tensor: Tensor) -> Tensor:
    # From pinned memory it comes back without a wait.
    return torch.empty(tensor.size(), dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(tensor)


def use_liger_kernels(backbone: PreTrainedModel, settings: dict[str, Any] | None) -> None:
    """Put Liger's kernels into `backbone`: Trainer would look for kernels of the reward model, find none, and say nothing.

    Args:
        backbone: the decoder.
        settings: which kernels, as in TrainingArguments' `liger_kernel_config`.

    Raises:
        UserError: liger-kernel is not installed, or has no kernels for such a backbone.
    """
    with name_the_extra("--use_liger_kernel"):
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as known
    kind = backbone.config.model_type
    if kind not in known:
        raise UserError(f"--use_liger_kernel: Liger has no kernels for a {kind} backbone. Leave the flag out.")
    # There is no language model's loss, whose kernels would replace the forward pass of a decoder that has none.
    without_loss = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    _apply_liger_kernel_to_instance(model=backbone, **{**(settings or {}), **without_loss})
