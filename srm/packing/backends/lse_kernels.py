"""Attention that gives its log-sum-exp beside its output, forward and backward: what a merge of parts stands on.

Both kernels take the output and the log-sum-exp in the backward pass. Given those of the *merged* attention, they return the gradients
of one part of it: the weights are `exp(score - lse)`, and what a softmax's gradient needs of all other keys is `sum(grad * output)`
(arXiv 2205.14135, appendix B.2).

Shape letters: `Q` queries, `K` keys, `H` query heads, `G` key and value heads, `R` = H / G, `E` head width, `S` sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from srm.packing.plan import QUERY_BLOCK

__all__ = ["FlashKernel", "Kernel", "MatmulKernel", "Part"]

# Which rows of a tensor: a slice where they lie together, so that nothing is copied.
Rows = slice | Tensor


@dataclass(frozen=True, kw_only=True)
class Part:
    """Sequences of queries, each with the keys it sees.

    Args:
        queries: the rows of the queries, one sequence after the other.
        keys: the rows of the keys, likewise.
        query_lengths: [S].
        key_lengths: [S].
        cu_queries: int32 [S + 1], offsets of the sequences.
        cu_keys: int32 [S + 1].
        causal: whether the last query of a sequence sees all keys, and each before it one less; else all see all.
        window: how many keys a query of a causal part sees; None for all.
    """

    queries: Rows
    keys: Rows
    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    cu_queries: Tensor
    cu_keys: Tensor
    causal: bool
    window: int | None = None


class Kernel(Protocol):
    """One part of an attention, its rows already taken."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
        """Output [Q, H, E] and log-sum-exp [Q, H], that in fp32 at least, from q [Q, H, E], k and v [K, G, E]."""
        ...

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, part: Part, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v; `out` and `lse` are the merged attention's."""
        ...


class FlashKernel:
    """The flash attention that comes with torch: CUDA, half precision. `torch.nn.attention.varlen` calls the same operators."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        left, right = _window(part)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            part.cu_queries,
            part.cu_keys,
            max(part.query_lengths),
            max(part.key_lengths),
            0.0,  # no dropout
            (left, right) == (-1, 0),
            False,
            scale=scale,
            window_size_left=left,
            window_size_right=right,
        )
        return out, lse.transpose(0, 1)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, part: Part, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        left, right = _window(part)
        return torch.ops.aten._flash_attention_backward(
            grad.contiguous(),
            q,
            k,
            v,
            out.contiguous(),
            lse.transpose(0, 1).contiguous(),
            part.cu_queries,
            part.cu_keys,
            max(part.query_lengths),
            max(part.key_lengths),
            0.0,
            (left, right) == (-1, 0),
            torch.zeros(2, dtype=torch.uint64, device=q.device),  # the state of a dropout that is not there
            torch.empty(0, device=q.device),
            scale=scale,
            window_size_left=left,
            window_size_right=right,
        )


def _window(part: Part) -> tuple[int, int]:
    """Keys to the left and to the right of a query's own, -1 for any number. The kernels count the query's own key apart."""
    left = -1 if part.window is None else part.window - 1
    return left, 0 if part.causal else -1


class MatmulKernel:
    """The same as matrix products, in blocks of queries: any device, fp32 inside (fp64 for fp64). What the flash kernel must equal."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        out, lse = q.new_empty(*q.shape[:2], v.shape[2], dtype=dtype), q.new_empty(q.shape[:2], dtype=dtype)
        for rows, seen, hidden in _blocks(part, q.device):
            scores = _scores(q[rows], k[seen], hidden, scale)
            block = torch.logsumexp(scores, -1)
            out[rows] = _rows_first((scores - block[..., None]).exp() @ _by_group(v[seen], v.shape[1]))
            lse[rows] = _rows_first(block[..., None])[..., 0]
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, part: Part, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        groups = k.shape[1]
        delta = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1, keepdim=True)
        dq, dk, dv = (torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v))
        for rows, seen, hidden in _blocks(part, q.device):
            weight = (_scores(q[rows], k[seen], hidden, scale) - _by_group(lse[rows, :, None], groups)).exp()
            queries, grads, keys, values = (_by_group(x, groups) for x in (q[rows], grad[rows], k[seen], v[seen]))
            dv[seen] += (weight.transpose(-1, -2) @ grads).sum(1).transpose(0, 1)
            d_scores = weight * (grads @ values.transpose(-1, -2) - _by_group(delta[rows], groups)) * scale
            dk[seen] += (d_scores.transpose(-1, -2) @ queries).sum(1).transpose(0, 1)
            dq[rows] = _rows_first(d_scores @ keys)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _blocks(part: Part, device: torch.device) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Rows of queries and of keys, and what is hidden [rows, keys]; None where nothing is."""
    query, key = 0, 0
    for queries, keys in zip(part.query_lengths, part.key_lengths, strict=True):
        for start in range(0, queries, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, queries)
            hidden = None
            if part.causal:
                distance = torch.arange(start, stop, device=device)[:, None] + keys - queries - torch.arange(keys, device=device)
                hidden = distance < 0 if part.window is None else (distance < 0) | (distance >= part.window)
            yield slice(query + start, query + stop), slice(key, key + keys), hidden
        query, key = query + queries, key + keys


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[rows, H, E] as [G, R, rows, E]; keys and values, with H = G, as [G, 1, rows, E]. In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (groups, -1)).permute(1, 2, 0, 3)


def _rows_first(x: Tensor) -> Tensor:
    """The inverse: [G, R, rows, E] as [rows, H, E]."""
    return x.permute(2, 0, 1, 3).flatten(1, 2)


def _scores(q: Tensor, k: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """[G, R, rows, keys], -inf where hidden."""
    groups = k.shape[1]
    scores = _by_group(q, groups) @ _by_group(k, groups).transpose(-1, -2) * scale
    return scores if hidden is None else scores.masked_fill(hidden, -torch.inf)
