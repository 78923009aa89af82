"""Offsets past 2^31 elements, without a GPU: memory that nobody touches does not exist, and of grids of millions the two ends run.

What lies at the end must come out as it does alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from srm_kernels import (
    difference_rewards,
    gather_boundaries,
    segment_softmax,
    sentence_attention_pool,
    token_rewards,
)

pytestmark = pytest.mark.interpreter

# The last four programs of 128 tokens own the last 488.
NUM_TOKENS, TAIL, FOUR = 2**31 + 1000, 400, 4
WIDTH = 1024
NUM_ROWS = 2**31 // WIDTH + 8
# Segments of 8 rows: short, because a program walks through all of one.
CU_ROWS = torch.arange(0, NUM_ROWS + 1, 8)


@pytest.fixture(autouse=True)
def last(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """`last["programs"]` at the end of a huge grid run, and the first one."""
    import triton
    from triton.runtime import interpreter

    last = {"programs": 1}

    def ends(*arguments: int) -> Any:
        whole = range(*arguments)
        return (whole[0], *whole[-last["programs"] :]) if len(whole) > 100_000 else whole

    if triton.knobs.runtime.interpret:
        monkeypatch.setattr(interpreter, "range", ends, raising=False)
    else:  # The emulator's driver; what it checks would take memory for each element.
        monkeypatch.setattr(triton.runtime.driver.active, "sample", ends)
        monkeypatch.setattr(triton.runtime.driver.active, "check", False)
    try:
        torch.empty(NUM_TOKENS, dtype=torch.float32)
    except RuntimeError:
        pytest.skip("the system lends no 9 GB of memory, not even untouched")
    return last


def untouched(tail: Tensor, *shape: int) -> Tensor:
    """[*shape] that ends with `tail`, and begins with zeros for the program that runs there; the rest is never written."""
    x = torch.empty(shape, dtype=tail.dtype)
    x[: len(tail)] = 0
    x[-len(tail) :] = tail
    return x


def ends_agree(far: tuple[Callable[..., Tensor], list[Tensor]], alone: tuple[Callable[..., Tensor], list[Tensor]]) -> None:
    """Output and gradients of `far`, a function and its arguments, end with those of `alone`."""
    (run, leaves), (run_alone, leaves_alone) = ((run, [x.requires_grad_() for x in leaves]) for run, leaves in (far, alone))
    out, expected = run(*leaves), run_alone(*leaves_alone)
    flowing = torch.arange(1.0, expected.numel() + 1).to(expected.dtype).reshape(expected.shape) / expected.numel()
    grads = torch.autograd.grad(out, leaves, untouched(flowing, *out.shape))
    expected_grads = torch.autograd.grad(expected, leaves_alone, flowing)
    for got, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert wanted.any()
        torch.testing.assert_close(got[-len(wanted) :], wanted)


@pytest.fixture
def half(random: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: random(*arguments).half()


def test_gather(half):
    rows, boundaries = half(0, 4, WIDTH), torch.tensor([3, 0, 3, 2])

    def run(offset: int) -> Callable[..., Tensor]:
        return lambda x: gather_boundaries(x, boundaries + offset, backend="triton")

    ends_agree((run(NUM_ROWS - 4), [untouched(rows, NUM_ROWS, WIDTH)]), (run(0), [rows]))


def test_softmax(half, last):
    heads, last["programs"] = 64, 4  # A program owns 16 heads.
    num, rows = 2**31 // heads + 8, half(0, 8, heads)

    def run(cu: Tensor) -> Callable[..., Tensor]:
        return lambda x: segment_softmax(x, cu, backend="triton")

    far = run(torch.arange(0, num + 1, 8)), [untouched(rows, num, heads)]
    ends_agree(far, (run(torch.tensor([0, 8])), [rows]))


def test_pool(half):
    tails = [half(0, 1, WIDTH), half(1, 8, WIDTH), half(2, 8)]
    far = [untouched(x, n, *x.shape[1:]) for x, n in zip(tails, (len(CU_ROWS) - 1, NUM_ROWS, NUM_ROWS), strict=True)]

    def run(cu: Tensor) -> Callable[..., Tensor]:
        return lambda *x: sentence_attention_pool(*x, cu, backend="triton")[0]

    ends_agree((run(CU_ROWS), far), (run(torch.tensor([0, 8])), tails))


def test_difference(half, last):
    values, last["programs"] = half(0, TAIL), FOUR

    def run(*offsets: int) -> Callable[..., Tensor]:
        return lambda x: difference_rewards(x, torch.tensor(offsets), backend="triton")

    ends_agree((run(0, NUM_TOKENS - TAIL, NUM_TOKENS), [untouched(values, NUM_TOKENS)]), (run(0, TAIL), [values]))


def test_token_rewards(half, last):
    last["programs"] = FOUR
    boundaries, cu, tails = torch.tensor([TAIL // 2, TAIL - 1]), torch.tensor([0, 2]), [half(0, TAIL), half(1, TAIL)]

    def run(offset: int) -> Callable[..., Tensor]:
        return lambda r, x, y: token_rewards(r, boundaries + offset, cu, x, y, 0.1, "k3", backend="triton")

    ends_agree((run(NUM_TOKENS - TAIL), [half(2, 2), *(untouched(x, NUM_TOKENS) for x in tails)]), (run(0), [half(2, 2), *tails]))


def test_bradley_terry(half, last):
    """The kernel by itself: autograd would scale billions of zeros."""
    from srm_kernels.ops.bradley_terry_loss.kernels import bradley_terry_loss_with_grad

    last["programs"] = 7  # A program owns 64 responses.
    rewards, pairs = half(0, TAIL), torch.tensor([[0, 1], [TAIL - 1, 0], [200, TAIL - 2]], dtype=torch.int64)
    far = bradley_terry_loss_with_grad(untouched(rewards, NUM_TOKENS), pairs + (NUM_TOKENS - TAIL), None, None, 0.1, 0.01)
    alone = bradley_terry_loss_with_grad(rewards, pairs, None, None, 0.1, 0.01)
    torch.testing.assert_close((far[0], far[1][-TAIL:]), alone)


def test_gae(half, monkeypatch):
    """Its two passes by themselves: autograd would fill the gradient of an output that is not used with billions of zeros."""
    from srm_kernels.ops.packed_gae import kernels

    class NoCarry:
        """Millions of chunks would take the interpreter minutes; the last sequence lies in one."""

        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            return lambda *arguments, **constants: None

    monkeypatch.setattr(kernels, "carry_kernel", NoCarry())
    monkeypatch.setattr(kernels, "CHUNK", 64)  # It scans element by element.
    tail = NUM_TOKENS % 64
    cu, cu_alone = torch.tensor([0, NUM_TOKENS - tail, NUM_TOKENS]), torch.tensor([0, tail])
    for tails, run in (
        ([half(0, tail), half(1, tail)], lambda r, v, cu: kernels.packed_gae_forward(r, v, cu, 0.99, 0.95, None)),
        ([half(2, tail).float(), half(3, tail).float()], lambda a, r, cu: kernels.packed_gae_backward(a, r, cu, 0.99, 0.95)[:2]),
    ):
        far = run(*(untouched(x, NUM_TOKENS) for x in tails), cu)
        for got, wanted in zip(far, run(*tails, cu_alone), strict=True):
            torch.testing.assert_close(got[-tail:], wanted)
