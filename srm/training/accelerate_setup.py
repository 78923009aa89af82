"""What accelerate and what it starts would do to a reward model and is not right for one: compile the head, round it, clip nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accelerate.utils import DynamoBackend, TorchDynamoPlugin

from srm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from srm.modeling import SentenceRewardModel
    from srm.training.arguments import RewardConfig

__all__ = ["compile_backbone", "float32_weights", "keep_rewards_in_float32", "place_model", "settle_deepspeed", "settle_trainer"]

logger = logging.getLogger(__name__)

# What Trainer does for these flags would be wrong here: (what turns it off, why).
_OFF: dict[str, tuple[Any, str]] = {
    "bf16_full_eval": (False, "it would round the model that is trained and saved; with --bf16 evaluation computes in bf16 anyway"),
    "fp16_full_eval": (False, "it would round the model that is trained and saved; with --fp16 evaluation computes in fp16 anyway"),
    "include_num_input_tokens_seen": ("no", "Trainer finds no tokens to count in a packed batch, and would log 0"),
}


def place_model(model: SentenceRewardModel, args: RewardConfig) -> None:
    """Put `model` on the device that it will be trained on, where it is whole there: what can run packed depends on the device."""
    launched = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
    if not (launched or args.fsdp or args.deepspeed or getattr(model.backbone, "is_quantized", False)):
        model.to(args.device)  # type: ignore[arg-type]  # transformers' wrapper hides the signature


def settle_trainer(args: RewardConfig) -> None:
    """Turn off what Trainer would do wrong, with a line for each."""
    for name, (off, why) in _OFF.items():
        if getattr(args, name) not in (off, False):
            logger.warning("--%s has no effect: %s", name, why)
            setattr(args, name, off)


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


def settle_deepspeed(accelerator: Accelerator, max_grad_norm: float) -> None:
    """Hold DeepSpeed, where it runs, to our settings: it goes by a file of its own, and says nothing where that one differs.

    Raises:
        UserError: by that file the head's learning rates would not count, or what is saved would be no model.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return
    if plugin.hf_ds_config.mismatches:
        raise UserError(
            f"the DeepSpeed configuration and srm-train's own settings differ: {' '.join(plugin.hf_ds_config.mismatches)}. "
            "Give both the same; in a DeepSpeed file, `auto` takes ours."
        )
    config = plugin.deepspeed_config
    # Gradients are clipped by DeepSpeed, and by nobody where the file does not ask for it.
    config.setdefault("gradient_clipping", max_grad_norm)
    for name in ("optimizer", "scheduler"):
        if name in config:
            raise UserError(
                f"the DeepSpeed configuration has a section {name!r}, under which the head would learn at the backbone's rate. "
                "Leave it out: srm-train makes both, from --optim, --learning_rate, --head_learning_rate and --lr_scheduler_type."
            )
    zero = config["zero_optimization"]
    if zero["stage"] == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is not True:
        raise UserError(
            "under this DeepSpeed configuration the weights would be saved in shards, which nothing but DeepSpeed could load. "
            "Set zero3_save_16bit_model: true (of accelerate) or stage3_gather_16bit_weights_on_model_save: true (of DeepSpeed)."
        )


def float32_weights(weights: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Whole weights from DeepSpeed's optimizer, which has them in float32 where the model has them rounded. All processes call this."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = ((name, safe_get_full_fp32_param(weight)) for name, weight in weights)
    # None from the stages that leave no copy with the optimizer: there the model's weights are all there is.
    return {name: weight.cpu() for name, weight in whole if weight is not None}
