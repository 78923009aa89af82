"""What the lanes of a warp do together: `shfl.sync`, `redux.sync` (PTX ISA, "Data Movement and Conversion", "Parallel Synchronization")."""

from __future__ import annotations

import numpy as np

from .dtypes import Array
from .forms import Step, form
from .operands import Operands
from .program import Instruction, PtxError
from .threads import Threads

__all__ = ["whole_warps"]


def whole_warps(mask: Array | None) -> None:
    """Refuses a warp of which only a part arrives: the rest would be waited for."""
    if mask is not None and (mask.reshape(-1, 32).any(1) != mask.reshape(-1, 32).all(1)).any():
        raise PtxError("only a part of a warp arrives")


@form(r"shfl\.sync\.(bfly|up|down|idx)\.b32")
def _shuffle(instruction: Instruction, operands: Operands) -> Step:
    """Each lane reads another one's value, or its own where that one lies outside of its segment."""
    if "|" in instruction.operands[0]:
        raise PtxError(f"unknown PTX: `{instruction.form}` with a predicate, at {instruction.place}")
    mode = instruction.modifiers[1]
    write = operands.write(instruction.operands[0])
    value, by, clamp, members = (
        operands.read(text, kind) for text, kind in zip(instruction.operands[1:], ("b32", "s32", "s32", "b32"), strict=True)
    )

    def shuffle(threads: Threads, mask: Array | None) -> None:
        whole_warps(mask)
        if (members(threads) != 0xFFFFFFFF).any():
            raise PtxError("only for all lanes of a warp is it implemented")
        lane = (threads.thread & np.uint32(31)).astype(np.int32)
        segment, limit = clamp(threads) >> 8 & 31, clamp(threads) & 31
        first, last = lane & segment, (lane & segment) | (limit & ~segment)
        by_ = by(threads)
        other = {"bfly": lane ^ by_, "up": lane - by_, "down": lane + by_, "idx": first | (by_ & ~segment & 31)}[mode]
        other = np.where(other >= last if mode == "up" else other <= last, other, lane)
        write(threads, value(threads)[np.arange(threads.count) - lane + other], mask)

    return shuffle


@form(r"redux\.sync\.(min|max)\.f32|redux\.sync\.(add|min|max)\.[su]32")
def _reduce(instruction: Instruction, operands: Operands) -> Step:
    """Every lane gets the sum, the smallest or the largest of all; NaNs lose."""
    is_float = instruction.kind == "f32"
    function = {"add": np.add, "min": np.fmin if is_float else np.minimum, "max": np.fmax if is_float else np.maximum}[
        instruction.modifiers[1]
    ]
    read, members = operands.read(instruction.operands[1], instruction.kind), operands.read(instruction.operands[2], "b32")
    write = operands.write(instruction.operands[0])

    def reduce(threads: Threads, mask: Array | None) -> None:
        whole_warps(mask)
        if (members(threads) != 0xFFFFFFFF).any():
            raise PtxError("only for all lanes of a warp is it implemented")
        values = read(threads)
        write(threads, np.repeat(function.reduce(values.reshape(-1, 32), axis=1).astype(values.dtype), 32), mask)

    return reduce
