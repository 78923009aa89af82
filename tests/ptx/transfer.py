"""Loads and stores (PTX ISA, "Data Movement and Conversion": `ld`, `st`, `ldmatrix`, `stmatrix`; "Parallel Synchronization": `atom`)."""

from __future__ import annotations

import re

import numpy as np

from .dtypes import RAW, Array, dtype_of
from .forms import Step, form
from .operands import Operands, vector
from .program import Instruction, PtxError
from .threads import Threads
from .warp import whole_warps

__all__ = ["element_size"]

KIND = r"([bsu](8|16|32|64)|f32|f64)"
CACHE = r"(\.L1::(evict_first|evict_last|no_allocate))?"


def element_size(instruction: Instruction) -> int | None:
    """Bytes of the narrowest access that it makes at once, or None if it makes none."""
    if instruction.opcode not in ("ld", "st", "ldmatrix", "stmatrix", "atom") or "param" in instruction.modifiers:
        return None
    return dtype_of(instruction.kind).itemsize


@form(rf"ld\.param\.{KIND}")
def _parameter(instruction: Instruction, operands: Operands) -> Step:
    """An argument of the launch, the same for all threads; a wider register gets the sign of a signed one."""
    name, dtype = instruction.operands[1].strip("[] "), dtype_of(instruction.kind)
    write = operands.write(instruction.operands[0])

    def load(threads: Threads, mask: Array | None) -> None:
        value = threads.launch.parameters[name].astype(RAW[dtype.itemsize]).view(dtype)
        write(threads, np.full(threads.count, value), mask)

    return load


@form(rf"ld\.(global|shared(::cta)?){CACHE}(\.v[248])?\.{KIND}")
def _load(instruction: Instruction, operands: Operands) -> Step:
    """Lanes that are off keep their registers."""
    space = _space(instruction)
    writes = [operands.write(name) for name in vector(instruction.operands[0])]
    address, dtype = operands.address(instruction.operands[1]), dtype_of(instruction.kind)

    def load(threads: Threads, mask: Array | None) -> None:
        index, lanes = threads.lanes(mask)
        if not len(index):
            return
        at = address(threads)[index]
        threads.launch.counters.access(space, "ld", index, at, dtype.itemsize * len(writes))
        for write, loaded in zip(writes, threads.memory(space).load(lanes, at, dtype.itemsize, len(writes)), strict=True):
            value = np.zeros(threads.count, dtype)
            value[index] = loaded.view(dtype)
            write(threads, value, mask)

    return load


@form(rf"st\.(global|shared(::cta)?){CACHE}(\.v[248])?\.{KIND}")
def _store(instruction: Instruction, operands: Operands) -> Step:
    space, size = _space(instruction), dtype_of(instruction.kind).itemsize
    address = operands.address(instruction.operands[0])
    reads = [operands.read(name, f"b{8 * size}") for name in vector(instruction.operands[1])]

    def store(threads: Threads, mask: Array | None) -> None:
        index, lanes = threads.lanes(mask)
        if not len(index):
            return
        at = address(threads)[index]
        threads.launch.counters.access(space, "st", index, at, size * len(reads))
        threads.memory(space).store(lanes, at, size, [read(threads)[index] for read in reads])

    return store


@form(r"atom\.global\.gpu\.relaxed\.add\.u32")
def _add(instruction: Instruction, operands: Operands) -> Step:
    """Each lane gets what it found. No order comes with it: nothing else may be read or written on the strength of it."""
    write, address = operands.write(instruction.operands[0]), operands.address(instruction.operands[1])
    read = operands.read(instruction.operands[2], "u32")

    def add(threads: Threads, mask: Array | None) -> None:
        index, lanes = threads.lanes(mask)
        if not len(index):
            return
        at = address(threads)[index]
        # It goes to the memory as a store does.
        threads.launch.counters.access("global", "st", index, at, 4)
        found = np.zeros(threads.count, np.uint32)
        found[index] = threads.memory("global").add(lanes, at, 4, read(threads)[index])
        write(threads, found, mask)

    return add


def _space(instruction: Instruction) -> str:
    """`global` or `shared`: that of the CTA, of which a cluster has one here."""
    return instruction.modifiers[0].partition("::")[0]


@form(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16")
def _matrix(instruction: Instruction, operands: Operands) -> Step:
    """8 by 8 matrices of 16-bit elements: lane 8·k + i has the address of row i of matrix k, and lane 4·i + j holds elements 2·j and
    2·j + 1 of row i in the register for matrix k; with `.trans` of column i."""
    loads, transposed = instruction.opcode == "ldmatrix", "trans" in instruction.modifiers
    registers, address = instruction.operands if loads else reversed(instruction.operands)
    names = vector(registers)
    if len(names) != int(re.findall(r"\.x(\d)", instruction.form)[0]):
        raise PtxError(f"{instruction.form}: {len(names)} registers at {instruction.place}")
    row_address = operands.address(address)
    reads, writes = [operands.read(name, "b32") for name in names], [operands.write(name) for name in names]

    def move(threads: Threads, mask: Array | None) -> None:
        whole_warps(mask)
        index, lanes = threads.lanes(mask)
        rows, lane = row_address(threads), index % 32
        threads.launch.counters.access("shared", instruction.opcode[:2], index, rows[index], 4 * len(names))
        for matrix, (read, write) in enumerate(zip(reads, writes, strict=True)):
            rows_here = rows[index - lane + 8 * matrix + lane % 8]
            if (rows_here % np.uint64(16)).any():
                raise PtxError(f"misaligned: a row of 16 bytes at {int(rows_here[rows_here % np.uint64(16) != 0][0]):#x}")
            at = _element_addresses(rows, index, lane, matrix, transposed)
            if loads:
                value = np.zeros((threads.count, 2), np.uint16)
                for half in range(2):
                    (value[index, half],) = threads.shared.load(lanes, at[half], 2, 1)
                write(threads, value.view(np.uint32)[:, 0], mask)
            else:
                value = np.ascontiguousarray(read(threads)[index]).view(np.uint16).reshape(-1, 2)
                for half in range(2):
                    threads.shared.store(lanes, at[half], 2, [value[:, half]])

    return move


def _element_addresses(rows: Array, index: Array, lane: Array, matrix: int, transposed: bool) -> list[Array]:
    """Where the two elements of each lane lie."""
    first = index - lane + 8 * matrix
    across, along = lane // 4, 2 * (lane % 4)
    if transposed:
        return [rows[first + along + half] + (2 * across).astype(np.uint64) for half in range(2)]
    return [rows[first + across] + (2 * (along + half)).astype(np.uint64) for half in range(2)]
