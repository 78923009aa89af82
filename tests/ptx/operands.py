"""Operands: registers, numbers and addresses as they are written -> functions of the threads (PTX ISA, "Instruction Operands")."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .dtypes import RAW, Array, dtype_of
from .program import PtxError
from .threads import Threads

__all__ = ["Operands", "Read", "Write"]

Read = Callable[[Threads], Array]
Write = Callable[[Threads, Array, "Array | None"], None]

SPECIAL: dict[str, Read] = {
    "%tid.x": lambda threads: threads.thread,
    "%ctaid.x": lambda threads: threads.per_thread(threads.ctas.view(np.uint32)),
    "%laneid": lambda threads: threads.thread & np.uint32(31),
}
ADDRESS = re.compile(r"\[\s*(?:%(\w+)|global_smem)\s*(?:\+\s*(-?\d+))?\s*\]")
# What a register holds before anything is written to it: nothing to rely on.
UNDEFINED = 0xFF


class Operands:
    """Reads and writes operands of one program."""

    def __init__(self, registers: Mapping[str, str]) -> None:
        """`registers`: type by the letters of their names, as in `Program`."""
        self.registers = registers

    def register_dtype(self, name: str) -> np.dtype[Any]:
        """Of the bits that register `name` holds."""
        letters = name.rstrip("0123456789")
        if letters not in self.registers or letters == name:
            raise PtxError(f"unknown register `%{name}`")
        kind = dtype_of(self.registers[letters])
        return kind if kind == np.dtype(bool) else RAW[kind.itemsize]

    def read(self, text: str, kind: str) -> Read:
        """The operand's value as `kind`, one for each thread. A register may be wider than that: its lower bits count."""
        dtype = dtype_of(kind)
        if text in SPECIAL:
            special = SPECIAL[text]
            return lambda threads: special(threads).view(dtype)
        if text.startswith("%"):
            return self._read_register(text[1:], dtype)
        value = _constant(text, dtype)
        return lambda threads: np.full(threads.count, value)

    def _read_register(self, name: str, dtype: np.dtype[Any]) -> Read:
        held = self.register_dtype(name)
        raw = dtype if dtype == np.dtype(bool) else RAW[dtype.itemsize]

        def read(threads: Threads) -> Array:
            value = threads.registers.get(name)
            if value is None:
                value = np.full(threads.count * held.itemsize, UNDEFINED, np.uint8).view(held)
            return value.astype(raw, copy=False).view(dtype)

        return read

    def write(self, text: str) -> Write:
        """Puts a value, of which the bits count, into the register; the rest of a wider one is zero, or the sign of a signed value."""
        if text in ("_", "tmp"):
            return lambda threads, value, mask: None
        name = text[1:]
        held = self.register_dtype(name)

        def write(threads: Threads, value: Array, mask: Array | None) -> None:
            bits = value.view(held) if value.dtype.itemsize == held.itemsize else value.astype(held)
            if mask is not None:
                before = threads.registers.get(name)
                bits = np.where(mask, bits, held.type(0) if before is None else before)
            threads.registers[name] = bits

        return write

    def address(self, text: str) -> Read:
        """uint64 from `[%rd1]`, `[%rd1 + -8]`, `[global_smem+16]`; shared memory begins at 0."""
        found = ADDRESS.fullmatch(text)
        if found is None:
            raise PtxError(f"not an address: {text}")
        offset = np.int64(found[2] or 0).view(np.uint64)
        if found[1] is None:
            return lambda threads: np.full(threads.count, offset)
        register = self.read(f"%{found[1]}", f"u{8 * self.register_dtype(found[1]).itemsize}")
        return lambda threads: register(threads).astype(np.uint64) + offset


def vector(text: str) -> list[str]:
    """The parts of `{%r1, %r2}`, or the one operand."""
    return [part.strip() for part in text.strip("{} ").split(",")]


def _constant(text: str, dtype: np.dtype[Any]) -> Array:
    """Of `7`, `-1`, `0x7F`, `0x7FU`, `0f3F800000`, `0d3FF0000000000000`, `global_smem`, `global_smem+16`."""
    if text.startswith("global_smem"):
        text = text.partition("+")[2] or "0"
    if text[:2] in ("0f", "0F"):
        return np.array(int(text[2:], 16), np.uint32).view(np.float32).astype(dtype if dtype.kind == "f" else np.float32).view(dtype)
    if text[:2] in ("0d", "0D"):
        return np.array(int(text[2:], 16), np.uint64).view(dtype)
    if dtype == np.dtype(bool):
        return np.array(int(text, 0) != 0)
    return np.array(int(text.removesuffix("U"), 0) % (1 << 8 * dtype.itemsize), RAW[dtype.itemsize]).view(dtype)
