"""Packed attention with FlexAttention, for what the flash kernels lack: caps on scores without flash_attn, odd head widths.

Shape letters: `H` query heads, `G` key and value heads, `T` tokens, `E` head width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from srm.packing.backends.need import Need
from srm.packing.plan import AttentionPlan

__all__ = ["NAME", "REASON", "attend", "refuse"]

NAME = "flex"
REASON = "compiled FlexAttention over blocks of the packed row"

# Below this the products of a block do not fit the tensor cores' shapes.
_NARROWEST = 16
# A distance that no packed row reaches. A number that changed with the batch would be compiled into the kernels, anew each time.
_ANY_DISTANCE = 1 << 40


def refuse(need: Need) -> str | None:
    """Why this backend cannot do a call.

    Args:
        need: what the call needs.

    Returns:
        The reason, or None where it can.
    """
    if need.device.type != "cuda":
        return f"it runs on CUDA, not on {need.device.type}"
    if need.dtype not in (torch.bfloat16, torch.float16):
        return f"it may round {str(need.dtype).removeprefix('torch.')} to fewer bits"
    if torch.version.hip is not None:
        return "it is not tested on ROCm"
    if need.dropout:
        return "it has no attention dropout"
    if need.sinks:
        return "it has no sinks"
    if min(need.width, need.value_width) < _NARROWEST:
        return f"head width {min(need.width, need.value_width)} is below {_NARROWEST}"
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
    """Packed attention in one call. Keys are read where they lie: nothing is gathered.

    Args:
        query: [1, H, T, E].
        key: [1, G, T, E].
        value: [1, G, T, E], which may have another width.
        plan: the segments of the row, T tokens.
        scaling: what scores are multiplied with; None for `E ** -0.5`.
        dropout: 0, see `refuse`.
        window: how many tokens a query sees, itself included; None for all.
        softcap: what the scores are capped at; None for no cap.
        sinks: None, see `refuse`.

    Returns:
        [1, T, H, E].
    """
    assert not dropout
    assert sinks is None
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    output = _kernel(kind)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _cap(softcap),
        block_mask=_mask(plan, window, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2)


@lru_cache(maxsize=2)
def _kernel(kind: str) -> Callable[..., Any]:
    # Not compiled, FlexAttention makes the whole matrix of scores: for tests on the CPU.
    plain: Callable[..., Any] = flex_attention
    return torch.compile(plain, dynamic=True) if kind == "cuda" else plain


@lru_cache(maxsize=8)
def _cap(softcap: float) -> Callable[..., Tensor]:
    # A constant of the code: a variable may become an input of the compiled graph, and torch 2.15 takes no floats among FlexAttention's.
    return eval(f"lambda score, batch, head, query, key: {float(softcap)!r} * torch.tanh(score / {float(softcap)!r})")


def _mask(plan: AttentionPlan, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of queries see which blocks of keys; made once a batch and window."""
    name = (NAME, window, device)
    if name not in plan.cache:
        segment, parent, position = _tokens(plan, device)
        reach = _ANY_DISTANCE if window is None else window

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            distance = position[query] - position[key]
            related = (segment[key] == segment[query]) | (segment[key] == parent[query])
            return related & (distance >= 0) & (distance < reach)

        # Compiled, it never holds the matrix of all tokens by all tokens.
        with warnings.catch_warnings():
            # torch 2.11 wants `torch.compile(create_block_mask)` in its place, and still takes it.
            warnings.filterwarnings("ignore", message="_compile flag on create_block_mask")
            plan.cache[name] = create_block_mask(
                visible, None, None, plan.num_tokens, plan.num_tokens, device=device, _compile=device.type == "cuda"
            )
    return plan.cache[name]


def _tokens(plan: AttentionPlan, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each token [T]: its segment, that one's parent, and its position behind the parent's start."""
    lengths = torch.tensor(plan.lengths)
    segment = torch.repeat_interleave(lengths)
    prefix = torch.tensor([plan.prefix(s) for s in range(len(plan.lengths))])
    start = lengths.cumsum(0) - lengths
    position = torch.arange(plan.num_tokens) - start[segment] + prefix[segment]
    return segment.to(device), torch.tensor(plan.parents)[segment].to(device), position.to(device)
