"""Where compiled kernels are executed, and where they are refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from srm_kernels import cu_from_lengths, segment_softmax

from . import plugin
from .driver import TARGETS, emulated
from .program import PtxError

SCORE, CU = torch.linspace(-3, 3, 50), cu_from_lengths([30, 0, 20])


@triton.jit
def double_kernel(x_ptr, out_ptr, factor, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i) * factor)


@pytest.mark.parametrize("target", TARGETS)
def test_ops_run_as_compiled(target):
    with emulated(target) as driver:
        out = segment_softmax(SCORE, CU, backend="triton")
    torch.testing.assert_close(out, segment_softmax(SCORE, CU, backend="torch"))
    (launch,) = driver.launches
    assert (launch.kernel, launch.grid, launch.counters.ctas) == ("segment_softmax_kernel", 3, 3)
    assert launch.counters.instructions["ex2.approx.f32"] > 0


def test_behind_the_block_all_is_as_before():
    empty, driver = torch.empty, triton.runtime.driver._active
    with emulated(90):
        assert torch.empty is not empty
    assert torch.empty is empty
    assert triton.runtime.driver._active is driver
    with pytest.raises(RuntimeError, match='segment_softmax: `backend="triton"` cannot run on cpu: Triton has no CPU backend'):
        segment_softmax(SCORE, CU, backend="triton")


def test_on_a_machine_with_a_gpu_cpu_tensors_are_executed_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    test_ops_run_as_compiled(90)


def test_a_tensor_that_is_not_on_the_cpu():
    with emulated(90), pytest.raises(PtxError, match="double_kernel: a tensor on meta; the emulator runs on CPU tensors, GPU or not"):
        double_kernel[(1,)](torch.zeros(64, device="meta"), torch.zeros(64), 2.0, BLOCK=64)


def test_the_interpreter_in_place_of_the_compiler(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    message = "TRITON_INTERPRET=1 replaces the compiler, and here is executed what the compiler writes. Unset it."
    with pytest.raises(RuntimeError, match=message), emulated(90):
        pass
    config = SimpleNamespace(getoption=lambda name: 90, stash={}, add_cleanup=None)
    with pytest.raises(pytest.UsageError, match=f"tests.ptx.plugin: {message}"):
        plugin.pytest_configure(config)


def test_what_is_not_implemented_is_said():
    x, out = torch.ones(64), torch.zeros(64)
    with emulated(90):
        with pytest.raises(PtxError, match=r"double_kernel: a grid of \(1, 2, 1\); only its first dimension is implemented"):
            double_kernel[(1, 2)](x, out, 2.0, BLOCK=64)
        with pytest.raises(PtxError, match="an argument of type u64: only pointers, i32, i64, fp32 and fp64 are implemented"):
            double_kernel[(1,)](x, out, 2**63, BLOCK=64)
        double_kernel[(1,)](x, out, 2.5, BLOCK=64)
        assert out.tolist() == [2.5] * 64


def test_every_target_is_run_by_ci():
    """One with `make test`, the others at the end."""
    root = Path(__file__).parents[2]
    (first,) = re.findall(r"^PTX_TARGETS \?= (.*)$", (root / "Makefile").read_text(), re.MULTILINE)
    (others,) = re.findall(r'PTX_TARGETS="(.*)"', (root / ".ci" / "run").read_text())
    assert sorted(map(int, f"{first} {others}".split())) == sorted(TARGETS)
