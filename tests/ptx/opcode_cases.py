"""Every form of instruction that our kernels are compiled to, with operands and the result that the PTX ISA demands, worked out by hand.

A form that runs in the PTX lane and has no case here fails the lane.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any

from .program import Program, PtxError

__all__ = ["CASES", "OpcodeCase", "untested"]

Rows = Sequence[tuple[Any, ...]]
# Largest and smallest integers, one unit in the last place of 1, the smallest subnormal numbers.
MAX32, MAX64, MIN32, MIN64 = 2**31 - 1, 2**63 - 1, -(2**31), -(2**63)
ULP32, ULP64, TINY32, TINY64 = 2.0**-23, 2.0**-52, 2.0**-149, 2.0**-1074


@dataclass(frozen=True, kw_only=True)
class OpcodeCase:
    """What one thread after the other computes.

    Attributes:
        form: of the instruction.
        inputs: types of the operands, of which each thread loads its row's values.
        outputs: types of the results.
        rows: of each thread the inputs and the expected outputs. Floats are numbers, or bits where they are written as integers.
        code: statements with the operands `a`, `b`, `c` and the results `x`, `y`, in braces. One instruction if empty.
    """

    form: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rows: Rows
    code: str = ""


def untested(program: Program) -> None:
    """Refuses a program with an instruction that no case is about.

    Args:
        program: what is about to run.

    Raises:
        PtxError: it has one.
    """
    # An instruction by itself also tells how many operands it has.
    known = {(case.form, None if case.code else 1 + len(case.inputs)) for case in CASES}
    for instruction in program.instructions:
        if not {(instruction.form, None), (instruction.form, len(instruction.operands))} & known:
            raise PtxError(f"{program.name}: `{instruction.form}` at {instruction.place} has no case in tests/ptx/opcode_cases.py.")


def case(form: str, types: str, *rows: tuple[Any, ...], code: str = "") -> OpcodeCase:
    """`types` is "f32 f32 -> f32"."""
    inputs, outputs = (tuple(side.split()) for side in types.split("->"))
    return OpcodeCase(form=form, inputs=inputs, outputs=outputs, rows=rows, code=code)


def _float() -> Iterator[OpcodeCase]:
    for form, (tiny, ulp) in {"f32": (TINY32, ULP32), "f64": (TINY64, ULP64)}.items():
        yield case(f"abs.{form}", f"{form} -> {form}", (-1.5, 1.5), (-0.0, 0.0), (-inf, inf), (-tiny, tiny), (nan, nan))
        yield case(f"neg.{form}", f"{form} -> {form}", (-1.5, 1.5), (0.0, -0.0), (inf, -inf))
        # Half a unit is a tie, which goes to the even neighbour.
        sums = ((1.0, 2.0, 3.0), (1.0, ulp / 2, 1.0), (1 + ulp, ulp / 2, 1 + 2 * ulp), (tiny, tiny, 2 * tiny), (inf, -inf, nan))
        yield case(f"add.{form}", f"{form} {form} -> {form}", *sums)
        yield case(f"sub.{form}", f"{form} {form} -> {form}", (1.0, 2.0, -1.0), (1.0, -ulp / 2, 1.0), (1.0, 1.0, 0.0), (inf, inf, nan))
        yield case(
            f"mul.{form}", f"{form} {form} -> {form}", (1 + ulp, 1 + ulp, 1 + 2 * ulp), (-0.0, 5.0, -0.0), (tiny, 0.5, 0.0), (inf, 0.0, nan)
        )
        largest = (
            (1.0, 2.0, 2.0),
            (-0.0, 0.0, 0.0),
            (0.0, -0.0, 0.0),
            (-0.0, -0.0, -0.0),
            (nan, 1.0, 1.0),
            (1.0, nan, 1.0),
            (nan, nan, nan),
        )
        yield case(f"max.{form}", f"{form} {form} -> {form}", *largest)
        # (1 + u)^2 - (1 + 2u) is u^2, which a rounded product would lose.
        fused = ((1 + ulp, 1 + ulp, -(1 + 2 * ulp), ulp**2), (2.0, 3.0, 4.0, 10.0), (inf, 0.0, 1.0, nan), (1.0, 1.0, ulp / 2, 1.0))
        # A tie but for one bit far below: (1 + u)(1 - u) = 1 - u^2, and half a unit on top is below the tie.
        tie = (1 + ulp, 1 - ulp, ulp / 2, 1.0), (1 + 2 * ulp, 1.0, ulp / 2, 1 + 2 * ulp), (1 + ulp, 1 + ulp, -2 * ulp, 1.0)
        yield case(f"fma.rn.{form}", f"{form} {form} {form} -> {form}", *fused, *tie)
    yield case("max.f32", "f32 f32 f32 -> f32", (1.0, 3.0, 2.0, 3.0), (nan, -1.0, -2.0, -1.0), (nan, nan, nan, nan))
    yield case("add.rn.f64", "f64 f64 -> f64", (1.0, ULP64 / 2, 1.0), (0.1, 0.2, 0.30000000000000004))
    yield case("div.rn.f64", "f64 f64 -> f64", (1.0, 3.0, 1 / 3), (1.0, 0.0, inf), (0.0, 0.0, nan), (-6.0, 2.0, -3.0))
    yield case("div.full.f32", "f32 f32 -> f32", (6.0, 2.0, 3.0), (1.0, 0.0, inf), (0.0, 0.0, nan), (1.0, 3.0, 0x3EAAAAAB))
    yield case("abs.ftz.f32", "f32 -> f32", (-1.5, 1.5), (-TINY32, 0.0), (-(2.0**-126), 2.0**-126))
    yield case("fma.rn.ftz.f32", "f32 f32 f32 -> f32", (2.0, 3.0, 4.0, 10.0), (2.0**-126, 0.5, 0.0, 0.0), (1.0, TINY32, 0.0, 0.0))
    yield case("ex2.approx.f32", "f32 -> f32", (3.0, 8.0), (-1.0, 0.5), (-inf, 0.0), (inf, inf), (0.5, 0x3FB504F3), (-149.0, TINY32))
    yield case("rcp.approx.ftz.f64", "f64 -> f64", (4.0, 0.25), (-0.5, -2.0), (TINY64, inf), (inf, 0.0))


def _narrow_float() -> Iterator[OpcodeCase]:
    # The units in the last place of 1 are 2^-10 and 2^-7.
    for form, ulp in {"f16": 2.0**-10, "bf16": 2.0**-7}.items():
        yield case(f"abs.{form}", f"{form} -> {form}", (-1.5, 1.5), (-0.0, 0.0))
        yield case(f"sub.{form}", f"{form} {form} -> {form}", (1.0, 2.0, -1.0), (1.0, -ulp / 2, 1.0), (1 + ulp, -ulp / 2, 1 + 2 * ulp))
        yield case(f"fma.rn.{form}", f"{form} {form} {form} -> {form}", (2.0, 3.0, 4.0, 10.0), (1 + ulp, 1 + ulp, -1 - 2 * ulp, ulp**2))
        # Both are exact in fp32, though not in 16 bits.
        yield case(f"add.rn.f32.{form}", f"{form} f32 -> f32", (1.0, ulp / 4, 1 + ulp / 4), (1.0, ULP32 / 2, 1.0))
        yield case(f"sub.rn.f32.{form}", f"{form} f32 -> f32", (1.0, ulp / 4, 1 - ulp / 4), (-2.0, 1.0, -3.0))
        yield case(f"fma.rn.f32.{form}", f"{form} {form} f32 -> f32", (1 + ulp, 1 + ulp, -1.0, 2 * ulp + ulp**2), (2.0, 3.0, 4.0, 10.0))
    two = "f32x2"
    yield case("add.f32x2", f"{two} {two} -> {two}", ((1.0, 2.0), (10.0, 20.0), (11.0, 22.0)), ((1.0, inf), (ULP32 / 2, 1.0), (1.0, inf)))
    yield case("sub.f32x2", f"{two} {two} -> {two}", ((1.0, 2.0), (10.0, 20.0), (-9.0, -18.0)))
    yield case("mul.f32x2", f"{two} {two} -> {two}", ((1.0, 2.0), (10.0, 20.0), (10.0, 40.0)))
    fused = (1 + ULP32, 2.0), (1 + ULP32, 3.0), (-1 - 2 * ULP32, 4.0), (ULP32**2, 10.0)
    yield case("fma.rn.f32x2", f"{two} {two} {two} -> {two}", fused)


def _integer() -> Iterator[OpcodeCase]:
    for form, most, least in (("s32", MAX32, MIN32), ("s64", MAX64, MIN64)):
        yield case(f"add.{form}", f"{form} {form} -> {form}", (1, 2, 3), (most, 1, least))
        yield case(f"sub.{form}", f"{form} {form} -> {form}", (1, 2, -1), (least, 1, most))
        yield case(f"neg.{form}", f"{form} -> {form}", (5, -5), (least, least))
        yield case(f"mul.lo.{form}", f"{form} {form} -> {form}", (-3, 7, -21), (most, 2, -2), (least, -1, least))
        yield case(f"mad.lo.{form}", f"{form} {form} {form} -> {form}", (-3, 7, 1, -20), (most, 2, 3, 1))
    for form, most, least in (("s32", MAX32, MIN32), ("s64", MAX64, MIN64)):
        yield case(f"min.{form}", f"{form} {form} -> {form}", (-1, 1, -1), (most, least, least))
        yield case(f"max.{form}", f"{form} {form} -> {form}", (-1, 1, 1), (most, least, most))
    yield case("mul.wide.s32", "s32 s32 -> s64", (MIN32, MIN32, 2**62), (-1, 5, -5))
    yield case("mul.wide.u32", "u32 u32 -> u64", (2**32 - 1, 2**32 - 1, (2**32 - 1) ** 2), (7, 6, 42))
    yield case("mad.wide.s32", "s32 s32 s64 -> s64", (MIN32, 2, 1, -(2**32) + 1), (-1, 5, MIN64, MAX64 - 4))
    yield case("mad.wide.u32", "u32 u32 u64 -> u64", (2**32 - 1, 2, 3, 2**33 + 1))
    yield case("mul.hi.u32", "u32 u32 -> u32", (2**32 - 1, 2**32 - 1, 2**32 - 2), (2**16, 2**16, 1), (5, 6, 0))
    for form, rows in {
        "and": [(0b1100, 0b1010, 0b1000)],
        "or": [(0b1100, 0b1010, 0b1110)],
        "xor": [(0b1100, 0b1010, 0b0110)],
    }.items():
        for bits in (16, 32, 64):
            top = 1 << (bits - 1)
            more = {"and": (top, top + 1, top), "or": (top, 1, top + 1), "xor": (top, top + 1, 1)}[form]
            yield case(f"{form}.b{bits}", f"b{bits} b{bits} -> b{bits}", *rows, more)
    yield case("and.pred", "pred pred -> pred", (1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 0))
    yield case("or.pred", "pred pred -> pred", (1, 1, 1), (1, 0, 1), (0, 1, 1), (0, 0, 0))
    yield case("not.pred", "pred -> pred", (1, 0), (0, 1))
    yield case("not.b64", "b64 -> b64", (0, 2**64 - 1), (1, 2**64 - 2))


def _shifts() -> Iterator[OpcodeCase]:
    for bits in (16, 32, 64):
        yield case(f"shl.b{bits}", f"b{bits} u32 -> b{bits}", (1, 3, 8), (3, bits - 1, 1 << (bits - 1)), (1, bits, 0), (1, 2**31, 0))
    for bits in (32, 64):
        top = 1 << (bits - 1)
        yield case(f"shr.u{bits}", f"u{bits} u32 -> u{bits}", (8, 3, 1), (top, bits - 1, 1), (top, bits, 0))
        yield case(f"shr.s{bits}", f"s{bits} u32 -> s{bits}", (-8, 2, -2), (-top, bits - 1, -1), (-5, bits, -1), (5, 99, 0))
    # Bits 4 to 7 of 0xF5A3 are 0xA, of which the sign is set.
    yield case(
        "bfe.u32", "u32 u32 u32 -> u32", (0xF5A3, 4, 4, 0xA), (0xFFFFFFFF, 28, 8, 0xF), (5, 0, 0, 0), (0xFFFFFFFF, 0, 32, 0xFFFFFFFF)
    )
    yield case("bfe.s32", "s32 u32 u32 -> s32", (0xF5A3, 4, 4, -6), (0x7F, 0, 7, -1), (MIN32, 28, 8, -8), (5, 0, 0, 0), (-1, 0, 32, -1))


def _comparisons() -> Iterator[OpcodeCase]:
    names = ("eq", "ne", "lt", "le", "gt", "ge")
    compare: dict[str, Callable[[Any, Any], bool]] = {name: getattr(operator, name) for name in names}
    signed, unsigned = [(-1, 1), (1, 1), (2, 1)], [(1, 2**16 - 1), (3, 3), (2**16 - 1, 1)]
    floats = [(-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (-0.0, 0.0), (nan, 1.0), (1.0, nan), (nan, nan), (inf, 1.0)]
    for name in names:
        for kind in ("s32", "s64"):
            yield case(f"setp.{name}.{kind}", f"{kind} {kind} -> pred", *((x, y, compare[name](x, y)) for x, y in signed))
        for kind in ("u32", "u64", *(("b16", "b32", "b64") if name in ("eq", "ne") else ())):
            yield case(f"setp.{name}.{kind}", f"{kind} {kind} -> pred", *((x, y, compare[name](x, y)) for x, y in unsigned))
        for kind in ("f16", "bf16", "f32", "f64"):
            # Without u a comparison with a NaN is false, `ne` included; with it, true.
            ordered = ((x, y, compare[name](x, y) and not (isnan(x) or isnan(y))) for x, y in floats)
            yield case(f"setp.{name}.{kind}", f"{kind} {kind} -> pred", *ordered)
            unordered = ((x, y, compare[name](x, y) or isnan(x) or isnan(y)) for x, y in floats)
            yield case(f"setp.{name}u.{kind}", f"{kind} {kind} -> pred", *unordered)
    for kind in ("f32", "f64"):
        yield case(f"setp.nan.{kind}", f"{kind} {kind} -> pred", *((x, y, isnan(x) or isnan(y)) for x, y in floats))
    for kind, (x, y) in {"b16": (1, 2), "b32": (1, 2), "b64": (1, 2**63), "f32": (1.0, nan), "f64": (1.0, nan)}.items():
        yield case(f"selp.{kind}", f"{kind} {kind} pred -> {kind}", (x, y, 1, x), (x, y, 0, y))


def _moves() -> Iterator[OpcodeCase]:
    for kind in ("b16", "u16", "b32", "u32", "b64", "u64"):
        yield case(f"mov.{kind}", f"{kind} -> {kind}", (0, 0), (1 << (int(kind[1:]) - 1), 1 << (int(kind[1:]) - 1)))
    yield case("mov.pred", "pred -> pred pred", (0, 0, 1), (1, 1, 1), code="mov.pred {x}, {a}; mov.pred {y}, -1;")
    pack, unpack = "mov.b32 {x}, {{ {a}, {b} }};", "mov.b32 {{ {x}, {y} }}, {a};"
    yield case("mov.b32", "b16 b16 -> b32", (0x1234, 0xABCD, 0xABCD1234), code=pack)
    yield case("mov.b32", "b32 -> b16 b16", (0xABCD1234, 0x1234, 0xABCD), code=unpack)
    yield case("mov.b64", "b32 b32 -> b64", (1, 2**31, 2**63 + 1), code=pack.replace("32", "64"))
    yield case("mov.b64", "b64 -> b32 b32", (2**63 + 1, 1, 2**31), code=unpack.replace("32", "64"))
    yield case("mov.b64", "b64 -> b32", (2**63 + 1, 2**31), code="mov.b64 {{ _, {x} }}, {a};")
    # Bytes are numbered from the lowest of the first source, 0, to the highest of the second, 7; 8 is the sign of byte 0.
    low, high = 0x03020180, 0x07060504
    yield case(
        "prmt.b32",
        "b32 b32 b32 -> b32",
        (low, high, 0x5410, 0x05040180),
        (low, high, 0x7632, 0x07060302),
        (low, high, 0x0008, 0x808080FF),
        (low, high, 0x9999, 0),
    )
    yield case("mov.b64", "b64 -> b32", (2**63 + 1, 1), code="{{ .reg .b32 tmp; mov.b64 {{ {x}, tmp }}, {a}; }}")


def _conversions() -> Iterator[OpcodeCase]:
    yield case("cvt.s64.s32", "s32 -> s64", (-5, -5), (MAX32, MAX32))
    yield case("cvt.u64.u32", "u32 -> u64", (2**32 - 5, 2**32 - 5))
    yield case("cvt.u32.u64", "u64 -> u32", (2**40 + 7, 7))
    yield case("cvt.u16.u32", "u32 -> u16", (2**20 + 7, 7))
    yield case("cvt.u32.u16", "u16 -> u32", (2**16 - 1, 2**16 - 1))
    yield case("cvt.rn.f32.s32", "s32 -> f32", (-3, -3.0), (2**24 + 1, 2.0**24), (2**24 + 3, 2.0**24 + 4))
    yield case("cvt.rn.f32.u64", "u64 -> f32", (2**24 + 1, 2.0**24), (2**64 - 1, 2.0**64))
    yield case("cvt.rn.f64.s32", "s32 -> f64", (-3, -3.0), (MAX32, 2147483647.0), (MIN32, -2147483648.0))
    yield case("cvt.rn.f64.s64", "s64 -> f64", (-3, -3.0), (2**53 + 1, 2.0**53), (2**53 + 3, 2.0**53 + 4))
    yield case("cvt.rn.f64.u32", "u32 -> f64", (2**32 - 1, 4294967295.0))
    yield case("cvt.rn.f64.u64", "u64 -> f64", (2**64 - 1, 2.0**64), (5, 5.0))
    yield case("cvt.f64.f32", "f32 -> f64", (0x3DCCCCCD, 0.10000000149011612), (TINY32, TINY32), (inf, inf), (nan, nan))
    halfway = (1 + ULP32 / 2, 1.0), (1 + 3 * ULP32 / 2, 1 + 2 * ULP32), (1e300, inf), (nan, nan)
    yield case("cvt.rn.f32.f64", "f64 -> f32", (0.1, 0x3DCCCCCD), *halfway)
    yield case("cvt.f32.f16", "f16 -> f32", (0x3C00, 1.0), (0x0001, 2.0**-24), (0xFC00, -inf))
    yield case("cvt.f32.bf16", "bf16 -> f32", (0x3F80, 1.0), (0x0001, 2.0**-133), (0xFF80, -inf))
    # The units in the last place are 2^-10 and 2^-7: ties go to the even neighbour, and every NaN is 0x7FFF.
    yield case("cvt.rn.f16.f32", "f32 -> f16", (1 + 2.0**-11, 0x3C00), (1 + 3 * 2.0**-11, 0x3C02), (65520.0, 0x7C00), (nan, 0x7FFF))
    yield case("cvt.rn.bf16.f32", "f32 -> bf16", (1 + 2.0**-8, 0x3F80), (1 + 3 * 2.0**-8, 0x3F82), (3.4e38, 0x7F80), (nan, 0x7FFF))
    yield case("cvt.rn.f16x2.f32", "f32 f32 -> b32", (1.0, -2.0, 0x3C00C000), (nan, 1 + 2.0**-11, 0x7FFF3C00))
    yield case("cvt.rn.bf16x2.f32", "f32 f32 -> b32", (1.0, -2.0, 0x3F80C000), (nan, 1 + 2.0**-8, 0x7FFF3F80))
    yield case("cvt.rmi.f64.f64", "f64 -> f64", (1.5, 1.0), (-1.5, -2.0), (-0.0, -0.0), (inf, inf))
    edges = (2.0**63, MAX64), (-1e300, MIN64), (nan, MIN64), (-inf, MIN64)
    yield case("cvt.rzi.s64.f64", "f64 -> s64", (1.9, 1), (-1.9, -1), (-(2.0**63), MIN64), *edges)


def _branches() -> Iterator[OpcodeCase]:
    # The sum of 1 to a, so that the lanes of a warp leave the loop at different times.
    loop = """mov.u32 {x}, 0;
        mov.u32 {t}, 0;
        $L_begin:
        setp.ge.s32 {p}, {t}, {a};
        @{p} bra $L_end;
        add.s32 {t}, {t}, 1;
        add.s32 {x}, {x}, {t};
        bra.uni $L_begin;
        $L_end:"""
    rows = (0, 0), (1, 1), (4, 10), (10, 55), (3, 6)
    # Both sides of a branch write, and all meet behind it.
    sides = """setp.lt.s32 {p}, {a}, 0;
        @!{p} bra $L_other;
        neg.s32 {x}, {a};
        bra.uni $L_meet;
        $L_other:
        add.s32 {x}, {a}, 100;
        $L_meet:
        add.s32 {x}, {x}, 1;"""
    for form in ("bra", "bra.uni"):
        yield case(form, "s32 -> s32", *rows, code=loop)
        yield case(form, "s32 -> s32", (-5, 6), (5, 106), (-1, 2), (0, 101), code=sides)
    yield case("ret", "b32 -> b32", (1, 1), code="mov.b32 {x}, {a};")


def _lanes() -> Iterator[OpcodeCase]:
    def shuffled(source: Callable[[int], int]) -> list[tuple[int, int]]:
        return [(100 + lane, 100 + source(lane)) for lane in range(32)]

    yield case("shfl.sync.bfly.b32", "b32 -> b32", *shuffled(lambda i: i ^ 5), code="shfl.sync.bfly.b32 {x}, {a}, 5, 31, -1;")
    up = "shfl.sync.up.b32 {x}, {a}, 3, 0, -1;"
    yield case("shfl.sync.up.b32", "b32 -> b32", *shuffled(lambda i: i - 3 if i >= 3 else i), code=up)
    rows = [(100 + lane, 7 * lane % 32, 100 + 7 * lane % 32) for lane in range(32)]
    yield case("shfl.sync.idx.b32", "b32 b32 -> b32", *rows, code="shfl.sync.idx.b32 {x}, {a}, {b}, 31, -1;")
    # Segments of four lanes: lane 1 of each.
    segments = "shfl.sync.idx.b32 {x}, {a}, 1, 7199, -1;"  # 0x1C1F
    yield case("shfl.sync.idx.b32", "b32 -> b32", *shuffled(lambda i: i // 4 * 4 + 1), code=segments)
    for form, kind, values, result in (
        ("max", "f32", [nan, *(0.5 * i for i in range(31))], 15.0),
        ("max", "s32", [-5 - i for i in range(32)], -5),
        ("max", "u32", [2**31 + i for i in range(32)], 2**31 + 31),
        ("add", "s32", [i - 3 for i in range(32)], 400),
    ):
        code = f"mov.b32 {{t}}, -1; redux.sync.{form}.{kind} {{x}}, {{a}}, {{t}};"
        yield case(f"redux.sync.{form}.{kind}", f"{kind} -> {kind}", *((value, result) for value in values), code=code)


def _global_memory() -> Iterator[OpcodeCase]:
    # The third argument is -5 in 64 bits.
    yield case("ld.param.b64", "-> b64", (2**64 - 5,), code="ld.param.b64 {x}, [k_param_2];")
    yield case("ld.param.b32", "-> b32", (2**32 - 5,), code="ld.param.b32 {x}, [k_param_2];")
    yield case("ld.param.s32", "-> b64", (2**64 - 5,), code="ld.param.s32 {x}, [k_param_2];")
    # Inputs lie 8 bytes apart, outputs too; a lane that is off keeps its register, and its memory.
    eight = 0x1122334455667788
    yield case("ld.global.b16", "b64 -> b16", (eight, 0x5566), code="ld.global.b16 {x}, [{in}+2];")
    yield case("ld.global.b32", "b64 -> b32", (eight, 0x11223344), code="ld.global.L1::evict_first.b32 {x}, [ {in} + 4 ];")
    yield case("ld.global.b32", "b32 pred -> b32", (5, 1, 5), (5, 0, 7), code="mov.u32 {x}, 7; @{b} ld.global.b32 {{ {x} }}, [{in}];")
    yield case("ld.global.b64", "b64 b64 -> b64", (1, eight, eight), code="ld.global.b64 {x}, [{in}+8];")
    yield case("ld.global.v2.b32", "b64 -> b32 b32", (eight, 0x55667788, 0x11223344), code="ld.global.v2.b32 {{ {x}, {y} }}, [{in}];")
    yield case("ld.global.v2.b64", "b64 b64 -> b64 b64", (1, 2, 1, 2), code="ld.global.v2.b64 {{ {x}, {y} }}, [{in}];")
    four = "ld.global.v4.b32 {{ {x}, {y}, {z}, {w} }}, [{in}];"
    yield case("ld.global.v4.b32", "b64 b64 -> b32 b32 b32 b32", (eight, 3, 0x55667788, 0x11223344, 3, 0), code=four)
    yield case("st.global.b16", "b16 -> b64", (0xABCD, 0xABCD0000), code="st.global.b16 [{out}+2], {a};")
    yield case("st.global.b32", "b32 -> b64", (7, 7 << 32), code="st.global.b32 [{out}+4], {a};")
    yield case("st.global.b32", "b32 pred -> b32", (5, 1, 5), (5, 0, 0), code="@{b} st.global.b32 [ {out} + 0 ], {{ {a} }};")
    yield case("st.global.b64", "b64 -> b64 b64", (eight, 0, eight), code="st.global.b64 [{out}+8], {a};")
    yield case("st.global.v2.b32", "b32 b32 -> b64", (1, 2, 2**33 + 1), code="st.global.v2.b32 [{out}], {{ {a}, {b} }};")
    yield case("st.global.v2.b64", "b64 b64 -> b64 b64", (1, eight, 1, eight), code="st.global.v2.b64 [{out}], {{ {a}, {b} }};")
    four = "st.global.v4.b32 [{out}], {{ {a}, {b}, {a}, {b} }};"
    yield case("st.global.v4.b32", "b32 b32 -> b64 b64", (1, 2, 2**33 + 1, 2**33 + 1), code=four)


def _atomics() -> Iterator[OpcodeCase]:
    # Inputs of a lane lie at its own address, and those of lane 0 at the first parameter.
    own = "atom.global.gpu.relaxed.add.u32 {x}, [{in}], {b}; ld.global.b32 {y}, [{in}];"
    yield case("atom.global.gpu.relaxed.add.u32", "b32 b32 -> b32 b32", (5, 7, 5, 12), (MAX32, 2**31 + 2, MAX32, 1), code=own)
    off = "mov.u32 {x}, 9; @{c} atom.global.gpu.relaxed.add.u32 {x}, [ {in} + 0 ], {b}; ld.global.b32 {y}, [{in}];"
    yield case("atom.global.gpu.relaxed.add.u32", "b32 b32 pred -> b32 b32", (5, 7, 1, 5, 12), (5, 7, 0, 9, 5), code=off)


def _shared_memory() -> Iterator[OpcodeCase]:
    """Lanes 0 and 1 read what the other one wrote, 16 bytes apart."""
    widths = [
        ("b16", 1, ""),
        ("b16", 2, ""),
        ("b16", 4, ""),
        ("b32", 1, ""),
        ("b32", 2, ""),
        ("b32", 4, ""),
        ("b64", 1, ""),
        ("b64", 2, ""),
    ]
    for kind, count, where in [*widths, ("b32", 1, "::cta"), ("b64", 1, "::cta")]:
        vector = f".v{count}" if count > 1 else ""
        operands, results = (", ".join(f"{{{name}}}" for name in names[:count]) for names in ("abcd", "xyzw"))
        store, load = f"st.shared{where}{vector}.{kind}", f"ld.shared{vector}.{kind}"
        code = f"{store} [{{own}}], {{{{ {operands} }}}}; bar.sync 0; {load} {{{{ {results} }}}}, [{{other}}];"
        kinds = " ".join([kind] * count)
        first, second = range(1, count + 1), range(2**15 + 1, 2**15 + 1 + count)
        for form in (store, load):
            yield case(form, f"{kinds} -> {kinds}", (*first, *second), (*second, *first), code=code)
    fixed = "st.shared.b32 [global_smem+8], 7; bar.sync 0; mov.b32 {x}, global_smem; ld.shared.b32 {y}, [global_smem+8];"
    yield case("ld.shared.b32", "-> b32 b32", (0, 7), code=fixed)
    yield case("bar.sync", "b32 -> b32", (5, 6), (6, 5), code="st.shared.b32 [{own}], {a}; bar.sync 0; ld.shared.b32 {x}, [{other}];")


def _matrices() -> Iterator[OpcodeCase]:
    """Matrices of 8 by 8 numbers of 16 bits, 8·row + column, the rows of all one below the other; the last row's address comes first."""

    def pair(first: int, second: int) -> int:
        return first | second << 16

    def held(lane: int, turned: bool) -> list[tuple[int, int]]:
        """Row and column of the two numbers that a lane holds of a matrix: neighbours in a row, or with .trans in a column."""
        places = [(lane // 4, 2 * (lane % 4) + half) for half in range(2)]
        return [(column, row) for row, column in places] if turned else places

    rows = [[pair(8 * row + 2 * i, 8 * row + 2 * i + 1) for i in range(4)] for row in range(32)]
    store_row, load_row = "st.shared.v4.b32 [{own}], {{ {a}, {b}, {c}, {d} }};", "ld.shared.v4.b32 {{ {x}, {y}, {z}, {w} }}, [{own}];"
    for count, turned in itertools.product((1, 2, 4), (False, True)):
        form, kinds = f"matrix.sync.aligned.m8n8.x{count}{'.trans' * turned}.shared.b16", " ".join(["b32"] * count)
        results, operands = (", ".join(f"{{{name}}}" for name in names[:count]) for names in ("xyzw", "abcd"))
        address, last = f"[{{reverse}}+{128 * count - 512}]", 8 * count - 1
        # Row i of matrix k is row last - 8·k - i of the memory.
        found = [[pair(*(8 * (last - 8 * k - i) + j for i, j in held(t, turned))) for k in range(count)] for t in range(32)]
        code = f"{store_row} bar.sync 0; ld{form} {{{{ {results} }}}}, {address};"
        yield case(f"ld{form}", f"b32 b32 b32 b32 -> {kinds}", *((*rows[t], *found[t]) for t in range(32)), code=code)
        given = [[pair(*(8 * (8 * k + i) + j for i, j in held(t, turned))) for k in range(count)] for t in range(32)]
        stored = [rows[last - t] if t <= last else [7] * 4 for t in range(32)]
        fill = "st.shared.v4.b32 [{own}], {{ 7, 7, 7, 7 }}; bar.sync 0;"
        code = f"{fill} st{form} {address}, {{{{ {operands} }}}}; bar.sync 0; {load_row}"
        yield case(f"st{form}", f"{kinds} -> b32 b32 b32 b32", *((*given[t], *stored[t]) for t in range(32)), code=code)


CASES: list[OpcodeCase] = [
    *_float(),
    *_narrow_float(),
    *_integer(),
    *_shifts(),
    *_comparisons(),
    *_moves(),
    *_conversions(),
    *_branches(),
    *_lanes(),
    *_global_memory(),
    *_atomics(),
    *_shared_memory(),
    *_matrices(),
]
