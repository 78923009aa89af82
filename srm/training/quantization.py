"""A frozen backbone in 4 or 8 bits, by bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from srm.training.model_arguments import ModelArguments

__all__ = ["keep_gradients", "quantization_of"]


def quantization_of(arguments: ModelArguments) -> Any:
    """The configuration that transformers loads a quantised backbone with, or None.

    Args:
        arguments: settings of the model.
    """
    if not (arguments.load_in_4bit or arguments.load_in_8bit):
        return None
    from transformers import BitsAndBytesConfig

    if arguments.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        # As trl does: computed in the dtype of the other weights.
        bnb_4bit_compute_dtype=arguments.dtype,
        bnb_4bit_quant_type=arguments.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=arguments.use_bnb_nested_quant,
        bnb_4bit_quant_storage=arguments.bnb_4bit_quant_storage,
    )


def keep_gradients(backbone: nn.Module) -> None:
    """Keep bitsandbytes from laying weights out anew for inference on a CPU: behind that layout no gradient flows, without an error.

    It would do so at the first pass in eval mode, which the proof of packing is, and every evaluation.

    Args:
        backbone: that adapters are trained on.
    """
    for module in backbone.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # a flag of bitsandbytes
