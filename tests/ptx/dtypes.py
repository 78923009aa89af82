"""PTX's types as numpy's, and the roundings that numpy has not (PTX ISA, "Fundamental Types", "Alternate Floating-Point Data Formats")."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RAW", "Array", "bf16_to_f32", "dtype_of", "f32_to_bf16", "f32_to_f16", "fma_f32", "fma_f64"]

Array = NDArray[Any]

RAW = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}
"""Unsigned integers by their size in bytes: what a register holds."""

LETTERS = {"b": "u", "u": "u", "s": "i", "f": "f"}


def dtype_of(kind: str) -> np.dtype[Any]:
    """numpy's name of `f32`, `s64`, `pred`; of 16-bit floats their bits, because registers hold bits."""
    if kind == "pred":
        return np.dtype(bool)
    if kind in ("f16", "bf16"):
        return RAW[2]
    return np.dtype(f"{LETTERS[kind[0]]}{int(kind[1:]) // 8}")


def bf16_to_f32(bits: Array) -> Array:
    """Exact: a bf16 number is the upper half of an fp32 number."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x: Array) -> Array:
    """Bits of the nearest bf16 number, ties to even; every NaN becomes the canonical one, 0x7FFF."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))


def f32_to_f16(x: Array) -> Array:
    """Bits of the nearest fp16 number, ties to even; every NaN becomes the canonical one, 0x7FFF."""
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def fma_f32(x: Array, y: Array, z: Array) -> Array:
    """x·y + z with one rounding: the product is exact in fp64, and a sum rounded to odd there rounds to fp32 as the exact one would."""
    return _odd_sum(x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)).astype(np.float32)


def fma_f64(x: Array, y: Array, z: Array) -> Array:
    """x·y + z with one rounding, for products within fp64's range (Boldo and Melquiond, "Emulation of a FMA ...", 2008)."""
    high, low = _two_product(x, y)
    sum_low, sum_low_error = _two_sum(z, low)
    sum_high, sum_high_error = _two_sum(high, sum_low)
    exact = sum_high + _odd_sum(sum_low_error, sum_high_error)
    plain = x * y + z
    return np.where(np.isfinite(plain) & np.isfinite(exact), exact, plain)


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    """The rounded sum, and what the rounding took away (Knuth)."""
    total = x + y
    other = total - x
    return total, (x - (total - other)) + (y - other)


def _two_product(x: Array, y: Array) -> tuple[Array, Array]:
    """The rounded product, and what the rounding took away (Dekker, with Veltkamp's halves)."""

    def halves(a: Array) -> tuple[Array, Array]:
        wide = a * 134217729.0  # 2^27 + 1
        high = wide - (wide - a)
        return high, a - high

    product = x * y
    (x_high, x_low), (y_high, y_low) = halves(x), halves(y)
    return product, ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low


def _odd_sum(x: Array, y: Array) -> Array:
    """x + y rounded to odd: of the two neighbours of an inexact sum, the one whose last bit is set."""
    total, error = _two_sum(x, y)
    even = (total.view(np.uint64) & np.uint64(1)) == 0
    inexact = even & (error != 0) & np.isfinite(total)
    return np.where(inexact, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
