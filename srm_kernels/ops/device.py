"""What the Triton kernels share. Imported by `kernels.py` files only, so never without triton.

Offsets are int64 everywhere: program ids and lengths are widened before any multiplication.
Loops whose length is known at run time only are `while` loops: Triton 3.6's interpreter cannot take a `range` over them with numpy 2.4.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

import contextlib
import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "NUM_THREADS",
    "WAYS_LOG2",
    "acc_type",
    "aligned",
    "blocks_of",
    "device_of",
    "first_not_below",
    "joined",
    "num_warps",
    "places_between",
    "search_shift",
    "segment_of_each",
    "sort_positions",
    "split_float",
    "strided",
    "upper_bound",
]


NUM_THREADS = 128
# A search looks at 32 places at a time, as many as a warp has threads: its sum then needs no other warp.
WAYS_LOG2 = 5


def acc_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of an accumulation dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def num_warps(num_threads: int = NUM_THREADS) -> int:
    """Warps of a program of `num_threads`: AMD's data-centre GPUs have warps of 64."""
    return num_threads // (64 if torch.version.hip else 32)


def aligned(x: Tensor) -> Tensor:
    """`x`, contiguous and at a multiple of 16 bytes: a slice that begins in between is copied, or Triton would compile anew for it."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def blocks_of(size: int, block: int) -> int:
    """How many cover `size`. `triton.cdiv` takes 2 µs, because it may be asked inside kernels."""
    return -(-size // block)


def device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device: make it the one of `x`."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def split_float(x: float) -> tuple[float, float]:
    """`x` as the sum of two fp32 numbers. Triton passes floats as fp32, which is too coarse for fp64 tensors."""
    (high,) = struct.unpack("f", struct.pack("f", x))
    return high, x - high


def search_shift(num: int) -> int:
    """Where `first_not_below` begins: parts of `2 ** shift` entries, of which there are `2 ** WAYS_LOG2` at most."""
    return max(0, max(0, num - 1).bit_length() - 1) // WAYS_LOG2 * WAYS_LOG2


def sort_positions(positions: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Sorted `positions` [N] in [0, limit) and where each came from. Stable, so equal ones keep their order: sums repeat bit for bit."""
    if positions.dtype == torch.int64 and limit <= torch.iinfo(torch.int32).max:
        positions = positions.to(torch.int32)  # A radix sort passes over each byte of the key.
    return torch.sort(positions, stable=True)


@triton.jit
def joined(high, low, ACC: tl.constexpr):
    """The number that `split_float` split, as a scalar of the accumulation dtype."""
    return tl.zeros((), ACC) + high + low


@triton.jit
def strided(SIZE: tl.constexpr):
    """0 to SIZE, one after the other a thread: where a mask over a count forbids wide accesses, neighbours then lie in one sector."""
    return tl.max_contiguous(tl.arange(0, SIZE), 1)


@triton.jit
def first_not_below(sorted_ptr, num, x, shift, WAYS_LOG2: tl.constexpr):
    """Place of the first of the sorted entries that is `>= x`, in integers as wide as `num`. `shift` is `search_shift(num)`."""
    place = num * 0
    part = place + tl.arange(1, 2**WAYS_LOG2 + 1)
    while shift >= 0:
        # The last place of each part. A step goes to the first part whose entries do not all lie below.
        last = place + (part << shift) - 1
        entry = tl.load(sorted_ptr + last.to(tl.int64), mask=last < num, other=0).to(tl.int64)
        place += tl.sum(((last < num) & (entry < x)).to(place.dtype), 0) << shift
        shift -= WAYS_LOG2
    return place


@triton.jit
def places_between(sorted_ptr, num, begin, end, shift, WAYS_LOG2: tl.constexpr):
    """Places of the sorted entries in [begin, end): `first_not_below` of both, whose loads wait for memory together."""
    first = num * 0
    last = first
    part = first + tl.arange(1, 2**WAYS_LOG2 + 1)
    while shift >= 0:
        at = first + (part << shift) - 1
        at_end = last + (part << shift) - 1
        entry = tl.load(sorted_ptr + at.to(tl.int64), mask=at < num, other=0).to(tl.int64)
        entry_end = tl.load(sorted_ptr + at_end.to(tl.int64), mask=at_end < num, other=0).to(tl.int64)
        first += tl.sum(((at < num) & (entry < begin)).to(first.dtype), 0) << shift
        last += tl.sum(((at_end < num) & (entry_end < end)).to(first.dtype), 0) << shift
        shift -= WAYS_LOG2
    return first, last


@triton.jit
def upper_bound(sorted_ptr, x, low, high):
    """How many of the sorted entries are `<= x`, for each `x` (int64 block) of which that is known to lie in [low, high]."""
    length = high - low
    low += tl.zeros_like(x).to(length.dtype)
    high = low + length
    while length > 0:
        open_ = low < high
        middle = low + ((high - low) >> 1)
        entry = tl.load(sorted_ptr + middle.to(tl.int64), mask=open_, other=0).to(tl.int64)
        low = tl.where(open_ & (entry <= x), middle + 1, low)
        high = tl.where(open_ & (entry > x), middle, high)
        length = length >> 1
    return low


@triton.jit
def segment_of_each(cu_ptr, num_offsets, x, begin, end, shift, WAYS_LOG2: tl.constexpr):
    """The segment (int64) of each `x` (int64 block), all of which lie in [begin, end). Those past the last offset get one that is none."""
    # By the offsets inside the block, which are few: one search a block, and a short one for each element.
    low, high = places_between(cu_ptr, num_offsets, begin + 1, end, shift, WAYS_LOG2)
    return upper_bound(cu_ptr, x, low, high).to(tl.int64) - 1
