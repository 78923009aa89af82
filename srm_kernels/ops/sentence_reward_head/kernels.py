"""What stands around the head's products on tensor cores, in Triton: bf16 operands before them, sums of terms behind them.

Shape letters: `T` tokens, `N` boundaries, `B` responses, `D` hidden, `A` attention width, `E` = D + 1 in eights.

An fp32 number is the sum of three bf16 ones, its terms, the largest first: each takes the next eight bits. A product of bf16 rows with
fp32 weights is then three products of bf16 matrices, exact but for their sums, which are fp32. Column D of the rows is 1 and that of the
weights is the bias, so that products add biases and yield their gradients. Terms lie side by side, so that few products do: see `Columns`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import aligned, blocks_of, device_of, num_warps, upper_bound
from ..gather_boundaries.kernels import begins_aligned, rows_contiguous

__all__ = ["Columns", "operands", "outputs_of_terms", "split_gradients", "weight_gradients_of_terms"]

BLOCK = 512
OUTPUTS_TILE = {"BLOCK_A": BLOCK, "ROWS": 4}


class Columns(NamedTuple):
    """Where terms lie. `A` is 0 without attention.

    Keys and the value have `P` columns, A + 1 in eights, and queries `Q`, A in eights: products of odd widths are slow. Of the weights
    [4 P + 4 Q, E] the first 3 P rows are keys' and value's third, second and first terms, and the last 3 Q the queries' first, second and
    third. From P on lie the 3 P + 3 Q rows that the gradient of the rows is multiplied with: keys' second, first and first terms, and the
    queries' first, first and second. That gradient is rounded to bf16, so three products of the nine are exact enough.
    """

    A: int
    P: int
    Q: int

    @classmethod
    def of(cls, width: int) -> Columns:
        """Of the attention width."""
        return cls(width, in_eights(width + 1), in_eights(width))


def in_eights(size: int) -> int:
    """The next multiple of 8."""
    return (size + 7) // 8 * 8


@triton.jit
def leading(x):
    """The largest part of fp32 `x` that bf16 holds, by cutting off bits: rounding could overflow."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def split(x):
    """Three fp32 numbers that bf16 holds and that sum to `x`."""
    first = leading(x)
    rest = tl.where(tl.abs(x) < float("inf"), x - first, 0.0)  # inf - inf would be NaN.
    second = leading(rest)
    return first, second, rest - second


@triton.jit(do_not_specialize=["num", "num_responses"])
def operands_kernel(
    hidden_ptr,
    boundaries_ptr,
    cu_boundaries_ptr,
    value_weight_ptr,
    value_bias_ptr,
    query_weight_ptr,
    query_bias_ptr,
    key_weight_ptr,
    key_bias_ptr,
    row_ptr,
    term_ptr,
    num,
    num_responses,
    stride,
    D: tl.constexpr,
    E: tl.constexpr,
    A: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr,
):
    """row [N + B, E]: the boundaries' rows and those of the last boundaries; term [4 P + 4 Q, E]: the weights'."""
    pid = tl.program_id(0).to(tl.int64)
    column_blocks: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    column = pid % column_blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    block = pid // column_blocks
    row_blocks = (num + num_responses + ROWS - 1) // ROWS
    if block < row_blocks:
        row = block * ROWS + tl.arange(0, ROWS)
        is_last = (row >= num) & (row < num + num_responses)
        end = tl.load(cu_boundaries_ptr + (row - num + 1), mask=is_last, other=0).to(tl.int64)
        n = tl.where(row < num, row, tl.maximum(end - 1, 0))
        inside = (row < num + num_responses) & (n < num)
        position = tl.load(boundaries_ptr + n, mask=inside, other=0).to(tl.int64)
        x = tl.load(hidden_ptr + (position[:, None] * stride + column[None, :]), mask=inside[:, None] & (column < D)[None, :], other=0)
        x = tl.where((column == D)[None, :], 1.0, x.to(tl.float32))
        tl.store(row_ptr + (row[:, None] * E + column[None, :]), x, mask=(row < num + num_responses)[:, None] & (column < E)[None, :])
    else:
        r = (block - row_blocks) * ROWS + tl.arange(0, ROWS)
        weight = load_affine(value_weight_ptr, value_bias_ptr, r - A, column, r == A, D)
        if A > 0:
            weight += load_affine(key_weight_ptr, key_bias_ptr, r, column, r < A, D)
            weight += load_affine(query_weight_ptr, query_bias_ptr, r - P, column, (r >= P) & (r < P + A), D)
        first, second, third = split(weight)
        of_query = r >= P
        s = r - P
        mask = (r < P + Q)[:, None] & (column < E)[None, :]
        term = term_ptr + column[None, :]
        tl.store(term + tl.where(of_query, 4 * P + 3 * Q + s, r)[:, None] * E, third, mask=mask)
        tl.store(term + tl.where(of_query, 4 * P + 2 * Q + s, P + r)[:, None] * E, second, mask=mask)
        tl.store(term + tl.where(of_query, 4 * P + s, 2 * P + r)[:, None] * E, first, mask=mask)
        tl.store(term + tl.where(of_query, 4 * P + Q + s, 3 * P + r)[:, None] * E, first, mask=mask)


@triton.jit
def load_affine(weight_ptr, bias_ptr, r, column, mine, D: tl.constexpr):
    """Rows `r` of the weights, with their bias in column D, in fp32; 0 where they are not `mine`."""
    weight = tl.load(weight_ptr + (r[:, None] * D + column[None, :]), mask=mine[:, None] & (column < D)[None, :], other=0)
    bias = tl.load(bias_ptr + r, mask=mine, other=0)
    return tl.where((column == D)[None, :], bias.to(tl.float32)[:, None], weight.to(tl.float32))


@triton.jit(do_not_specialize=["num", "num_responses"])
def outputs_kernel(
    of_rows_ptr,
    of_last_ptr,
    value_ptr,
    query_ptr,
    key_ptr,
    num,
    num_responses,
    A: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_A: tl.constexpr,
    ROWS: tl.constexpr,
):
    """value [N] and key [N, A] from of_rows [N, 3 P], query [B, A] from of_last [B, 3 Q]: the sums of their terms."""
    pid = tl.program_id(0).to(tl.int64)
    column_blocks: tl.constexpr = (A + BLOCK_A) // BLOCK_A
    column = pid % column_blocks * BLOCK_A + tl.arange(0, BLOCK_A)
    row = pid // column_blocks * ROWS + tl.arange(0, ROWS)
    total = sum_of_terms(of_rows_ptr, row * (3 * P), (row < num)[:, None] & (column < P)[None, :], column, P)
    tl.store(value_ptr + row[:, None] + 0 * column[None, :], total, mask=(row < num)[:, None] & (column == A)[None, :])
    if A > 0:
        tl.store(key_ptr + (row[:, None] * A + column[None, :]), total, mask=(row < num)[:, None] & (column < A)[None, :])
        response = row - num
        is_response = (response >= 0) & (response < num_responses)
        total = sum_of_terms(of_last_ptr, response * (3 * Q), is_response[:, None] & (column < Q)[None, :], column, Q)
        tl.store(query_ptr + (response[:, None] * A + column[None, :]), total, mask=is_response[:, None] & (column < A)[None, :])


@triton.jit
def sum_of_terms(ptr, start, mask, column, SPACE: tl.constexpr):
    """The three products of each output, `SPACE` columns apart."""
    index = start[:, None] + column[None, :]
    total = tl.load(ptr + index, mask=mask, other=0)
    total += tl.load(ptr + (index + SPACE), mask=mask, other=0)
    return total + tl.load(ptr + (index + 2 * SPACE), mask=mask, other=0)


@triton.jit(do_not_specialize=["num", "num_responses"])
def split_gradients_kernel(
    grad_value_ptr,
    flowing_value_ptr,
    grad_query_ptr,
    grad_key_ptr,
    positions_ptr,
    indices_ptr,
    cu_boundaries_ptr,
    for_rows_ptr,
    for_weights_ptr,
    num,
    num_responses,
    A: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    """The terms of the products' gradients, for_rows [N, 3 P + 3 Q] and for_weights [N, 3 P + 3 Q].

    Boundaries at one token, as siblings have, have the same row, so they get one gradient: their sum stands at the first of them, and 0 at
    the others. It nearly cancels, so it is taken before the product rounds.
    """
    pid = tl.program_id(0).to(tl.int64)
    column_blocks: tl.constexpr = (P + Q + BLOCK_A - 1) // BLOCK_A
    column = pid % column_blocks * BLOCK_A + tl.arange(0, BLOCK_A)
    j = pid // column_blocks
    token = tl.load(positions_ptr + j)
    owner = tl.load(indices_ptr + j).to(tl.int64)
    total = tl.zeros((BLOCK_A,), tl.float32)
    # Where the one before is at the same token, it has the sum.
    following = tl.where(tl.load(positions_ptr + (j - 1), mask=j > 0, other=-1) == token, token - 1, token)
    while following == token:
        n = tl.load(indices_ptr + j).to(tl.int64)
        value = tl.load(grad_value_ptr + n)
        if flowing_value_ptr is not None:
            value += tl.load(flowing_value_ptr + n)
        total += tl.where(column == A, value, 0.0)
        if A > 0:
            total += tl.load(grad_key_ptr + (n * A + column), mask=column < A, other=0)
            response = upper_bound(cu_boundaries_ptr, n + tl.zeros((1,), tl.int64), num_responses * 0, num_responses + 1).to(tl.int64) - 1
            is_last = tl.load(cu_boundaries_ptr + (response + 1)).to(tl.int64) == n + 1
            of_query = is_last & (column >= P) & (column < P + A)
            total += tl.load(grad_query_ptr + (response * A + column - P), mask=of_query, other=0)
        j += 1
        following = tl.load(positions_ptr + j, mask=j < num, other=-1)
    first, second, third = split(total)
    mask = column < P + Q
    of_query = column >= P
    start = owner * (3 * P + 3 * Q)
    if for_rows_ptr is not None:
        tl.store(for_rows_ptr + (start + tl.where(of_query, 2 * P + column, column)), first, mask=mask)
        tl.store(for_rows_ptr + (start + tl.where(of_query, 2 * P + 2 * Q + column, P + column)), first, mask=mask)
        tl.store(for_rows_ptr + (start + tl.where(of_query, 2 * P + Q + column, 2 * P + column)), second, mask=mask)
    if for_weights_ptr is not None:
        tl.store(for_weights_ptr + (start + column), first, mask=mask)
        tl.store(for_weights_ptr + (start + (P + Q) + column), second, mask=mask)
        tl.store(for_weights_ptr + (start + 2 * (P + Q) + column), third, mask=mask)


@triton.jit
def weight_gradients_kernel(
    term_ptr,
    value_weight_ptr,
    value_bias_ptr,
    query_weight_ptr,
    query_bias_ptr,
    key_weight_ptr,
    key_bias_ptr,
    D: tl.constexpr,
    E: tl.constexpr,
    A: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The gradients of the weights and biases from their terms [3 P + 3 Q, E]."""
    pid = tl.program_id(0).to(tl.int64)
    column_blocks: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    column = pid % column_blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    r = pid // column_blocks * ROWS + tl.arange(0, ROWS)
    total = sum_of_terms(term_ptr, r * E, (r < P + Q)[:, None] & (column < E)[None, :], column, (P + Q) * E)
    store_affine(value_weight_ptr, value_bias_ptr, r - A, column, r == A, total, D)
    if A > 0:
        store_affine(key_weight_ptr, key_bias_ptr, r, column, r < A, total, D)
        store_affine(query_weight_ptr, query_bias_ptr, r - P, column, (r >= P) & (r < P + A), total, D)


@triton.jit
def store_affine(weight_ptr, bias_ptr, r, column, mine, x, D: tl.constexpr):
    """The transpose of `load_affine`."""
    tl.store(weight_ptr + (r[:, None] * D + column[None, :]), x, mask=mine[:, None] & (column < D)[None, :])
    tl.store(bias_ptr + r[:, None] + 0 * column[None, :], x, mask=mine[:, None] & (column == D)[None, :])


def operands(
    hidden: Tensor, boundaries: Tensor, cu_boundaries: Tensor, weights: tuple[Tensor | None, ...], c: Columns
) -> tuple[Tensor, Tensor]:
    """Rows [N + B, E], [N, E] without attention, and terms of the weights [4 P + 4 Q, E], all bf16."""
    num, num_responses, width = boundaries.numel(), (cu_boundaries.numel() - 1 if c.A else 0), hidden.shape[1]
    hidden = rows_contiguous(hidden)
    row = torch.empty(num + num_responses, in_eights(width + 1), dtype=torch.bfloat16, device=hidden.device)
    term = torch.empty(4 * (c.P + c.Q), row.shape[1], dtype=torch.bfloat16, device=hidden.device)
    config = tile_config(width, begins_aligned(hidden))
    blocks = blocks_of(row.shape[0], config["ROWS"]) + blocks_of(c.P + c.Q, config["ROWS"])
    with device_of(hidden):
        operands_kernel[(blocks * blocks_of(row.shape[1], BLOCK),)](
            hidden,
            aligned(boundaries),
            aligned(cu_boundaries),
            *(None if x is None else aligned(x) for x in weights),
            row,
            term,
            num,
            num_responses,
            hidden.stride(0),
            **config,
            **c._asdict(),
            num_warps=num_warps(),
        )
    return row, term


def outputs_of_terms(of_rows: Tensor, of_last: Tensor | None, c: Columns) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """value [N], query [B, A] and key [N, A] from the terms of the products of rows and of last rows."""
    num, num_responses = of_rows.shape[0], (0 if of_last is None else of_last.shape[0])

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=of_rows.device)

    value, query, key = empty(num), (empty(num_responses, c.A) if c.A else None), (empty(num, c.A) if c.A else None)
    config = OUTPUTS_TILE
    if num + num_responses:
        with device_of(value):
            outputs_kernel[(blocks_of(num + num_responses, config["ROWS"]) * blocks_of(c.A + 1, BLOCK),)](
                of_rows, of_last, value, query, key, num, num_responses, **c._asdict(), **config, num_warps=num_warps()
            )
    return value, query, key


def split_gradients(
    grad_value: Tensor,
    flowing_value: Tensor | None,
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    order: tuple[Tensor, Tensor],
    cu_boundaries: Tensor,
    c: Columns,
    *,
    for_rows: bool,
    for_weights: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """What the gradients of rows and of weights are products of, [N, 3 P + 3 Q] each; None where it is not asked for."""
    num, num_responses = grad_value.numel(), cu_boundaries.numel() - 1
    outputs = [
        torch.empty(num, 3 * (c.P + c.Q), dtype=torch.bfloat16, device=grad_value.device) if wanted else None
        for wanted in (for_rows, for_weights)
    ]
    if num:
        with device_of(grad_value):
            split_gradients_kernel[(num * blocks_of(c.P + c.Q, BLOCK),)](
                *(None if x is None else aligned(x) for x in (grad_value, flowing_value, grad_query, grad_key, *order, cu_boundaries)),
                *outputs,
                num,
                num_responses,
                **c._asdict(),
                BLOCK_A=BLOCK,
                num_warps=num_warps(),
            )
    return outputs[0], outputs[1]


def weight_gradients_of_terms(term: Tensor, weights: tuple[Tensor | None, ...], width: int, c: Columns) -> list[Tensor | None]:
    """Like `weights`, from their terms [3 P + 3 Q, E]; `width` is D."""
    grads = [None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format) for x in weights]
    config = tile_config(width, True)
    with device_of(term):
        weight_gradients_kernel[(blocks_of(c.P + c.Q, config["ROWS"]) * blocks_of(term.shape[1], BLOCK),)](
            term, *grads, **config, **c._asdict(), num_warps=num_warps()
        )
    return grads


def tile_config(width: int, is_aligned: bool) -> dict[str, Any]:
    """Tiles of 4 by 512; of one row where elements move one by one, because rows or `hidden` itself are not aligned: more would spill."""
    return {"D": width, "E": in_eights(width + 1), "BLOCK_E": BLOCK, "ROWS": 4 if width % 8 == 0 and is_aligned else 1}
