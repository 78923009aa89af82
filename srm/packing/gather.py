"""One index-gather of keys and values: the prompt's rows before each of its responses', so that ordinary varlen attention does the rest.

Shape letters: `T` tokens, `K` gathered rows, `S` segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["KeyRows", "gather_rows", "key_rows"]


@dataclass(frozen=True, kw_only=True)
class KeyRows:
    """Which rows each segment's keys are, on one device.

    Args:
        cu_queries: int32 [S + 1], the segments' offsets into the tokens.
        cu_keys: int32 [S + 1], their offsets into the gathered rows.
        index: int64 [K], the token of each gathered row; None where no segment has a parent, and the tokens serve as they are.
        order: int64 [K], the gathered rows sorted by token, earlier rows first; None where `index` is.
        copies: int64 [T], how many rows each token has; None where `index` is.
    """

    cu_queries: Tensor
    cu_keys: Tensor
    index: Tensor | None
    order: Tensor | None
    copies: Tensor | None


def key_rows(lengths: Tensor, parents: Tensor, *, num_tokens: int, num_keys: int, has_parents: bool) -> KeyRows:
    """Where each segment's keys are, its parent's before its own, worked out without waiting for the device.

    Args:
        lengths: int64 [S], tokens of each segment.
        parents: int64 [S], the segment whose keys come first; -1 for none.
        num_tokens: T, the sum of the lengths.
        num_keys: K, the sum over segments of their own length and their parent's.
        has_parents: whether any segment has one.

    Returns:
        The rows, on the device of `lengths`.
    """
    cu_queries = _offsets(lengths)
    if not has_parents:
        cu = cu_queries.int()
        return KeyRows(cu_queries=cu, cu_keys=cu, index=None, order=None, copies=None)
    first = parents.clamp_min(0)
    prefix = torch.where(parents < 0, 0, lengths[first])
    cu_keys = _offsets(prefix + lengths)
    # output_size, or torch would ask the device how many there are.
    segment = torch.repeat_interleave(prefix + lengths, output_size=num_keys)
    offset = torch.arange(num_keys, device=lengths.device) - cu_keys[segment]
    own = offset - prefix[segment]
    index = torch.where(own < 0, cu_queries[first[segment]] + offset, cu_queries[segment] + own)
    children = torch.zeros_like(lengths).scatter_add_(0, first, (parents >= 0).long())
    return KeyRows(
        cu_queries=cu_queries.int(),
        cu_keys=cu_keys.int(),
        index=index,
        order=index.argsort(stable=True),
        copies=torch.repeat_interleave(children + 1, lengths, output_size=num_tokens),
    )


def gather_rows(rows: Tensor, key_rows: KeyRows) -> Tensor:
    """Keys or values, once for each segment that sees them. The gradient sums a token's copies in float32, in one order every time.

    Args:
        rows: [T, ...].
        key_rows: which of them each segment sees.

    Returns:
        [K, ...] in the dtype of `rows`; `rows` itself where no segment has a parent.
    """
    return rows if key_rows.index is None else _Gather.apply(rows, key_rows)


class _Gather(torch.autograd.Function):
    """index_select's own backward adds with atomics, in the dtype of the gradient: rounded once a response, and in any order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, key_rows: KeyRows) -> Tensor:
        assert key_rows.index is not None
        ctx.key_rows = key_rows
        return rows.index_select(0, key_rows.index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows: KeyRows = ctx.key_rows
        assert rows.order is not None
        assert rows.copies is not None
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        # unsafe: without it torch would wait for the device to check that the lengths add up.
        total = torch.segment_reduce(wide.index_select(0, rows.order), "sum", lengths=rows.copies, axis=0, unsafe=True)
        return total.to(gradient.dtype), None


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
