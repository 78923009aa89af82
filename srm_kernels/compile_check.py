"""Compiles every kernel in every configuration for several GPUs, with no GPU present: `python -m srm_kernels.compile_check`.

Prints a table and exits with 1 if a kernel does not compile, spills registers, misses a 128-bit access that its layout allows, or computes
an offset in 32 bits. See docs/kernels.md for how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

__all__ = ["OPS", "TARGETS", "Row", "check_case", "main"]

OPS = (
    "gather_boundaries",
    "segment_softmax",
    "difference_rewards",
    "sentence_attention_pool",
    "bradley_terry_loss",
    "token_rewards",
    "packed_gae",
    "sentence_reward_head",
)
TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx90a", "hip:gfx942")
WIDE = 128

# ld.global.L1::evict_first.v4.b32 and the like; the width is lanes times bits.
PTX_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[\w:]+?)*?(?:\.v(\d))?\.[bfsu](\d+)\b")
AMD_ACCESS = re.compile(r"\b(?:global|buffer|flat)_(load|store)_(\w+)")
AMD_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32}
# Scalar or block offsets, and products, that are still 32 bits wide.
NARROW_OFFSET = re.compile(r"tt\.addptr .*, (?:tensor<[\dx]+xi32>|i32)(?: loc|$)", re.MULTILINE)
NARROW_PRODUCT = re.compile(r"arith\.muli .* : (?:tensor<[\dx]+xi32>|i32)(?: loc|$)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel in one configuration for one target.

    Attributes:
        kernel: name.
        label: dtype and sizes.
        target: one of `TARGETS`.
        registers: 32-bit registers a thread.
        spills: bytes (AMD: registers) that went to memory.
        shared: bytes of shared memory a program.
        load_bits: widest load from global memory.
        store_bits: widest store to global memory.
        problem: what is wrong, or empty.
    """

    kernel: str
    label: str
    target: str
    registers: int = 0
    spills: int = 0
    shared: int = 0
    load_bits: int = 0
    store_bits: int = 0
    problem: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        argv: arguments; those of the process if None.

    Returns:
        The exit code: 0 where every kernel compiled without a problem, 1 elsewhere.
    """
    parser = argparse.ArgumentParser(prog="python -m srm_kernels.compile_check", description=__doc__.split("\n")[0])
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this target; repeatable (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("triton") is None:
        print("compile_check: triton is not installed. Install triton to compile its kernels.", file=sys.stderr)
        return 1
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        print("compile_check: TRITON_INTERPRET=1 replaces the compiler. Unset it.", file=sys.stderr)
        return 1
    targets = tuple(args.target or TARGETS)
    names = [(op, i) for op in OPS for i, case in enumerate(_cases(op)) if args.kernel in case.kernel.__name__]
    rows = _check_all(names, targets, args.jobs)
    print("\n".join(_table(rows)))
    problems = [row for row in rows if row.problem]
    print(f"\n{len(rows)} kernels compiled for {len(targets)} targets, {len(problems)} with a problem")
    return 1 if problems or not rows else 0


def check_case(case: Any, target: str) -> Row:
    """Compiles one kernel in one configuration and reads the compiler's report.

    Args:
        case: a `CompileCase`.
        target: one of `TARGETS`.

    Returns:
        Its row of the table; a failure is a `problem`, not an error.
    """
    try:
        compiled, log = _compile(case, target)
    except Exception as error:  # Whatever the compiler throws is a finding, and the other cases still count.
        return Row(kernel=case.kernel.__name__, label=case.label, target=target, problem=f"failed: {str(error).strip().splitlines()[-1]}")
    read = _read_cuda if target.startswith("cuda") else _read_hip
    registers, spills, load_bits, store_bits = read(compiled.asm, log)
    problems = [
        f"spills {spills}" if spills else "",
        f"loads {load_bits} bits" if case.wide_load and load_bits < WIDE else "",
        f"stores {store_bits} bits" if case.wide_store and store_bits < WIDE else "",
        "32-bit offset" if NARROW_OFFSET.search(compiled.asm["ttir"]) else "",
        "32-bit product" if NARROW_PRODUCT.search(compiled.asm["ttir"]) else "",
    ]
    return Row(
        kernel=case.kernel.__name__,
        label=case.label,
        target=target,
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        load_bits=load_bits,
        store_bits=store_bits,
        problem=", ".join(filter(None, problems)),
    )


def _compile(case: Any, target: str) -> tuple[Any, str]:
    """The compiled kernel, and what ptxas said about it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    backend, arch = target.split(":")
    gpu = GPUTarget(backend, int(arch), 32) if backend == "cuda" else GPUTarget(backend, arch, 64)
    names = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    pointers = [name for name in names if signature[name].startswith("*") and name not in case.unaligned]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, *case.divisible)}
    source = ASTSource(case.kernel, signature=signature, constexprs=dict(case.constants), attrs=attributes)
    # Releases differ in the default of enable_fp_fusion; a launch leaves it on.
    options = {"num_warps": case.num_threads // gpu.warp_size, "enable_fp_fusion": True}
    log = io.StringIO()
    triton.knobs.nvidia.dump_ptxas_log = True
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=gpu, options=options)
    return compiled, log.getvalue()


def _read_cuda(asm: dict[str, Any], log: str) -> tuple[int, int, int, int]:
    """Registers, bytes spilled, widest load and store in bits."""
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or spills is None:
        raise RuntimeError(f"ptxas gave no report: {log!r}")
    bits: dict[str, list[int]] = {"ld": [0], "st": [0]}
    for kind, lanes, width in PTX_ACCESS.findall(asm["ptx"]):
        bits[kind].append(int(lanes or 1) * int(width))
    return int(registers[1]), int(spills[1]) + int(spills[2]), max(bits["ld"]), max(bits["st"])


def _read_hip(asm: dict[str, Any], log: str) -> tuple[int, int, int, int]:
    """Vector registers, registers spilled, widest load and store in bits."""
    text = asm["amdgcn"]
    registers, *spills = (int(_field(text, name)) for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count"))
    bits: dict[str, list[int]] = {"load": [0], "store": [0]}
    for kind, width in AMD_ACCESS.findall(text):
        bits[kind].append(AMD_BITS.get(width, 16))
    return registers, sum(spills), max(bits["load"]), max(bits["store"])


def _field(text: str, name: str) -> str:
    found = re.search(rf"\.{name}:\s*(\d+)", text)
    if found is None:
        raise RuntimeError(f"the assembler's metadata has no {name}")
    return found[1]


def _check_all(names: Sequence[tuple[str, int]], targets: tuple[str, ...], jobs: int) -> list[Row]:
    # Without a cache of our own, a kernel compiled before would come without its compiler's report.
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(cache,)) as pool,
    ):
        return [row for group in pool.map(_check_one, names, [targets] * len(names), chunksize=4) for row in group]


def _cases(op: str) -> Iterator[Any]:
    return importlib.import_module(f"srm_kernels.ops.{op}.cases").cases()


def _start_worker(cache: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = cache


def _check_one(name: tuple[str, int], targets: tuple[str, ...]) -> list[Row]:
    op, index = name
    case = list(_cases(op))[index]
    return [check_case(case, target) for target in targets]


def _table(rows: Sequence[Row]) -> Iterator[str]:
    heads = ("kernel", "case", "target", "registers", "spills", "shared", "load", "store", "problem")
    cells = [heads] + [
        (r.kernel, r.label, r.target, str(r.registers), str(r.spills), str(r.shared), str(r.load_bits), str(r.store_bits), r.problem)
        for r in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    for row in cells:
        yield "  ".join(
            cell.rjust(w) if 3 <= i < 8 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()


if __name__ == "__main__":
    sys.exit(main())
