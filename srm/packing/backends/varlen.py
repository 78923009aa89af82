"""Packed attention with `torch.nn.attention.varlen.varlen_attn`, the flash attention that comes with torch.

Shape letters: `H` query heads, `G` key and value heads, `T` tokens, `K` gathered keys, `E` head width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from srm.packing.backends.need import Need
from srm.packing.gather import gather_rows
from srm.packing.plan import AttentionPlan

__all__ = ["NAME", "REASON", "attend", "hardware_refuses", "refuse", "rows_of"]

NAME = "varlen"
REASON = "torch.nn.attention.varlen, one call a layer"

# What the kernels take: half precision, and head widths in steps of 8 up to this.
_WIDEST = 256


def refuse(need: Need) -> str | None:
    """Why this backend cannot do a call.

    Args:
        need: what the call needs.

    Returns:
        The reason, or None where it can.
    """
    reason = hardware_refuses(need)
    if reason is not None:
        return reason
    if need.softcap is not None:
        return "it caps no scores (`softcap`)"
    if need.dropout:
        return "it has no attention dropout"
    if need.sinks:
        return "it has no sinks"
    return None


def hardware_refuses(need: Need) -> str | None:
    """Why no flash attention kernel runs a call.

    Args:
        need: what the call needs.

    Returns:
        The reason, or None where the hardware and the widths are no hindrance.
    """
    if need.device.type != "cuda":
        return f"it runs on CUDA, not on {need.device.type}"
    if need.dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in half precision, not in {str(need.dtype).removeprefix('torch.')}"
    if torch.version.hip is not None:
        return "it is not tested on ROCm"
    if torch.cuda.get_device_capability(need.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if need.value_width != need.width:
        return f"values are {need.value_width} wide and keys {need.width}"
    if need.width > _WIDEST or need.width % 8:
        return f"head width {need.width} is not a multiple of 8 up to {_WIDEST}"
    return None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Packed attention in one call, after a gather of keys and values.

    Args:
        query: [1, H, T, E].
        key: [1, G, T, E].
        value: [1, G, T, E].
        plan: the segments of the row, T tokens.
        scaling: what scores are multiplied with; None for `E ** -0.5`.
        dropout: 0, see `refuse`.
        window: how many tokens a query sees, itself included; None for all.
        softcap: None, see `refuse`.
        sinks: None, see `refuse`.

    Returns:
        [1, T, H, E].
    """
    assert not dropout
    assert softcap is None
    assert sinks is None
    rows = plan.key_rows(query.device)
    q, k, v = rows_of(query, key, value, plan)
    # The kernels count the tokens before the query, transformers counts the query too.
    settings: dict[str, Any] = {"scale": scaling, "window_size": (-1 if window is None else window - 1, 0)}
    groups = q.shape[1] // k.shape[1]
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        settings["enable_gqa"] = groups > 1
    elif groups > 1:  # torch 2.11 wants as many key heads as query heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    output = varlen_attn(q, k, v, rows.cu_queries, rows.cu_keys, plan.max_queries, plan.max_keys, **settings)
    assert isinstance(output, Tensor), "the log-sum-exp comes only where it is asked for"
    return output[None]


def rows_of(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor, Tensor]:
    """What variable-length attention reads, in one dtype: autocast's where that is on, else the query's.

    Args:
        query: [1, H, T, E].
        key: [1, G, T, E].
        value: [1, G, T, E].
        plan: the segments of the row, T tokens.

    Returns:
        Queries [T, H, E], keys [K, G, E] and values [K, G, E], each segment's keys behind its parent's.
    """
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    rows = plan.key_rows(query.device)
    return q, gather_rows(k, rows), gather_rows(v, rows)
