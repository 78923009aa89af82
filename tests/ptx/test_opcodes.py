"""Each instruction computes what the PTX ISA says; what is not known is named."""

from __future__ import annotations

import math
import re
import struct
from typing import Any

import numpy as np
import pytest

from .machine import Machine
from .memory import GlobalMemory
from .opcode_cases import CASES, OpcodeCase, untested
from .program import PtxError, parse

LANES, SLOT, ROW = 32, 8, 64
BODY = """
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u64 .ptr .global .align 1 k_param_1,
	.param .u64 k_param_2
)
.reqntid 32
{{
	.reg .pred 	%p<99>;
	.reg .b16 	%rs<99>;
	.reg .b32 	%r<99>;
	.reg .b64 	%rd<99>;
	.loc	1 7 3                          // case.py:7:3
{code}
	ret;
}}
"""
# Where every thread finds its inputs and puts its outputs, and the addresses in shared memory that cases use.
PROLOGUE = """mov.u32 %r90, %tid.x;
mul.wide.u32 %rd90, %r90, 64;
ld.param.b64 %rd91, [k_param_0];
ld.param.b64 %rd92, [k_param_1];
add.s64 %rd91, %rd91, %rd90;
add.s64 %rd92, %rd92, %rd90;
shl.b32 %r91, %r90, 4;
xor.b32 %r92, %r91, 16;
sub.s32 %r93, 496, %r91;"""
PLACES = {"in": "%rd91", "out": "%rd92", "own": "%r91", "other": "%r92", "reverse": "%r93", "t": "%r95", "p": "%p95"}
FORMATS = {"f16": "<e", "f32": "<f", "f64": "<d"}


def bits_of(kind: str, value: Any) -> int:
    """The bits of a value, without the emulator's help."""
    if isinstance(value, tuple):
        return sum(bits_of("f32", part) << 32 * i for i, part in enumerate(value))
    if isinstance(value, int):
        return value % (1 << width_of(kind))
    if kind == "bf16":
        upper, lower = divmod(bits_of("f32", value), 1 << 16)
        assert lower == 0 or math.isnan(value), "not a bf16 number"
        return upper
    return int.from_bytes(struct.pack(FORMATS[kind], value), "little")


def width_of(kind: str) -> int:
    return 64 if kind == "f32x2" else 32 if kind == "pred" else int(re.findall(r"\d+", kind)[0])


def register(kind: str, number: int) -> str:
    letters = "p" if kind == "pred" else {16: "rs", 32: "r", 64: "rd"}[width_of(kind)]
    return f"%{letters}{number}"


def is_nan(kind: str, bits: int) -> bool:
    exponent, fraction = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23), "f64": (11, 52)}.get(kind, (0, 0))
    return bool(exponent) and bits >> fraction & (1 << exponent) - 1 == (1 << exponent) - 1 and bits & (1 << fraction) - 1 > 0


def program_of(case: OpcodeCase) -> str:
    """Loads the inputs, computes, stores the outputs."""
    lines, names = [PROLOGUE], dict(PLACES)
    for i, (name, kind) in enumerate(zip("abcd", case.inputs, strict=False)):
        names[name] = register(kind, i + 1)
        loaded = register("b32", i + 1) if kind == "pred" else names[name]
        lines.append(f"ld.global.b{width_of(kind)} {loaded}, [%rd91+{SLOT * i}];")
        lines += [f"setp.ne.b32 {names[name]}, {loaded}, 0;"] if kind == "pred" else []
    names |= {name: register(kind, i + 11) for i, (name, kind) in enumerate(zip("xyzw", case.outputs, strict=False))}
    code = case.code or f"{case.form} {{x}}, {', '.join(f'{{{name}}}' for name in 'abcd'[: len(case.inputs)])};"
    lines.append(code.format(**names))
    for i, (name, kind) in enumerate(zip("xyzw", case.outputs, strict=False)):
        stored = names[name]
        if kind == "pred":
            stored = register("b32", i + 11)
            lines.append(f"selp.b32 {stored}, 1, 0, {names[name]};")
        if "{out}" not in code:
            lines.append(f"st.global.b{width_of(kind)} [%rd92+{SLOT * i}], {stored};")
    return BODY.format(code="\n".join(lines))


def execute(text: str, inputs: np.ndarray, outputs: np.ndarray) -> None:
    """Runs one warp on rows of 64 bytes."""
    machine = Machine(parse(text), shared_bytes=1024)
    memory = GlobalMemory([(x.ctypes.data, x.nbytes) for x in (inputs, outputs)], machine.cell)
    parameters = {"k_param_0": inputs.ctypes.data, "k_param_1": outputs.ctypes.data, "k_param_2": 2**64 - 5}
    machine.run(1, {name: np.uint64(value) for name, value in parameters.items()}, memory)


def aligned_rows() -> np.ndarray:
    """uint64 [32, 8], zero, at a multiple of 64 bytes."""
    room = np.zeros(LANES * ROW // 8 + 8, np.uint64)
    return room[-room.ctypes.data % 64 // 8 :][: LANES * ROW // 8].reshape(LANES, -1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.form)
def test_result(case):
    inputs, outputs = aligned_rows(), aligned_rows()
    rows = [*case.rows, *[case.rows[0]] * (LANES - len(case.rows))]
    for lane, row in enumerate(rows):
        inputs[lane, : len(case.inputs)] = [bits_of(kind, value) for kind, value in zip(case.inputs, row, strict=False)]
    execute(program_of(case), inputs, outputs)
    for lane, row in enumerate(case.rows):
        assert len(row) == len(case.inputs) + len(case.outputs)
        for i, (kind, expected) in enumerate(zip(case.outputs, row[len(case.inputs) :], strict=True)):
            got, wanted = int(outputs[lane, i]), bits_of(kind, expected)
            if isinstance(expected, float) and math.isnan(expected):
                assert is_nan(kind, got), f"row {lane}: {got:#x} is a number"
            else:
                assert got == wanted, f"row {lane}, result {i}: {got:#x} in place of {wanted:#x}"


def test_case_is_about_its_form():
    for case in CASES:
        assert any(i.form.replace(".L1::evict_first", "") == case.form for i in parse(program_of(case)).instructions), case.form


def module(code: str) -> str:
    return BODY.format(code=code)


@pytest.mark.parametrize(
    "statement",
    [
        "frobnicate.f32 %r1, %r2;",
        "add.sat.s32 %r1, %r2, %r3;",
        "add.rz.f32 %r1, %r2, %r3;",
        "min.NaN.f32 %r1, %r2, %r3;",
        "ld.local.b32 %r1, [%rd1];",
        "ld.volatile.global.b32 %r1, [%rd1];",
        "atom.global.add.u32 %r1, [%rd1], %r2;",
        "bar.warp.sync -1;",
        "add.s32 %r1, %r2, %r3, %r4;",
        "max.s64 %rd1, %rd2;",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r1}, {%r2}, {%r3}, {%r4};",
    ],
)
def test_an_unknown_instruction_is_named_and_not_skipped(statement):
    form = statement.split()[0].rstrip(";")
    with pytest.raises(PtxError, match=rf"unknown PTX instruction `{re.escape(form)} .*` at case\.py:7:3: implement it in tests/ptx"):
        Machine(parse(module(statement)), 0)


def test_a_form_without_a_case_is_named():
    """`down` is implemented, and no kernel of ours is compiled to it."""
    program = parse(module("shfl.sync.down.b32 %r1, %r2, 1, 31, -1;"))
    Machine(program, 0)
    with pytest.raises(PtxError, match=r"k: `shfl.sync.down.b32` at case.py:7:3 has no case in tests/ptx/opcode_cases.py"):
        untested(program)
    with pytest.raises(PtxError, match=r"k: `max.s64` at case.py:7:3 has no case"):
        untested(parse(module("max.s64 %rd1, %rd2, %rd3, %rd4;")))
    untested(parse(module("max.s64 %rd1, %rd2, %rd3;")))


def test_what_is_no_instruction_is_an_error():
    with pytest.raises(PtxError, match=r"not a PTX instruction: '%r1 = %r2' at case\.py:7:3"):
        parse(module("%r1 = %r2;"))


def test_an_address_that_is_none_is_an_error():
    with pytest.raises(PtxError, match=r"not an address: \[somewhere\]"):
        Machine(parse(module("ld.global.b32 %r1, [somewhere];")), 0)


def test_special_registers_that_are_not_known_are_an_error():
    with pytest.raises(PtxError, match="unknown register `%clock64`"):
        Machine(parse(module("mov.u64 %rd1, %clock64;")), 0)
