"""What the emulator must flag, on made-up PTX, and what it must let pass."""

from __future__ import annotations

import numpy as np
import pytest

from .machine import Machine
from .memory import GlobalMemory
from .program import PtxError, parse

HEADER = """
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u64 .ptr .global .align 1 k_param_1
)
.reqntid 64
{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<99>;
	.reg .b64 	%rd<99>;
	.loc	1 7 3                          // made_up.py:7:3
"""
# rd1, rd2: the tensors. r1: the thread, r2: the CTA, r3, rd3: 4·r1; r4: 4·(r1 xor 1), r5: 4·(r1 xor 32); rd4, rd5 the same of rd1.
PLACES = """
ld.param.b64 %rd1, [k_param_0];
ld.param.b64 %rd2, [k_param_1];
mov.u32 %r1, %tid.x;
mov.u32 %r2, %ctaid.x;
shl.b32 %r3, %r1, 2;
xor.b32 %r4, %r3, 4;
xor.b32 %r5, %r3, 128;
cvt.u64.u32 %rd3, %r3;
add.s64 %rd3, %rd1, %rd3;
cvt.u64.u32 %rd4, %r4;
add.s64 %rd4, %rd1, %rd4;
"""


def run(code: str, grid: int = 1, unwritten: tuple[int, ...] = ()) -> np.ndarray:
    """Executes `code` with 64 threads a CTA on two tensors of 64 numbers of 32 bits; of the first one nobody wrote some. Returns it."""
    first, second = np.arange(1000, 1064, dtype=np.uint32), np.arange(64, dtype=np.uint32)
    machine = Machine(parse(f"{HEADER}{PLACES}{code}\nret;\n}}\n"), shared_bytes=256)
    memory = GlobalMemory([(x.ctypes.data, x.nbytes) for x in (first, second)], machine.cell)
    memory.forget(first.ctypes.data + 4 * np.array(unwritten, np.int64), 4)
    machine.run(grid, {"k_param_0": np.uint64(first.ctypes.data), "k_param_1": np.uint64(second.ctypes.data)}, memory)
    return first


FLAGGED = {
    "load past the end": ("ld.global.b32 %r9, [%rd3+4];", "out of bounds: 4 bytes at .*, 1 such lanes"),
    "load before the beginning": ("ld.global.b32 %r9, [%rd3+-4];", "out of bounds"),
    "store past the end": ("st.global.b32 [%rd3+4], %r1;", "out of bounds"),
    "vector that ends past the end": ("ld.global.v4.b32 {%r9, %r10, %r11, %r12}, [%rd1+248];", "out of bounds: 16 bytes at"),
    "load past the shared memory": ("ld.shared.b32 %r9, [%r3+4];", "out of bounds: 4 bytes at 256 of 256 in shared memory"),
    "misaligned load": ("ld.global.b32 %r9, [%rd1+2];", "misaligned: 4 bytes at"),
    "misaligned vector": ("ld.global.v2.b32 {%r9, %r10}, [%rd1+4];", "misaligned: 8 bytes at"),
    "misaligned store": ("mov.u32 %r9, 6;\nst.shared.b32 [%r9], 7;", "misaligned: 4 bytes at"),
    "uninitialised shared memory": ("ld.shared.b32 %r9, [%r3];", "uninitialised read"),
    "write after write": ("st.global.b32 [%rd3], %r1;\nst.global.b32 [%rd4], %r1;", "race: writes what another thread wrote"),
    "write after read": ("ld.global.b32 %r9, [%rd3];\nst.global.b32 [%rd4], %r9;", "race: writes what another thread read"),
    "write after a read by several": ("ld.global.b32 %r9, [%rd1];\nst.global.b32 [%rd1], %r9;", "race: writes what another thread read"),
    "read after write": ("st.global.b32 [%rd3], %r1;\nld.global.b32 %r9, [%rd4];", "race: reads what another thread wrote"),
    "read after write between warps": ("st.shared.b32 [%r3], %r1;\nld.shared.b32 %r9, [%r5];", "race: reads what another thread wrote"),
    "different data at one address": ("st.global.b32 [%rd1], %r1;", "race: two threads store different data at one address"),
    "read beside an addition": (
        "atom.global.gpu.relaxed.add.u32 %r9, [%rd1], 1;\nld.global.b32 %r9, [%rd1];",
        "race: reads or writes what another thread adds to",
    ),
    "write beside an addition": (
        "atom.global.gpu.relaxed.add.u32 %r9, [%rd3], 1;\nst.global.b32 [%rd4], %r1;",
        "race: reads or writes what another thread adds to",
    ),
    "addition beside a read": (
        "ld.global.b32 %r9, [%rd3];\natom.global.gpu.relaxed.add.u32 %r9, [%rd4], 1;",
        "race: adds to what another thread reads or writes as it likes",
    ),
    "addition beside a write": (
        "st.global.b32 [%rd3], %r1;\natom.global.gpu.relaxed.add.u32 %r9, [%rd4], 1;",
        "race: adds to what another thread reads or writes as it likes",
    ),
    "addition past the end": ("atom.global.gpu.relaxed.add.u32 %r9, [%rd3+4], 1;", "out of bounds: 4 bytes at"),
    "barrier for a part of the threads": (
        "setp.lt.s32 %p1, %r1, 8;\n@%p1 bra $L_end;\nbar.sync 0;\n$L_end:",
        "only a part of the threads arrives",
    ),
    "barrier for a warp": ("setp.lt.s32 %p1, %r1, 32;\n@%p1 bra $L_end;\nbar.sync 0;\n$L_end:", "only a part of the threads arrives"),
    "shuffle in a part of a warp": (
        "setp.lt.s32 %p1, %r1, 8;\n@%p1 bra $L_end;\nshfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;\n$L_end:",
        "only a part of a warp arrives",
    ),
    "shuffle among some": ("shfl.sync.bfly.b32 %r9, %r1, 1, 31, 255;", "only for all lanes of a warp"),
    "an address that nobody computed": ("ld.global.b32 %r9, [%rd50];", "out of bounds"),
}


@pytest.mark.parametrize("name", FLAGGED)
def test_flagged(name):
    code, message = FLAGGED[name]
    with pytest.raises(PtxError, match=rf"^k: ({message}).* at made_up\.py:7:3\)$"):
        run(code)


def test_uninitialised_global_memory():
    masked = "setp.ne.s32 %p1, %r1, 5;\n@%p1 ld.global.b32 %r9, [%rd3];"
    run(masked, unwritten=(5,))
    with pytest.raises(PtxError, match=r"k: uninitialised read: nobody wrote there \(ld\.global\.b32 at made_up\.py:7:3\)"):
        run(masked, unwritten=(5, 6))
    run(f"st.global.b32 [%rd3], %r1;\n{masked}", unwritten=(5, 6))


@pytest.mark.parametrize("first", ["ld.global.b32 %r9, [%rd3];", "st.global.b32 [%rd3], 7;"])
def test_two_programs_at_one_address(first):
    """Nothing orders programs: one that writes what another one touched is wrong even where barriers stand between."""
    with pytest.raises(PtxError, match="race: writes what another CTA read or wrote"):
        run(f"{first}\nbar.sync 0;\nst.global.b32 [%rd3], 7;", grid=2)
    owned = "setp.eq.s32 %p1, %r2, 0;\n@%p1 st.global.b32 [%rd3], 7;\nsetp.ne.s32 %p2, %r2, 0;\n@%p2 ld.global.b32 %r9, [%rd3];"
    with pytest.raises(PtxError, match="race: reads what another CTA wrote"):
        run(owned, grid=2)
    run("ld.global.b32 %r9, [%rd3];", grid=2)


# Code, and programs that run it.
PASSES = {
    "own address": ("ld.global.b32 %r9, [%rd3];\nst.global.b32 [%rd3], %r9;\nld.global.b32 %r9, [%rd3];", 1),
    "a barrier between": ("st.shared.b32 [%r3], %r1;\nbar.sync 0;\nld.shared.b32 %r9, [%r5];\nbar.sync 0;\nst.shared.b32 [%r5], %r9;", 3),
    "lanes of one warp in shared memory": ("st.shared.b32 [%r3], %r1;\nld.shared.b32 %r9, [%r4];", 3),
    "the same data at one address": ("st.global.b32 [%rd1], 7;", 1),
    "reads by all": ("ld.global.b32 %r9, [%rd1];\nld.global.b32 %r10, [%rd4];", 3),
    "a barrier that whole programs pass": ("setp.lt.s32 %p1, %r2, 1;\n@%p1 bra $L_end;\nbar.sync 0;\n$L_end:", 3),
}


@pytest.mark.parametrize("name", PASSES)
def test_passes(name):
    run(*PASSES[name])


def test_additions_of_all_threads_meet():
    assert run("atom.global.gpu.relaxed.add.u32 %r9, [%rd1], %r1;", grid=3)[0] == 1000 + 3 * sum(range(64))


def test_barriers_exchange_between_warps():
    code = "st.shared.b32 [%r3], %r1;\nbar.sync 0;\nld.shared.b32 %r9, [%r5];\nst.global.b32 [%rd3], %r9;"
    assert run(code).tolist() == [thread ^ 32 for thread in range(64)]


def test_nested_branches_meet():
    """Threads below 8 add 1, of the others those below 40 add 10, and all add 100 in the end."""
    code = """mov.u32 %r9, 0;
        setp.ge.s32 %p1, %r1, 8;
        @%p1 bra $L_more;
        add.s32 %r9, %r9, 1;
        bra.uni $L_end;
        $L_more:
        setp.ge.s32 %p2, %r1, 40;
        @%p2 bra $L_end;
        add.s32 %r9, %r9, 10;
        $L_end:
        add.s32 %r9, %r9, 100;
        bar.sync 0;
        st.global.b32 [%rd3], %r9;"""
    assert run(code).tolist() == [101] * 8 + [110] * 32 + [100] * 24


def test_programs_part_and_go_on_alone():
    """Program 1 writes the upper half alone; nothing is written twice."""
    code = """setp.eq.s32 %p1, %r2, 1;
        @%p1 bra $L_one;
        setp.lt.s32 %p2, %r1, 32;
        @%p2 st.global.b32 [%rd3], 5;
        bra.uni $L_end;
        $L_one:
        setp.ge.s32 %p3, %r1, 32;
        @%p3 st.global.b32 [%rd3], 6;
        $L_end:"""
    assert run(code, grid=2).tolist() == [5] * 32 + [6] * 32


def test_what_is_counted():
    """Two warps: 4 bytes a thread are four sectors a warp, one address for all is one, and what a predicate turns off asks for nothing."""
    room = np.zeros(16 + 256, np.uint32)
    first = room[-room.ctypes.data // 4 % 8 :][:64]
    code = """ld.global.b32 %r9, [%rd3];
        ld.global.b32 %r9, [%rd1];
        setp.lt.s32 %p1, %r1, 8;
        @%p1 ld.global.b32 %r9, [%rd3];
        bar.sync 0;
        st.global.b32 [%rd3], 7;
        st.shared.b32 [%r3], 7;"""
    machine = Machine(parse(f"{HEADER}{PLACES}{code}\nret;\n}}\n"), shared_bytes=256)
    memory = GlobalMemory([(first.ctypes.data, first.nbytes)], machine.cell)
    counters = machine.run(1, {"k_param_0": np.uint64(first.ctypes.data), "k_param_1": np.uint64(0)}, memory)
    assert counters.sectors == {"ld": 2 * 4 + 2 * 1 + 1, "st": 8}
    assert counters.requests == {("global", "ld"): 5, ("global", "st"): 2, ("shared", "st"): 2}
    assert counters.bytes == {("global", "ld"): 2 * 256 + 32, ("global", "st"): 256, ("shared", "st"): 256}
    assert counters.warp_instructions == 2 * (11 + 7 + 1)
    assert counters.longest == counters.warp_instructions


def test_a_sample_runs_alone():
    """Of a grid of a billion only what is asked for."""
    first = np.zeros(64, np.uint32)
    machine = Machine(parse(f"{HEADER}{PLACES}st.global.b32 [%rd3], %r2;\nret;\n}}\n"), shared_bytes=0)
    memory = GlobalMemory([(first.ctypes.data, first.nbytes)], machine.cell)
    counters = machine.run(10**9, {"k_param_0": np.uint64(first.ctypes.data), "k_param_1": np.uint64(0)}, memory, ctas=[10**9 - 1])
    assert counters.ctas == 1
    assert first.tolist() == [10**9 - 1] * 64
