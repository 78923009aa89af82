"""gather_boundaries in Triton.

Shape letters: `T` tokens, `N` boundaries, `D` hidden.

Forward: a tile of rows by columns a program.
Backward: a program owns some rows of the gradient and writes all of them, zeros and sums alike, so that [T, D] is touched once. The
boundaries that point there it finds by one search in the sorted boundaries, and adds their rows in that order: no atomics, always the
same bits.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import WAYS_LOG2, acc_type, aligned, blocks_of, device_of, first_not_below, num_warps, search_shift, sort_positions
from ..segments import accumulate_dtype

__all__ = ["gather_boundaries_backward", "gather_boundaries_forward"]


def tile_config(width: int, itemsize: int, is_aligned: bool = True) -> dict[str, Any]:
    """Tiles of 4 by 1,024 (512 where `itemsize`, of the accumulator, is 8): at least 16 bytes a thread and row.

    Fewer rows where elements move one by one, because rows or `hidden` itself are not aligned (1) or fp64 (2): more would spill.
    """
    rows = (2 if itemsize == 8 else 4 if width % 8 == 0 else 1) if is_aligned else 1
    return {"D": width, "BLOCK_D": 1024 if itemsize < 8 else 512, "ROWS": rows}


@triton.jit(do_not_specialize=["num"])
def gather_rows_kernel(hidden_ptr, boundaries_ptr, out_ptr, num, stride, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr):
    """out [N, D] = hidden [T, D] at boundaries [N]."""
    pid = tl.program_id(0).to(tl.int64)
    column_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = pid // column_blocks * ROWS + tl.arange(0, ROWS)
    column = pid % column_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    position = tl.load(boundaries_ptr + row, mask=row < num, other=0).to(tl.int64)
    mask = (row < num)[:, None] & (column < D)[None, :]
    x = tl.load(hidden_ptr + (position[:, None] * stride + column[None, :]), mask=mask)
    tl.store(out_ptr + (row[:, None] * D + column[None, :]), x, mask=mask)


@triton.jit
def entry_at(sorted_ptr, j, num, beyond):
    """The sorted boundary at place j, or `beyond` past the end."""
    return tl.where(j < num, tl.load(sorted_ptr + j, mask=j < num, other=0).to(tl.int64), beyond)


@triton.jit(do_not_specialize=["num", "num_tokens", "shift"])
def scatter_rows_kernel(
    grad_ptr,
    sorted_ptr,
    order_ptr,
    grad_hidden_ptr,
    num,
    num_tokens,
    shift,
    ACC: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    WAYS_LOG2: tl.constexpr,
):
    """grad_hidden [T, D]: the sum of grad [N, D] over the boundaries at each token."""
    begin = tl.program_id(0).to(tl.int64) * ROWS
    token = begin + tl.arange(0, ROWS)
    first = first_not_below(sorted_ptr, num, begin, shift, WAYS_LOG2).to(tl.int64)
    first_entry = entry_at(sorted_ptr, first, num, begin + ROWS)
    out = grad_hidden_ptr + token[:, None] * D
    if first_entry >= begin + ROWS:  # No boundary is here, as in most tiles.
        for start in range(0, D, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D).to(tl.int64)
            mask = (token < num_tokens)[:, None] & (column < D)[None, :]
            tl.store(out + column[None, :], tl.zeros((ROWS, BLOCK_D), grad_hidden_ptr.dtype.element_ty), mask=mask)
    else:
        for start in range(0, D, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D).to(tl.int64)
            total = tl.zeros((ROWS, BLOCK_D), ACC)
            j = first
            entry = first_entry
            while entry < begin + ROWS:
                n = tl.load(order_ptr + j).to(tl.int64)
                grad = tl.load(grad_ptr + (n * D + column), mask=column < D, other=0).to(ACC)
                total += tl.where((token == entry)[:, None], grad[None, :], 0.0)
                j += 1
                entry = entry_at(sorted_ptr, j, num, begin + ROWS)
            mask = (token < num_tokens)[:, None] & (column < D)[None, :]
            tl.store(out + column[None, :], total, mask=mask)


def gather_boundaries_forward(hidden: Tensor, boundaries: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Rows [N, D]."""
    hidden, boundaries = rows_contiguous(hidden), aligned(boundaries)
    num, width = boundaries.numel(), hidden.shape[1]
    out = torch.empty(num, width, dtype=out_dtype, device=hidden.device)
    if out.numel():
        config = tile_config(width, accumulate_dtype(hidden.dtype).itemsize, begins_aligned(hidden))
        row_blocks, column_blocks = blocks_of(num, config["ROWS"]), blocks_of(width, config["BLOCK_D"])
        with device_of(hidden):
            gather_rows_kernel[(row_blocks * column_blocks,)](
                hidden, boundaries, out, num, hidden.stride(0), **config, num_warps=num_warps()
            )
    return out


def gather_boundaries_backward(
    grad: Tensor, boundaries: Tensor, num_tokens: int, dtype: torch.dtype, order: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Gradient of `hidden` [T, D] in `dtype`, its own. `order`: sorted positions and their indices, where somebody has them."""
    num, width = grad.shape
    grad_hidden = torch.empty(num_tokens, width, dtype=dtype, device=grad.device)
    if grad_hidden.numel():
        acc = accumulate_dtype(grad.dtype, dtype)
        config = tile_config(width, acc.itemsize)
        positions, indices = order or sort_positions(aligned(boundaries), num_tokens)
        with device_of(grad):
            scatter_rows_kernel[(blocks_of(num_tokens, config["ROWS"]),)](
                aligned(grad),
                aligned(positions),
                aligned(indices),
                grad_hidden,
                num,
                num_tokens,
                search_shift(num),
                ACC=acc_type(acc),
                **config,
                WAYS_LOG2=WAYS_LOG2,
                num_warps=num_warps(),
            )
    return grad_hidden


def rows_contiguous(x: Tensor) -> Tensor:
    """Rows may lie apart, columns may not."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def begins_aligned(hidden: Tensor) -> bool:
    """Whether it begins at a multiple of 16 bytes. It is read where it lies even if not: a copy would move all T rows for the sake of N."""
    return hidden.data_ptr() % 16 == 0
