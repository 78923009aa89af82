"""Kernels of ours, broken on purpose: the emulator sees what the interpreter cannot, and what it could not tell apart from luck."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

import srm_kernels as ops
from srm_kernels import compile_check
from srm_kernels.ops.packed_gae import kernels as gae

from .driver import emulated
from .program import PtxError

BARRIER = "tl.debug_barrier()"
# Comparisons with a count, or with the end of a segment: with <= a mask reaches one element too far.
BELOW = re.compile(r" < (num\w*|end)\b")


def boundaries() -> tuple[torch.Tensor, torch.Tensor]:
    """One response of 700 sentences, an empty one, and short ones; no count is a multiple of a block."""
    cu = ops.cu_from_lengths([700, 0, 2, 1])
    return torch.arange(703) * 3 % 1000, cu


def gather() -> tuple[torch.Tensor, list[torch.Tensor]]:
    hidden = torch.zeros(1001, 24, requires_grad=True)
    return ops.gather_boundaries(hidden, boundaries()[0], backend="triton"), [hidden]


def softmax() -> tuple[torch.Tensor, list[torch.Tensor]]:
    score = torch.zeros(703, 3, requires_grad=True)
    return ops.segment_softmax(score, boundaries()[1], backend="triton"), [score]


def difference() -> tuple[torch.Tensor, list[torch.Tensor]]:
    value = torch.zeros(703, requires_grad=True)
    return ops.difference_rewards(value, boundaries()[1], backend="triton"), [value]


def pool() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """So wide a key that no reduction between the passes brings a barrier of its own, and no rotation, which would bring one too."""
    inputs = [torch.zeros(shape, requires_grad=True) for shape in ((3, 4096), (43, 4096), (43,))]
    return ops.sentence_attention_pool(*inputs, ops.cu_from_lengths([40, 0, 3]), None, pooling="attention", backend="triton")[0], inputs


def bradley_terry() -> tuple[torch.Tensor, list[torch.Tensor]]:
    reward = torch.zeros(70, requires_grad=True)
    return ops.bradley_terry_loss(reward, torch.tensor([[0, 1], [69, 2]]), centering=0.1, backend="triton"), [reward]


def token_rewards() -> tuple[torch.Tensor, list[torch.Tensor]]:
    places, cu = boundaries()
    inputs = [torch.zeros(n, requires_grad=True) for n in (703, 1001, 1001)]
    reward, logprobs, reference = inputs
    return ops.token_rewards(reward, places, cu, logprobs, reference, 0.1, "k3", backend="triton"), inputs


def packed_gae() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """More chunks than the middle pass takes at once, because the tests make them small."""
    inputs = [torch.zeros(185, requires_grad=True) for _ in range(2)]
    return ops.packed_gae(*inputs, ops.cu_from_lengths([150, 35]), 0.9, 0.8, backend="triton")[0], inputs


def head() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """In bf16: its own kernels stand around the products on tensor cores."""
    shapes = (1001, 24), (1, 24), (1,), (20, 24), (20,), (20, 24), (20,)
    hidden, *weights = inputs = [
        torch.zeros(shape, dtype=torch.bfloat16 if shape[0] == 1001 else torch.float32, requires_grad=True) for shape in shapes
    ]
    return ops.sentence_reward_head(hidden, ops.SentenceLayout(*boundaries()), *weights, backend="triton").reward, inputs


RUNS: dict[str, Callable[[], tuple[torch.Tensor, list[torch.Tensor]]]] = {
    "gather_boundaries": gather,
    "segment_softmax": softmax,
    "difference_rewards": difference,
    "sentence_attention_pool": pool,
    "bradley_terry_loss": bradley_terry,
    "token_rewards": token_rewards,
    "packed_gae": packed_gae,
    "sentence_reward_head": head,
}
OPS = list(RUNS)


def kernels(op: str) -> Iterator[JITFunction[Any]]:
    if importlib.util.find_spec(f"srm_kernels.ops.{op}.kernels") is None:
        return iter(())
    module = importlib.import_module(f"srm_kernels.ops.{op}.kernels")
    return (thing for thing in vars(module).values() if isinstance(thing, JITFunction) and thing.__module__ == module.__name__)


@contextmanager
def broken(kernel: JITFunction[Any], source: str) -> Iterator[None]:
    """The kernel with other lines; what Triton has compiled of it, and of whoever calls it, is forgotten before and after."""
    original = kernel.src
    assert source != original
    kernel._unsafe_update_src(source)
    forget()
    try:
        yield
    finally:
        kernel._unsafe_update_src(original)
        forget()


def forget() -> None:
    for op in OPS:
        for kernel in kernels(op):
            kernel.device_caches.clear()
            kernel.hash = None


def execute(op: str) -> None:
    with emulated(90):
        output, inputs = RUNS[op]()
        torch.autograd.grad(output, inputs, torch.ones_like(output))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(gae, "CHUNK", 8)


def test_every_op_with_a_kernel_is_here():
    assert set(compile_check.OPS) <= set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_as_they_are_nothing_is_flagged(op):
    execute(op)


BARRIERS = [(op, kernel, i) for op in OPS for kernel in kernels(op) for i in range(kernel.src.count(BARRIER))]


@pytest.mark.parametrize(("op", "kernel", "which"), BARRIERS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_every_barrier_is_missed(op, kernel, which):
    """One by one."""
    parts = kernel.src.split(BARRIER)
    without = f"{BARRIER.join(parts[: which + 1])}pass{BARRIER.join(parts[which + 1 :])}"
    with broken(kernel, without), pytest.raises(PtxError, match=rf"{kernel.__name__}: race: .* at kernels\.py"):
        execute(op)


MASKED = [(op, kernel) for op in OPS for kernel in kernels(op) if kernel.__name__.endswith("_kernel") and BELOW.search(kernel.src)]


@pytest.mark.parametrize(("op", "kernel"), MASKED, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_mask_that_reaches_one_element_too_far(op, kernel):
    """It reads or writes what is behind the tensor, or what another program owns: on a GPU mostly nothing happens."""
    with broken(kernel, BELOW.sub(r" <= \1", kernel.src)), pytest.raises(PtxError, match=r"out of bounds|race|uninitialised"):
        execute(op)


@triton.jit
def copy_kernel(x_ptr, out_ptr, num, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < num), mask=i < num)


def copy(x: torch.Tensor) -> torch.Tensor:
    with emulated(90):
        out = torch.empty_like(x)
        copy_kernel[(1,)](x, out, x.numel(), BLOCK=128)
    return out


@pytest.mark.parametrize(
    "make",
    [
        lambda num, dtype: torch.empty(num, dtype=dtype),
        lambda num, dtype: torch.empty_like(torch.zeros(num, dtype=dtype)),
        lambda num, dtype: torch.zeros(1).new_empty(num, dtype=dtype),
    ],
    ids=["empty", "empty_like", "new_empty"],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64])
def test_memory_that_nobody_wrote(dtype, make):
    with emulated(90):
        x = make(100, dtype)
    x[:60] = 1
    with pytest.raises(PtxError, match=r"copy_kernel: uninitialised read: nobody wrote there \(ld\.global"):
        copy(x)
    assert copy(x[:60]).tolist() == [1] * 60
    x[60:] = 2
    assert copy(x).tolist() == [1] * 60 + [2] * 40


def test_outside_of_a_slice_is_out_of_bounds():
    """Though the memory is there: it belongs to the rest of the tensor."""
    x = torch.zeros(300)
    with emulated(90), pytest.raises(PtxError, match="copy_kernel: out of bounds"):
        copy_kernel[(1,)](x[:100], x[200:], 101, BLOCK=128)
