"""Attention on a CPU in 16 bits whose backward pass runs as matrix products.

torch's own kernel is fast forward, and gains nearly nothing from a second thread backward, where it was the largest part of a training step
of SmolLM2 on two cores with AMX. On one thread the two take about as long, and long segments less in torch's.

Shape letters: `H` query heads, `G` key and value heads, `R` = H / G, `L` queries, `C` keys, `E` head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["CpuAttention", "is_worth_it"]

# Queries whose weights are held at once.
BLOCK = 256


def is_worth_it(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether a call will be differentiated, on a CPU with several threads and in 16 bits."""
    if query.device.type != "cpu" or query.dtype not in (torch.bfloat16, torch.float16) or dropout:
        return False
    return torch.get_num_threads() > 1 and torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)


class CpuAttention(torch.autograd.Function):
    """`apply(query [1, H, L, E], key [1, G, C, E], value [1, G, C, E], mask, scale)` -> [1, H, L, E].

    mask: [L, C] added to the scores, in which query `i` sees no key behind `C - L + i`; None for causal attention with L = C.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        shared = query.shape[1] != key.shape[1]
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=shared)
        ctx.save_for_backward(query, key, value, output, mask)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Scores are computed in fp32, whatever autocast would have: the forward kernel adds them up in fp32 too.
        query, key, value, output, mask = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            return (*_gradients(query, key, value, output, mask, grad, ctx.scale), None, None)


def _gradients(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, mask: Tensor | None, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, key and value, after Dao et al., FlashAttention (arXiv 2205.14135), appendix B.2; the heads of a group side by side."""
    rows, columns = query.shape[2], key.shape[2]
    q, g, out = (x[0].unflatten(0, (key.shape[1], -1)) for x in (query, grad, output))
    k, v = key[0], value[0]
    k_fp32 = k.float()
    delta = (g.float() * out.float()).sum(-1, keepdim=True)
    dq = torch.empty_like(query, memory_format=torch.contiguous_format)
    dk, dv = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        # Keys behind the block's last query are seen by none of it.
        last = columns - rows + stop
        q_block, g_block = (x[:, :, start:stop].flatten(1, 2) for x in (q, g))
        scores = (q_block.float() * scale) @ k_fp32[:, :last].transpose(1, 2)
        scores = scores.unflatten(1, (-1, stop - start))
        if mask is None:
            scores[..., start:] += torch.full((stop - start, stop - start), -torch.inf).triu_(1)
        else:
            scores += mask[start:stop, :last]
        weights = scores.softmax(-1)
        dv[:, :last] += weights.to(q.dtype).flatten(1, 2).transpose(1, 2) @ g_block
        d_weights = (g_block @ v[:, :last].transpose(1, 2)).unflatten(1, (-1, stop - start))
        d_scores = (weights * (d_weights - delta[:, :, start:stop]) * scale).to(q.dtype).flatten(1, 2)
        dq[0].unflatten(0, (key.shape[1], -1))[:, :, start:stop] = (d_scores @ k[:, :last]).unflatten(1, (-1, stop - start))
        dk[:, :last] += d_scores.transpose(1, 2) @ q_block
    return dq, dk.to(key.dtype)[None], dv.to(value.dtype)[None]
