"""gather_boundaries in Triton.

Shape letters: `T` tokens, `N` boundaries, `D` hidden.

Forward, plain: a tile of rows by columns a program. With norm: whole rows a program, twice over the columns, the second time from cache.
Backward: a program owns a tile of the gradient and writes all of it, zeros and sums alike, so that [T, D] is touched once. The boundaries
that point into the tile it finds by a search in the sorted boundaries, and adds their rows in that order: no atomics, always the same bits.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import acc_type, aligned, device_of, first_not_below, num_warps, sort_positions
from ..segments import accumulate_dtype

__all__ = ["gather_boundaries_backward", "gather_boundaries_forward"]

# Boundaries a partial sum of the weight gradient covers. Fixed, so that the order of the sum depends on nothing but N.
WEIGHT_CHUNK = 64


SEARCH_WAYS = 128


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


@triton.jit(do_not_specialize=["num"])
def gather_norm_kernel(
    hidden_ptr,
    boundaries_ptr,
    weight_ptr,
    out_ptr,
    rstd_ptr,
    num,
    stride,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """out [N, D] = RMS-normed rows, rstd [N]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_range = row < num
    position = tl.load(boundaries_ptr + row, mask=in_range, other=0).to(tl.int64)
    square = tl.zeros((ROWS, BLOCK_D), ACC)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D).to(tl.int64)
        mask = in_range[:, None] & (column < D)[None, :]
        x = tl.load(hidden_ptr + (position[:, None] * stride + column[None, :]), mask=mask, other=0).to(ACC)
        square += x * x
    rstd = 1 / tl.sqrt(tl.sum(square, 1) / D + EPS)
    tl.store(rstd_ptr + row, rstd, mask=in_range)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D).to(tl.int64)
        mask = in_range[:, None] & (column < D)[None, :]
        x = tl.load(hidden_ptr + (position[:, None] * stride + column[None, :]), mask=mask, other=0).to(ACC)
        weight = tl.load(weight_ptr + column, mask=column < D, other=0).to(ACC)
        tl.store(out_ptr + (row[:, None] * D + column[None, :]), x * rstd[:, None] * weight[None, :], mask=mask)


@triton.jit
def entry_at(sorted_ptr, j, num, beyond):
    """The sorted boundary at place j, or `beyond` past the end."""
    return tl.where(j < num, tl.load(sorted_ptr + j, mask=j < num, other=0).to(tl.int64), beyond)


@triton.jit(do_not_specialize=["num", "num_tokens"])
def scatter_rows_kernel(
    grad_ptr,
    sorted_ptr,
    order_ptr,
    grad_hidden_ptr,
    num,
    num_tokens,
    ACC: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    WAYS: tl.constexpr,
):
    """grad_hidden [T, D]: the sum of grad [N, D] over the boundaries at each token."""
    pid = tl.program_id(0).to(tl.int64)
    column_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    begin = pid // column_blocks * ROWS
    token = begin + tl.arange(0, ROWS)
    column = pid % column_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((ROWS, BLOCK_D), ACC)
    j = first_not_below(sorted_ptr, num, begin, WAYS)
    entry = entry_at(sorted_ptr, j, num, begin + ROWS)
    while entry < begin + ROWS:
        n = tl.load(order_ptr + j).to(tl.int64)
        grad = tl.load(grad_ptr + (n * D + column), mask=column < D, other=0).to(ACC)
        total += tl.where((token == entry)[:, None], grad[None, :], 0.0)
        j += 1
        entry = entry_at(sorted_ptr, j, num, begin + ROWS)
    mask = (token < num_tokens)[:, None] & (column < D)[None, :]
    tl.store(grad_hidden_ptr + (token[:, None] * D + column[None, :]), total, mask=mask)


@triton.jit(do_not_specialize=["num", "num_tokens"])
def scatter_norm_kernel(
    grad_ptr,
    hidden_ptr,
    weight_ptr,
    rstd_ptr,
    sorted_ptr,
    order_ptr,
    grad_hidden_ptr,
    num,
    num_tokens,
    stride,
    ACC: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    WAYS: tl.constexpr,
):
    """The same through the norm: of a boundary with g = grad · weight and y = x · rstd, the row is rstd · (g - y · mean(g · y))."""
    begin = tl.program_id(0).to(tl.int64) * ROWS
    token = begin + tl.arange(0, ROWS)
    first = first_not_below(sorted_ptr, num, begin, WAYS)
    mean = tl.zeros((ROWS,), ACC)
    j = first
    entry = entry_at(sorted_ptr, j, num, begin + ROWS)
    while entry < begin + ROWS:
        n = tl.load(order_ptr + j).to(tl.int64)
        product = tl.zeros((BLOCK_D,), ACC)
        for start in range(0, D, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D).to(tl.int64)
            grad = tl.load(grad_ptr + (n * D + column), mask=column < D, other=0).to(ACC)
            x = tl.load(hidden_ptr + (entry * stride + column), mask=column < D, other=0).to(ACC)
            product += grad * x * tl.load(weight_ptr + column, mask=column < D, other=0).to(ACC)
        mean += tl.where(token == entry, tl.sum(product, 0) * tl.load(rstd_ptr + n) / D, 0.0)
        j += 1
        entry = entry_at(sorted_ptr, j, num, begin + ROWS)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D).to(tl.int64)
        weight = tl.load(weight_ptr + column, mask=column < D, other=0).to(ACC)
        total = tl.zeros((ROWS, BLOCK_D), ACC)
        j = first
        entry = entry_at(sorted_ptr, j, num, begin + ROWS)
        previous = begin - 1
        while entry < begin + ROWS:
            n = tl.load(order_ptr + j).to(tl.int64)
            rstd = tl.load(rstd_ptr + n)
            grad = tl.load(grad_ptr + (n * D + column), mask=column < D, other=0).to(ACC)
            row = grad * weight * rstd
            if entry != previous:  # `mean` is of all boundaries at this token, which normed the same row: subtract it once.
                x = tl.load(hidden_ptr + (entry * stride + column), mask=column < D, other=0).to(ACC)
                row -= x * rstd * rstd * tl.sum(tl.where(token == entry, mean, 0.0), 0)
            total += tl.where((token == entry)[:, None], row[None, :], 0.0)
            previous = entry
            j += 1
            entry = entry_at(sorted_ptr, j, num, begin + ROWS)
        mask = (token < num_tokens)[:, None] & (column < D)[None, :]
        tl.store(grad_hidden_ptr + (token[:, None] * D + column[None, :]), total, mask=mask)


@triton.jit(do_not_specialize=["num"])
def weight_partial_kernel(
    grad_ptr,
    hidden_ptr,
    boundaries_ptr,
    rstd_ptr,
    partial_ptr,
    num,
    stride,
    ACC: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """partial [chunks, D]: the weight gradient of one chunk of boundaries."""
    pid = tl.program_id(0).to(tl.int64)
    column_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    chunk = pid // column_blocks
    column = pid % column_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((ROWS, BLOCK_D), ACC)
    for start in range(0, CHUNK, ROWS):
        row = chunk * CHUNK + start + tl.arange(0, ROWS)
        position = tl.load(boundaries_ptr + row, mask=row < num, other=0).to(tl.int64)
        rstd = tl.load(rstd_ptr + row, mask=row < num, other=0).to(ACC)
        mask = (row < num)[:, None] & (column < D)[None, :]
        x = tl.load(hidden_ptr + (position[:, None] * stride + column[None, :]), mask=mask, other=0).to(ACC)
        grad = tl.load(grad_ptr + (row[:, None] * D + column[None, :]), mask=mask, other=0).to(ACC)
        total += x * rstd[:, None] * grad  # The other order spilled on sm_100 with fp32 gradients of fp16 rows.
    tl.store(partial_ptr + (chunk * D + column), tl.sum(total, 0), mask=column < D)


@triton.jit(do_not_specialize=["num_chunks"])
def weight_total_kernel(partial_ptr, out_ptr, num_chunks, ACC: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr):
    """out [D] = the sum of partial [chunks, D], in the order of the chunks."""
    column = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((ROWS, BLOCK_D), ACC)
    start = 0
    while start < num_chunks:
        chunk = start + tl.arange(0, ROWS).to(tl.int64)
        mask = (chunk < num_chunks)[:, None] & (column < D)[None, :]
        total += tl.load(partial_ptr + (chunk[:, None] * D + column[None, :]), mask=mask, other=0)
        start += ROWS
    tl.store(out_ptr + column, tl.sum(total, 0), mask=column < D)


def gather_boundaries_forward(
    hidden: Tensor, boundaries: Tensor, norm_weight: Tensor | None, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rows [N, D] and, with norm, their rstd [N]."""
    hidden, boundaries = _rows_contiguous(hidden), aligned(boundaries)
    num, width, dtype = boundaries.numel(), hidden.shape[1], accumulate_dtype(hidden, norm_weight)
    out = torch.empty(num, width, dtype=out_dtype, device=hidden.device)
    rstd = torch.empty(0 if norm_weight is None else num, dtype=dtype, device=hidden.device)
    if out.numel() == 0:
        return out, rstd
    config = tile_config(width, dtype.itemsize, _is_aligned(hidden))
    row_blocks, column_blocks = triton.cdiv(num, config["ROWS"]), triton.cdiv(width, config["BLOCK_D"])
    warps = num_warps()
    with device_of(hidden):
        if norm_weight is None:
            gather_rows_kernel[(row_blocks * column_blocks,)](hidden, boundaries, out, num, hidden.stride(0), **config, num_warps=warps)
        else:
            arguments = (hidden, boundaries, aligned(norm_weight), out, rstd, num, hidden.stride(0))
            gather_norm_kernel[(row_blocks,)](*arguments, EPS=eps, ACC=acc_type(dtype), **config, num_warps=warps)
    return out, rstd


def gather_boundaries_backward(
    grad: Tensor,
    hidden: Tensor,
    boundaries: Tensor,
    norm_weight: Tensor | None,
    rstd: Tensor,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `hidden` [T, D] and `norm_weight` [D]."""
    grad, boundaries, hidden = aligned(grad), aligned(boundaries), _rows_contiguous(hidden)
    grad_hidden = _hidden_gradient(grad, hidden, boundaries, norm_weight, rstd) if need_hidden else None
    if norm_weight is None or not need_weight:
        return grad_hidden, None
    return grad_hidden, _weight_gradient(grad, hidden, boundaries, norm_weight, rstd)


def _hidden_gradient(grad: Tensor, hidden: Tensor, boundaries: Tensor, norm_weight: Tensor | None, rstd: Tensor) -> Tensor:
    num_tokens, width = hidden.shape
    num, dtype = boundaries.numel(), accumulate_dtype(hidden, norm_weight, grad)
    grad_hidden = torch.empty(num_tokens, width, dtype=hidden.dtype, device=hidden.device)
    if grad_hidden.numel() == 0:
        return grad_hidden
    positions, order = sort_positions(boundaries, num_tokens)
    tile = tile_config(width, dtype.itemsize, norm_weight is None or _is_aligned(hidden))  # Without norm it is not read.
    config = tile | {"ACC": acc_type(dtype), "WAYS": SEARCH_WAYS, "num_warps": num_warps()}
    row_blocks, column_blocks = triton.cdiv(num_tokens, config["ROWS"]), triton.cdiv(width, config["BLOCK_D"])
    with device_of(hidden):
        if norm_weight is None:
            scatter_rows_kernel[(row_blocks * column_blocks,)](grad, positions, order, grad_hidden, num, num_tokens, **config)
        else:
            rows = (grad, hidden, aligned(norm_weight), rstd, positions, order, grad_hidden)
            scatter_norm_kernel[(row_blocks,)](*rows, num, num_tokens, hidden.stride(0), **config)
    return grad_hidden


def _weight_gradient(grad: Tensor, hidden: Tensor, boundaries: Tensor, norm_weight: Tensor, rstd: Tensor) -> Tensor:
    num, width = grad.shape
    dtype = accumulate_dtype(hidden, norm_weight, grad)
    out = torch.empty(width, dtype=norm_weight.dtype, device=hidden.device)
    if width == 0:
        return out
    num_chunks = triton.cdiv(num, WEIGHT_CHUNK)
    partial = torch.empty(num_chunks, width, dtype=dtype, device=hidden.device)
    shared = {"ACC": acc_type(dtype), "num_warps": num_warps()}
    config = tile_config(width, dtype.itemsize)
    column_blocks = triton.cdiv(width, config["BLOCK_D"])
    with device_of(hidden):
        if num_chunks:
            rows = (grad, hidden, boundaries, rstd, partial, num, hidden.stride(0))
            tile = tile_config(width, dtype.itemsize, _is_aligned(hidden))
            weight_partial_kernel[(num_chunks * column_blocks,)](*rows, CHUNK=WEIGHT_CHUNK, **tile, **shared)
        weight_total_kernel[(column_blocks,)](partial, out, num_chunks, **config, **shared)
    return out


def _rows_contiguous(x: Tensor) -> Tensor:
    """Rows may lie apart, columns may not."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _is_aligned(hidden: Tensor) -> bool:
    """Whether it begins at a multiple of 16 bytes. It is read where it lies even if not: a copy would move all T rows for the sake of N."""
    return hidden.data_ptr() % 16 == 0
