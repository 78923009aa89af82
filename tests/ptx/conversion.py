"""`cvt`, from one type to another, and `prmt`, bytes of two registers (PTX ISA, "Data Movement and Conversion Instructions")."""

from __future__ import annotations

import numpy as np

from .arithmetic import PACK, UNPACK, Function, elementwise
from .dtypes import Array, dtype_of, f32_to_bf16, f32_to_f16
from .forms import Step, form
from .operands import Operands
from .program import Instruction

__all__: list[str] = []


@form(r"cvt\.[su](8|16|32|64)\.[su](8|16|32|64)")
def _between_integers(instruction: Instruction, operands: Operands) -> Step:
    """The lower bits; a wider type is filled with the sign of a signed source."""
    target, source = instruction.modifiers
    return elementwise(instruction, operands, lambda x: x.astype(dtype_of(target)), source)


@form(r"cvt\.rn\.f(32|64)\.[su](32|64)")
def _integer_to_float(instruction: Instruction, operands: Operands) -> Step:
    _, target, source = instruction.modifiers
    return elementwise(instruction, operands, lambda x: x.astype(dtype_of(target)), source)


@form(r"cvt\.f64\.f32|cvt\.rn\.f32\.f64|cvt\.f32\.b?f16|cvt\.rn\.b?f16\.f32")
def _between_floats(instruction: Instruction, operands: Operands) -> Step:
    """To the nearest, ties to even."""
    target, source = instruction.modifiers[-2:]
    if source in UNPACK:
        return elementwise(instruction, operands, UNPACK[source], source)
    return elementwise(instruction, operands, PACK.get(target) or (lambda x: x.astype(dtype_of(target))), source)


@form(r"cvt\.rn\.b?f16x2\.f32")
def _two_halves(instruction: Instruction, operands: Operands) -> Step:
    """The first source becomes the upper half of the register, the second the lower one."""
    narrow = f32_to_f16 if "f16x2" in instruction.modifiers else f32_to_bf16
    return elementwise(instruction, operands, lambda high, low: np.stack([narrow(low), narrow(high)], 1).view(np.uint32)[:, 0], "f32")


@form(r"cvt\.r[mnpz]i\.f(32|64)\.f(32|64)")
def _to_whole(instruction: Instruction, operands: Operands) -> Step:
    """To a whole number in the same type: down, to the nearest and even, up, or towards zero."""
    functions: dict[str, Function] = {"rmi": np.floor, "rni": np.rint, "rpi": np.ceil, "rzi": np.trunc}
    return elementwise(instruction, operands, functions[instruction.modifiers[0]], instruction.kind)


@form(r"cvt\.rzi\.[su](32|64)\.f(32|64)")
def _float_to_integer(instruction: Instruction, operands: Operands) -> Step:
    """Towards zero, into the range; a NaN becomes 0, or the uppermost bit alone where one of the types has 64 bits."""
    _, target, source = instruction.modifiers
    dtype = dtype_of(target)
    nan = 0 if "64" not in target + source else 1 << (8 * dtype.itemsize - 1)

    def convert(x: Array) -> Array:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        inside = (x > float(low)) & (x < float(high))  # As a float the upper limit may be the next power of two, which is out.
        whole = np.where(inside, x, 0).astype(dtype)
        out = np.where(x >= float(high), dtype.type(high), np.where(x <= float(low), dtype.type(low), whole))
        return np.where(np.isnan(x), np.uint64(nan).astype(dtype), out)

    return elementwise(instruction, operands, convert, source)


@form(r"prmt\.b32")
def _permuted(instruction: Instruction, operands: Operands) -> Step:
    """Each half byte of the third source names one of the eight bytes of the others; with its upper bit, that byte's sign eight times."""

    def pick(low: Array, high: Array, selector: Array) -> Array:
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        out = np.zeros_like(both)
        for place in range(4):
            name = selector.astype(np.uint64) >> np.uint64(4 * place) & np.uint64(15)
            byte = both >> np.uint64(8) * (name & np.uint64(7)) & np.uint64(255)
            byte = np.where(name & np.uint64(8), np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0)), byte)
            out |= byte << np.uint64(8 * place)
        return out.astype(np.uint32)

    return elementwise(instruction, operands, pick, "b32")
