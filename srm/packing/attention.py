"""The packed attention as transformers calls it: one attention function, one mask function, registered under one name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from srm.packing import backends
from srm.packing.errors import UnsupportedBackboneError
from srm.packing.plan import AttentionPlan

__all__ = ["NAME", "PLAN", "check_arguments", "choose_for", "packed_attention"]

NAME = "srm_packed"
# The keyword argument that carries the plan through the model's forward to every attention call.
PLAN = "srm_plan"

# Arguments that change the scores in a way no backend computes. Anything else that does is caught by the probe.
_UNSUPPORTED = {
    "sinks": "its attention has sinks of another kind (`sinks`)",
    "position_bias": "its attention adds a bias to the scores (`position_bias`)",
    "indices": "its attention picks keys by index (`indices`)",
    "block_indices": "its attention picks blocks of keys (`block_indices`)",
}


def check_arguments(module: nn.Module, attention_mask: Tensor | None, arguments: dict[str, Any]) -> None:
    """Refuse what a layer asks of its attention and packing cannot give.

    Args:
        module: the attention layer that calls.
        attention_mask: what it passes as a mask. The plan holds the whole layout, so only None will do.
        arguments: its further keyword arguments.

    Raises:
        UnsupportedBackboneError: sinks that are no `s_aux`, a bias, picked keys, no causality, or a mask.
    """
    name = type(module).__name__
    for argument, reason in _UNSUPPORTED.items():
        if arguments.get(argument) is not None:
            raise UnsupportedBackboneError(name, reason)
    is_causal = arguments.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise UnsupportedBackboneError(name, "its attention is bidirectional")
    if attention_mask is not None:
        raise UnsupportedBackboneError(name, "the model builds an attention mask of its own, past transformers' mask interface")


@torch.compiler.disable(reason="segment lengths change with every batch, so tracing the loop over them would recompile at every step")
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over a packed row, as transformers calls it.

    Args:
        module: the attention layer that calls.
        query: [1, H, T, E].
        key: [1, G, T, E].
        value: [1, G, T, E], which may have another width.
        attention_mask: None.
        scaling: what scores are multiplied with; None for `E ** -0.5`.
        dropout: share of the weights to drop.
        sliding_window: how many tokens a query sees, itself included; None for all.
        softcap: what the scores are capped at; None for no cap.
        s_aux: [H], the layer's attention sinks; None for none.
        **kwargs: `srm_plan`, the AttentionPlan, and what else the layer passes.

    Returns:
        [1, T, H, E], and None in place of the weights.

    Raises:
        UnsupportedBackboneError: no plan arrived, tokens were added on the way, or the layer asks for what no backend has.
    """
    plan: AttentionPlan | None = kwargs.get(PLAN)
    if plan is None:
        raise UnsupportedBackboneError(
            type(module).__name__, f"no `{PLAN}` reached its attention (the model drops keyword arguments, or ran without `run_backbone`)"
        )
    check_arguments(module, attention_mask, kwargs)
    if query.shape[0] != 1 or query.shape[2] != plan.num_tokens or key.shape[2] != plan.num_tokens:
        raise UnsupportedBackboneError(
            type(module).__name__,
            f"expected one row of {plan.num_tokens} tokens, got queries {list(query.shape)} and keys {list(key.shape)} "
            "(a cache or a learned prefix adds tokens)",
        )
    if sliding_window is not None and sliding_window >= plan.max_keys:
        sliding_window = None
    need = backends.Need.of_call(query, key, value, window=sliding_window, softcap=softcap, dropout=dropout, sinks=s_aux is not None)
    settings = {"scaling": scaling, "dropout": dropout, "window": sliding_window, "softcap": softcap, "sinks": s_aux}
    return choose_for(module, need).backend.attend(query, key, value, plan, **settings), None


def choose_for(module: nn.Module, need: backends.Need) -> backends.Choice:
    """The backend for a layer's attention.

    Args:
        module: the attention layer that calls.
        need: what its call needs.

    Returns:
        The first backend that can do it, and why none before.

    Raises:
        UnsupportedBackboneError: no backend can.
    """
    try:
        return backends.choose(need)
    except backends.NoBackendError as error:
        asked = ["caps the scores (`softcap`)"] * (need.softcap is not None) + ["has sinks (`s_aux`)"] * need.sinks
        reason = f"its attention {' and '.join(asked)}, and no backend here does that" if asked else "no packed attention can run here"
        raise UnsupportedBackboneError(type(module).__name__, f"{reason} ({error})") from None


def _no_mask(**kwargs: Any) -> None:
    """The plan holds the whole layout. Without a registered mask function transformers would drop causality elsewhere too."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
