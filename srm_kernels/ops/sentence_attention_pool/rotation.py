"""Rotations of the pool's tiles, in Triton: cosines and sines of angles, and the pairs that they turn.

Shape letters: `A` attention width, `J` = rotary pairs, `n` boundaries of a tile.

An angle is reduced in fp64: in fp32 that of sentence 3,000 would be off by 1e-4. Few fp64 operations a pair are free even where fp64 is
slow. From a tile to the next one all angles change by the same step, so that three tiles of four take a product in place of sines.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

import math

import triton
import triton.language as tl

__all__ = ["rotation_before_first", "rotation_of_next", "turned"]

HALF_PI: tl.constexpr = tl.constexpr(math.pi / 2)


@triton.jit
def rotation(distance, ACC: tl.constexpr, A: tl.constexpr, BLOCK_J: tl.constexpr, LOG2_THETA: tl.constexpr, TERMS: tl.constexpr):
    """cos and sin [n, J] of the angle distance [n] · θ^(-2j/A)."""
    j = tl.arange(0, BLOCK_J).to(tl.float64)
    quarters_J = tl.exp2(j * (-2.0 / A) * LOG2_THETA) / HALF_PI
    quarters = distance.to(tl.float64)[:, None] * quarters_J[None, :]
    nearest = tl.floor(quarters + 0.5)
    x = ((quarters - nearest) * HALF_PI).to(ACC)
    quadrant = (nearest.to(tl.int64) & 3).to(tl.int32)  # Before the series, so that few registers wait behind it.
    # Taylor series in [-π/4, π/4]. The library's sin and cos carry a slow path for huge arguments, which spills registers.
    square = x * x
    sin = tl.zeros_like(x) + 1.0
    cos = tl.zeros_like(x) + 1.0
    for i in tl.static_range(TERMS):
        # Spelt out, not named: the interpreter makes a named number an fp32 tensor.
        sin = 1.0 - square * (1.0 / (2 * (TERMS - i) * (2 * (TERMS - i) + 1))) * sin
        cos = 1.0 - square * (1.0 / (2 * (TERMS - i) * (2 * (TERMS - i) - 1))) * cos
    sin *= x
    odd = (quadrant & 1) == 1
    rotated_cos = tl.where(odd, sin, cos)
    rotated_sin = tl.where(odd, cos, sin)
    rotated_cos = tl.where((quadrant == 1) | (quadrant == 2), -rotated_cos, rotated_cos)
    return rotated_cos, tl.where(quadrant >= 2, -rotated_sin, rotated_sin)


@triton.jit
def rotation_before_first(
    ACC: tl.constexpr, A: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr, LOG2_THETA: tl.constexpr, TERMS: tl.constexpr
):
    """cos and sin [n, J] that stand for a tile before the first one, and [1, J] of the step from a tile to the next."""
    nothing = tl.zeros((BLOCK_N, BLOCK_J), ACC)
    step_cos, step_sin = rotation(tl.full((1,), BLOCK_N, tl.int32), ACC, A, BLOCK_J, LOG2_THETA, TERMS)
    return nothing, nothing, step_cos, step_sin


@triton.jit
def rotation_of_next(
    tile,
    distance,
    cos,
    sin,
    step_cos,
    step_sin,
    ACC: tl.constexpr,
    A: tl.constexpr,
    BLOCK_J: tl.constexpr,
    LOG2_THETA: tl.constexpr,
    TERMS: tl.constexpr,
    ANCHOR: tl.constexpr,
):
    """cos and sin [n, J] of a tile, from those of the one before: a step adds less than a rounding or two. Every `ANCHOR` tiles anew."""
    if tile % ANCHOR == 0:
        cos, sin = rotation(distance, ACC, A, BLOCK_J, LOG2_THETA, TERMS)
    else:
        cos, sin = cos * step_cos + sin * step_sin, sin * step_cos - cos * step_sin
    return cos, sin


@triton.jit
def turned(x, cos, sin, BLOCK_A: tl.constexpr):
    """Rotates the pairs (2j, 2j + 1) of x [n, A]."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], BLOCK_A // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (cos.shape[0], BLOCK_A))
