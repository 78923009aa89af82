"""Packed attention in two parts, merged by their log-sum-exp: the tokens' own segments, and the prompts.

All responses of a prompt are one sequence of queries over its keys. So its keys lie in memory once, however many responses there are;
other backends copy them for each. Attention sinks are one more term of the log-sum-exp.

The merge is that of cascade inference (flashinfer.ai, 2024); its backward pass gives each part the merged output and log-sum-exp, as ring
attention does (arXiv 2310.01889).

Shape letters: `T` tokens, `K` keys, `H` query heads, `G` key and value heads, `E` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from srm.packing.backends.lse_kernels import FlashKernel, Kernel, MatmulKernel, Part, Rows
from srm.packing.backends.need import Need
from srm.packing.backends.varlen import hardware_refuses
from srm.packing.gather import gather_rows
from srm.packing.plan import AttentionPlan

__all__ = ["NAME", "REASON", "attend", "refuse"]

NAME = "cascade"
REASON = "prompt part and own part, merged by their log-sum-exp: flash kernels on CUDA in half precision, matrix products elsewhere"

ALL = slice(None)


def refuse(need: Need) -> str | None:
    """Why this backend cannot do a call.

    Args:
        need: what the call needs.

    Returns:
        The reason, or None where it can.
    """
    if need.softcap is not None:
        return "it caps no scores (`softcap`)"
    if need.dropout:
        return "it has no attention dropout"
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
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Packed attention, a call for all own parts and one for all prompt parts.

    Within a window a prompt's keys are not the same for all its responses: there they are copied for each, as other backends do.

    Args:
        query: [1, H, T, E].
        key: [1, G, T, E].
        value: [1, G, T, E].
        plan: the segments of the row, T tokens.
        scaling: what scores are multiplied with; None for `E ** -0.5`.
        dropout: 0, see `refuse`.
        window: how many tokens a query sees, itself included; None for all.
        softcap: None, see `refuse`.
        sinks: [H], a score that each query has beside those of its keys, and that leads nowhere; None for none.

    Returns:
        [1, T, H, E].
    """
    assert not dropout
    assert softcap is None
    need = Need.of_call(query, key, value, window=window, softcap=None, dropout=0.0)
    kernel: Kernel = MatmulKernel() if hardware_refuses(need) else FlashKernel()
    q, k, v = (x[0].transpose(0, 1).to(need.dtype) for x in (query, key, value))
    if window is None:
        parts = _parts(plan, query.device)
    else:
        rows = plan.key_rows(query.device)
        k, v = gather_rows(k, rows), gather_rows(v, rows)
        parts = (_windowed(plan, rows.cu_queries, rows.cu_keys, window),)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _Merged.apply(q, k, v, sinks, parts, kernel, scale)[None]


class _Merged(torch.autograd.Function):
    """Softmax attention over the keys of all parts, of which the first has all queries."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, parts: Sequence[Part], kernel: Kernel, scale: float
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            found = [kernel.forward(q[part.queries], k[part.keys], v[part.keys], part, scale) for part in parts]
            out, lse = _merge(found, [part.queries for part in parts], sinks)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.settings = parts, kernel, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, lse = ctx.saved_tensors
        parts, kernel, scale = ctx.settings
        d_sinks = None
        with torch.autocast(q.device.type, enabled=False):
            if sinks is not None:
                delta = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
                d_sinks = -((sinks.to(lse.dtype) - lse).exp() * delta).sum(0).to(sinks.dtype)
            totals: list[Tensor] = []
            for part in parts:
                queries, keys = part.queries, part.keys
                found = kernel.backward(grad[queries], q[queries], k[keys], v[keys], out[queries], lse[queries], part, scale)
                if not totals:
                    totals = list(found)
                    continue
                for total, rows, piece in zip(totals, (queries, keys, keys), found, strict=True):
                    _add(total, rows, piece)
        return *totals, d_sinks, None, None, None


def _merge(found: Sequence[tuple[Tensor, Tensor]], queries: Sequence[Rows], sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output [T, H, E] and log-sum-exp [T, H] of all parts and the sinks together."""
    (first, first_lse), *others = found
    if not others and sinks is None:
        return first, first_lse
    lse = first_lse.clone() if sinks is None else torch.logaddexp(first_lse, sinks.to(first_lse.dtype))
    for rows, (_, part_lse) in zip(queries[1:], others, strict=True):
        lse[rows] = torch.logaddexp(lse[rows], part_lse)
    out = first * (first_lse - lse).exp()[..., None]
    for rows, (part, part_lse) in zip(queries[1:], others, strict=True):
        _add(out, rows, part * (part_lse - lse[rows]).exp()[..., None])
    return out, lse


def _add(total: Tensor, rows: Rows, piece: Tensor) -> None:
    """Adds to rows of which none comes twice, so the bits repeat."""
    if isinstance(rows, slice):
        total[rows] += piece
    else:
        total.index_add_(0, rows, piece)


def _windowed(plan: AttentionPlan, cu_queries: Tensor, cu_keys: Tensor, window: int) -> Part:
    """All of it in one part, over keys that were gathered."""
    key_lengths = tuple(plan.prefix(segment) + length for segment, length in enumerate(plan.lengths))
    return Part(
        queries=ALL,
        keys=ALL,
        query_lengths=plan.lengths,
        key_lengths=key_lengths,
        cu_queries=cu_queries,
        cu_keys=cu_keys,
        causal=True,
        window=window,
    )


def _parts(plan: AttentionPlan, device: torch.device) -> tuple[Part, ...]:
    """The own part, and the prompts' where there are any; worked out once a batch."""
    name = (NAME, device)
    if name not in plan.cache:
        cu = _to(device, torch.tensor([0, *accumulate(plan.lengths)], dtype=torch.int32))
        own = Part(queries=ALL, keys=ALL, query_lengths=plan.lengths, key_lengths=plan.lengths, cu_queries=cu, cu_keys=cu, causal=True)
        children: dict[int, list[int]] = {}
        for segment, parent in enumerate(plan.parents):
            if parent >= 0:
                children.setdefault(parent, []).append(segment)
        plan.cache[name] = (own, _prompts(plan, children, device)) if children else (own,)
    return plan.cache[name]


def _prompts(plan: AttentionPlan, children: dict[int, list[int]], device: torch.device) -> Part:
    """Of each prompt with responses: all their tokens as one sequence, and the prompt's keys."""
    query_lengths = tuple(sum(plan.lengths[segment] for segment in segments) for segments in children.values())
    key_lengths = tuple(plan.lengths[parent] for parent in children)
    return Part(
        queries=_rows(plan, [segment for segments in children.values() for segment in segments], device),
        keys=_rows(plan, list(children), device),
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        cu_queries=_to(device, torch.tensor([0, *accumulate(query_lengths)], dtype=torch.int32)),
        cu_keys=_to(device, torch.tensor([0, *accumulate(key_lengths)], dtype=torch.int32)),
        causal=False,
    )


def _rows(plan: AttentionPlan, segments: list[int], device: torch.device) -> Rows:
    """Where the tokens of some segments lie, in their order: a slice where they lie side by side, as those of a single group do."""
    slices = [plan.rows[segment] for segment in segments]
    if all(one.stop == other.start for one, other in pairwise(slices)):
        return slice(slices[0].start, slices[-1].stop)
    return _to(device, torch.cat([torch.arange(rows.start, rows.stop) for rows in slices]))


def _to(device: torch.device, host: Tensor) -> Tensor:
    """Pinned and not waited for, where it leaves the host."""
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
