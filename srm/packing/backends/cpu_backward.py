"""The backward pass of packed attention on a CPU in 16 bits, as matrix products.

torch's own kernel is fast forward, and gains nearly nothing from a second thread backward, where it was the largest part of a training step
of SmolLM2 on two cores with AMX. Called once per segment it also keeps a copy of the parent's keys for every child. On one thread the two
take about as long.

Shape letters: `H` query heads, `G` key and value heads, `R` = H / G, `T` tokens, `L` queries of a segment, `C` its keys, its parent's
included, `B` queries of a block, `E` head width.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from srm.packing.plan import AttentionPlan

__all__ = ["gradients", "is_worth_it"]

# Queries whose weights are held at once.
BLOCK = 128


def is_worth_it(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether a call will be differentiated, on a CPU and in 16 bits.

    Args:
        query: [1, H, T, E].
        key: [1, G, T, E].
        value: [1, G, T, E].
        dropout: share of the weights to drop, which `gradients` cannot.

    Returns:
        True where `gradients` should take the place of torch's own.
    """
    if query.device.type != "cpu" or query.dtype not in (torch.bfloat16, torch.float16) or dropout:
        return False
    return torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)


def gradients(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, grad: Tensor, plan: AttentionPlan, *, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of packed attention.

    After Dao et al., FlashAttention (arXiv 2205.14135), appendix B.2, with the query heads of a key head side by side. Scores are computed
    in fp32, whatever autocast would have: the forward kernel adds them up in fp32 too.

    Args:
        query: [1, H, T, E].
        key: [1, G, T, E].
        value: [1, G, T, E], which may have another width.
        output: [1, T, H, E], what the forward pass gave.
        grad: [1, T, H, E], the gradient of `output`.
        plan: the segments of the row, T tokens.
        scale: what scores are multiplied with.
        window: how many tokens a query sees, itself included; None for all.

    Returns:
        The gradients of query, key and value, each in its shape and dtype.
    """
    groups = key.shape[1]
    delta = (grad.float() * output.float()).sum(-1, keepdim=True)
    dq = torch.empty_like(query)
    by_group = tuple(x[0].unflatten(0, (groups, -1)) for x in (query, grad.transpose(1, 2), delta.transpose(1, 2), dq))
    k, v = key[0], value[0]
    dk, dv = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
    with torch.autocast("cpu", enabled=False):
        for rows, parent in zip(plan.rows, plan.parents, strict=True):
            parts = [plan.rows[parent], rows] if parent >= 0 else [rows]
            keys, values = (torch.cat([x[:, part] for part in parts], dim=1) for x in (k, v))
            q, g, d, out = (x[:, :, rows] for x in by_group)
            sums = _segment(q, g, d, out, keys, values, plan, scale=scale, window=window)
            for total, found in zip((dk, dv), sums, strict=True):
                for part, piece in zip(parts, found.split([part.stop - part.start for part in parts], dim=1), strict=True):
                    total[:, part] += piece
    return dq, dk.to(key.dtype)[None], dv.to(value.dtype)[None]


@cache
def _causal() -> Tensor:
    """Additive mask [BLOCK, BLOCK]: a query of a block sees the block's keys up to its own."""
    return torch.full((BLOCK, BLOCK), -torch.inf).triu(1)


def _segment(
    q: Tensor, g: Tensor, delta: Tensor, dq: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, *, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """One segment's dq, written into `dq`, and what it adds to dk and dv [G, C, E] in fp32.

    q, g and dq [G, R, L, E], delta [G, R, L, 1], k and v [G, C, E].
    """
    length, columns = q.shape[2], k.shape[1]
    dk, dv = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
    k_fp32, v_fp32 = k.float(), v.float()
    before = columns - length
    # Blocks end where a multiple of BLOCK keys ends, so that most have the shape of one before: oneDNN builds a kernel for every new one.
    stops = [*range(BLOCK - before % BLOCK, length, BLOCK), length]
    for start, stop in zip([0, *stops], stops, strict=False):
        prefix = before + start
        # Keys that no query of the block sees are left out, in front of its window and behind its last query.
        first = 0 if window is None else max(0, prefix - window + 1)
        seen = slice(first, before + stop)
        q_block, g_block, delta_block = (x[:, :, start:stop].flatten(1, 2) for x in (q, g, delta))  # [G, R * B, E or 1]
        scores = (q_block.float() * scale) @ k_fp32[:, seen].transpose(1, 2)
        if window is None:
            # The queries see all keys in front of the block's own, so no mask of the plan's is made for them.
            mask = _causal()[: stop - start, : stop - start]
        else:
            mask = plan.mask(stop - start, prefix - first, window, q.dtype, q.device)
        scores.unflatten(1, (-1, stop - start))[..., -mask.shape[1] :] += mask
        weights = scores.softmax(-1)
        dv[:, seen] += weights.to(q.dtype).transpose(1, 2) @ g_block
        # In fp32 too: the two nearly cancel where values have much in common, and rounded to 16 bits little of the difference is left.
        d_weights = torch.baddbmm(delta_block, g_block.float(), v_fp32[:, seen].transpose(1, 2), beta=-1)
        d_scores = d_weights.mul_(weights).to(q.dtype)  # of the scores before `scale`
        dq[:, :, start:stop] = ((d_scores @ k[:, seen]) * scale).unflatten(1, (-1, stop - start))
        dk[:, seen] += d_scores.transpose(1, 2) @ q_block
    return dk.mul_(scale), dv
