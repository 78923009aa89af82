"""Packed attention with one SDPA call per segment.

Shape letters: `H` query heads, `G` key and value heads, `T` tokens, `E` head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from srm.packing.backends import cpu_backward
from srm.packing.backends.need import Need
from srm.packing.plan import QUERY_BLOCK, AttentionPlan

__all__ = ["NAME", "REASON", "attend", "refuse"]

NAME = "sdpa"
# Without cuDNN, which torch prefers on an H200: there siblings with masks ended in a misaligned address (torch 2.11).
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
REASON = "one scaled_dot_product_attention call per segment"


def refuse(need: Need) -> str | None:
    """Why this backend cannot do a call.

    Args:
        need: what the call needs.

    Returns:
        The reason, or None where it can.
    """
    if need.sinks:
        return "it has no sinks"
    return None if need.softcap is None else "it caps no scores (`softcap`)"


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Packed attention, a call per segment.

    A segment without a parent and within the window is plain causal attention. All others join the parent's keys to their own;
    autograd sums the children's gradients into the parent.

    Args:
        query: [1, H, T, E].
        key: [1, G, T, E].
        value: [1, G, T, E], which may have another width.
        plan: the segments of the row, T tokens.
        scaling: what scores are multiplied with; None for `E ** -0.5`.
        dropout: share of the weights to drop.
        window: how many tokens a query sees, itself included; None for all.
        softcap: None, see `refuse`.
        sinks: None, see `refuse`.

    Returns:
        [1, T, H, E] in the dtype SDPA returns, as wide as values are.
    """
    assert softcap is None
    assert sinks is None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda:
        # With shared key heads and a mask, or in fp32, torch 2.11 takes a kernel there that writes the whole matrix of scores.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        with sdpa_kernel(_KERNELS):
            return _attend(query, key, value, plan, scale=scale, dropout=dropout, window=window)
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # As autocast would for every segment, and a parent's keys are cast once.
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    if cpu_backward.is_worth_it(query, key, value, dropout):
        return _CpuAttention.apply(query, key, value, plan, scale, window)
    return _attend(query, key, value, plan, scale=scale, dropout=dropout, window=window)


class _CpuAttention(torch.autograd.Function):
    """`_attend` with a backward pass of our own."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float, window: int | None) -> Tensor:
        output = _attend(query, key, value, plan, scale=scale, dropout=0.0, window=window)
        ctx.save_for_backward(query, key, value, output)
        ctx.settings = plan, scale, window
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output = ctx.saved_tensors
        plan, scale, window = ctx.settings
        return (*cpu_backward.gradients(query, key, value, output, grad, plan, scale=scale, window=window), None, None, None)


def _attend(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, *, scale: float, dropout: float, window: int | None) -> Tensor:
    # `split` and not slices: its backward writes each gradient once, where every slice would fill a zero tensor of T tokens.
    queries, keys, values = (x.split(plan.lengths, dim=2) for x in (query, key, value))
    outputs = []
    for segment, parent in enumerate(plan.parents):
        k, v = keys[segment], values[segment]
        if parent >= 0:
            k, v = torch.cat([keys[parent], k], dim=2), torch.cat([values[parent], v], dim=2)
        outputs += _attend_segment(queries[segment], k, v, plan, scale=scale, dropout=dropout, window=window)
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)


def _attend_segment(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, *, scale: float, dropout: float, window: int | None
) -> list[Tensor]:
    """The last rows of a causal attention over `key`, in one block or several."""
    rows, columns = query.shape[2], key.shape[2]
    if window is not None and window >= columns:
        window = None
    if rows == columns and window is None:
        return [_sdpa(query, key, value, None, scale=scale, dropout=dropout)]
    dtype = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else query.dtype
    outputs = []
    for start in range(0, rows, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, rows)
        prefix = columns - rows + start
        # Keys that no row of the block can see are left out, so a windowed block costs the window and not the whole segment.
        first = 0 if window is None else max(0, prefix - window + 1)
        last = columns - rows + stop
        mask = plan.mask(stop - start, prefix - first, window, dtype, query.device)
        if mask.is_cuda:  # its kernels read masks in aligned vectors, and a view into the shared matrix starts anywhere
            mask = mask.contiguous()
        seen = slice(first, last)
        outputs.append(_sdpa(query[:, :, start:stop], key[:, :, seen], value[:, :, seen], mask, scale=scale, dropout=dropout))
    return outputs


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float, dropout: float) -> Tensor:
    """Causal where there is no mask."""
    shared = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scale, enable_gqa=shared
    )
