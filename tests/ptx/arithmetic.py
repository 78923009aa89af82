"""Arithmetic, logic and comparison, one element a thread.

PTX ISA: "Integer Arithmetic", "Floating-Point", "Half Precision Floating-Point", "Comparison and Selection", "Logic and Shift".
Instructions that approximate (`ex2.approx`, `div.full`, `rcp.approx`) are computed exactly: a GPU may differ by what the ISA allows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .dtypes import RAW, Array, bf16_to_f32, dtype_of, f32_to_bf16, f32_to_f16, fma_f32, fma_f64
from .forms import Step, form
from .operands import Operands
from .program import Instruction
from .threads import Threads

__all__: list[str] = []

Function = Callable[..., Any]
INTEGER = r"\.[su](16|32|64)"


def elementwise(instruction: Instruction, operands: Operands, function: Function, *kinds: str) -> Step:
    """The first operand becomes `function` of the others, which are read as `kinds`; the last kind is that of all that follow."""
    sources = instruction.operands[1:]
    reads = [operands.read(text, kinds[min(i, len(kinds) - 1)]) for i, text in enumerate(sources)]
    write = operands.write(instruction.operands[0])
    return lambda threads, mask: write(threads, function(*(read(threads) for read in reads)), mask)


def larger(*numbers: Array) -> Array:
    """Of two or three. A NaN loses against a number, and -0 against +0."""
    return functools.reduce(lambda x, y: np.where((x == 0) & (y == 0), x + y, np.fmax(x, y)), numbers)


def smaller(*numbers: Array) -> Array:
    """The same the other way round."""
    return -larger(*(-x for x in numbers))


FLOAT: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": larger,
    "min": smaller,
    "neg": np.negative,
    "abs": np.abs,
}


def flushed(x: Array) -> Array:
    """`.ftz`: subnormal numbers become zero of the same sign."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


@form(
    r"(add|sub|mul)(\.rn)?(\.ftz)?\.f32|(add|sub|mul)(\.rn)?\.f64|div\.(full|rn)(\.ftz)?\.f32|div\.rn\.f64|(max|min|neg|abs)(\.ftz)?\.f32"
)
@form(r"(max|min|neg|abs)\.f64|fma\.rn(\.ftz)?\.f32|fma\.rn\.f64")
def _float(instruction: Instruction, operands: Operands) -> Step:
    kind = instruction.kind
    function = {"f32": fma_f32, "f64": fma_f64}[kind] if instruction.opcode == "fma" else FLOAT[instruction.opcode]
    if "ftz" in instruction.modifiers:
        exact = function
        function = lambda *x: flushed(exact(*map(flushed, x)))  # noqa: E731
    return elementwise(instruction, operands, function, kind)


@form(r"(add|sub|mul|fma)(\.rn)?\.f32x2")
def _float_pair(instruction: Instruction, operands: Operands) -> Step:
    """Two fp32 numbers in a 64-bit register, each by itself."""
    function = fma_f32 if instruction.opcode == "fma" else FLOAT[instruction.opcode]

    def both(*packed: Array) -> Array:
        halves = [np.ascontiguousarray(x).view(np.float32) for x in packed]
        return function(*halves).view(np.uint64)

    return elementwise(instruction, operands, both, "b64")


@form(r"(add|sub|mul|fma)(\.rn)?\.b?f16|(neg|abs|max|min)\.b?f16")
def _half(instruction: Instruction, operands: Operands) -> Step:
    """In fp32, which holds sums and products of two 16-bit floats closely enough that rounding twice is rounding once."""
    function = fma_f32 if instruction.opcode == "fma" else FLOAT[instruction.opcode]
    unpack, pack = UNPACK[instruction.kind], PACK[instruction.kind]
    return elementwise(instruction, operands, lambda *x: pack(function(*map(unpack, x))), "b16")


@form(r"(add|sub|fma)\.rn\.f32\.b?f16")
def _mixed(instruction: Instruction, operands: Operands) -> Step:
    """In fp32 ("Mixed Precision Floating Point"): the first operand, of `fma` the first two, has 16 bits, the last one 32."""
    function, unpack = fma_f32 if instruction.opcode == "fma" else FLOAT[instruction.opcode], UNPACK[instruction.kind]
    narrow = ["b16"] * (len(instruction.operands) - 2)
    return elementwise(instruction, operands, lambda *x: function(*map(unpack, x[:-1]), x[-1]), *narrow, "f32")


UNPACK: dict[str, Function] = {"f16": lambda bits: bits.view(np.float16).astype(np.float32), "bf16": bf16_to_f32}
PACK: dict[str, Function] = {"f16": f32_to_f16, "bf16": f32_to_bf16}


@form(r"ex2\.approx(\.ftz)?\.f32|rcp\.approx\.ftz\.f64")
def _approximate(instruction: Instruction, operands: Operands) -> Step:
    functions: dict[str, Function] = {
        "ex2": lambda x: np.exp2(x.astype(np.float64)).astype(np.float32),
        "rcp": lambda x: flushed(1 / flushed(x)),
    }
    return elementwise(instruction, operands, functions[instruction.opcode], instruction.kind)


@form(rf"(add|sub|min|max){INTEGER}|(mul|mad)\.lo{INTEGER}|neg\.s(16|32|64)|abs\.s(16|32|64)")
def _integer(instruction: Instruction, operands: Operands) -> Step:
    """What leaves the type's range wraps around."""
    functions: dict[str, Function] = FLOAT | {"max": np.maximum, "min": np.minimum, "mad": lambda x, y, z: x * y + z}
    return elementwise(instruction, operands, functions[instruction.opcode], instruction.kind)


@form(r"(mul|mad)\.wide\.[su](16|32)|mul\.hi\.[su]32")
def _wide_product(instruction: Instruction, operands: Operands) -> Step:
    """The product in twice the bits: all of it, or its upper half."""
    narrow = dtype_of(instruction.kind)
    wide = np.dtype(f"{narrow.kind}{2 * narrow.itemsize}")

    def product(x: Array, y: Array, *addend: Array) -> Array:
        whole = x.astype(wide) * y.astype(wide)
        if "hi" in instruction.modifiers:
            return (whole >> wide.type(32)).astype(narrow)
        return whole + addend[0] if addend else whole

    return elementwise(instruction, operands, product, instruction.kind, instruction.kind, instruction.kind[0] + str(8 * wide.itemsize))


@form(r"(and|or|xor|not)\.(pred|b16|b32|b64)")
def _logic(instruction: Instruction, operands: Operands) -> Step:
    functions = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
    return elementwise(instruction, operands, functions[instruction.opcode], instruction.kind)


@form(r"shl\.b(16|32|64)|shr\.[bsu](16|32|64)")
def _shift(instruction: Instruction, operands: Operands) -> Step:
    """Shifts by the width or more leave nothing, or the sign."""
    dtype = dtype_of(instruction.kind)
    bits = 8 * dtype.itemsize

    def shift(x: Array, by: Array) -> Array:
        near = np.minimum(by, bits - 1).astype(dtype)
        if instruction.opcode == "shl":
            return np.where(by < bits, x << near, dtype.type(0))
        return x >> near if dtype.kind == "i" else np.where(by < bits, x >> near, dtype.type(0))

    return elementwise(instruction, operands, shift, instruction.kind, "u32")


@form(r"bfe\.[su](32|64)")
def _bit_field(instruction: Instruction, operands: Operands) -> Step:
    """`length` bits from `position` on. Above them comes zero, or the sign: the field's, or the number's where the field ends beyond."""
    dtype = dtype_of(instruction.kind)
    bits = 8 * dtype.itemsize

    def extract(x: Array, position: Array, length: Array) -> Array:
        position, length = position & np.uint32(0xFF), length & np.uint32(0xFF)
        shifted = x >> np.minimum(position, bits - 1).astype(dtype)
        if dtype.kind == "u":
            shifted = np.where(position < bits, shifted, dtype.type(0))
        unused = np.clip(bits - length.astype(np.int64), 0, bits - 1).astype(dtype)
        return np.where(length > 0, (shifted << unused) >> unused, dtype.type(0))

    return elementwise(instruction, operands, extract, instruction.kind, "u32")


def _unordered(compare: Function) -> Function:
    return lambda x, y: compare(x, y) | np.isnan(x) | np.isnan(y)


# For floats all but those that end in u, and `num`, are false where a NaN takes part.
COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "nan": lambda x, y: np.isnan(x) | np.isnan(y),
    "num": lambda x, y: ~(np.isnan(x) | np.isnan(y)),
}
COMPARISONS |= {name + "u": _unordered(compare) for name, compare in COMPARISONS.items() if len(name) == 2}
COMPARISONS |= {"ne": lambda x, y: (x < y) | (x > y), "neu": np.not_equal}


@form(r"setp\.(eq|ne|lt|le|gt|ge)\.[su](16|32|64)|setp\.(eq|ne)\.b(16|32|64)|setp\.(eq|ne|lt|le|gt|ge|num|nan)u?\.(f32|f64|f16|bf16)")
def _compare(instruction: Instruction, operands: Operands) -> Step:
    compare, kind = COMPARISONS[instruction.modifiers[0]], instruction.kind
    if kind in UNPACK:
        unpack = UNPACK[kind]
        return elementwise(instruction, operands, lambda x, y: compare(unpack(x), unpack(y)), "b16")
    return elementwise(instruction, operands, compare, kind)


@form(r"selp\.([bsu](16|32|64)|f32|f64)")
def _select(instruction: Instruction, operands: Operands) -> Step:
    """The first where the predicate holds, the second elsewhere."""
    kind = instruction.kind
    return elementwise(instruction, operands, lambda x, y, chosen: np.where(chosen, x, y), kind, kind, "pred")


@form(r"mov\.(pred|[bsu](16|32|64)|f32|f64)")
def _move(instruction: Instruction, operands: Operands) -> Step:
    """A value, or parts packed into a wider register and unpacked from it, the lowest first (PTX ISA, `mov`)."""
    target, source = instruction.operands
    if "{" not in target + source:
        return elementwise(instruction, operands, lambda x: x, instruction.kind)
    return _pack(target, source, operands, instruction.kind) if "{" in source else _unpack(target, source, operands, instruction.kind)


def _pack(target: str, source: str, operands: Operands, kind: str) -> Step:
    names = source.strip("{} ").split(",")
    part = dtype_of(kind).itemsize // len(names)
    reads, write = [operands.read(name.strip(), f"b{8 * part}") for name in names], operands.write(target)

    def pack(threads: Threads, mask: Array | None) -> None:
        write(threads, np.stack([read(threads) for read in reads], 1).view(RAW[part * len(names)])[:, 0], mask)

    return pack


def _unpack(target: str, source: str, operands: Operands, kind: str) -> Step:
    names = target.strip("{} ").split(",")
    part = RAW[dtype_of(kind).itemsize // len(names)]
    read, writes = operands.read(source, kind), [operands.write(name.strip()) for name in names]

    def unpack(threads: Threads, mask: Array | None) -> None:
        parts = np.ascontiguousarray(read(threads)).view(part).reshape(threads.count, len(names))
        for i, write in enumerate(writes):
            write(threads, parts[:, i], mask)

    return unpack
