"""The 16-bit backward pass on the CPU against fp64, and beside torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from srm.packing.backends import sdpa
from srm.packing.backends.cpu_backward import BLOCK, CpuAttention
from srm.packing.plan import AttentionPlan


def _inputs(heads: int, groups: int, rows: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(rows + columns)
    shapes = ((heads, rows), (groups, columns), (groups, columns))
    return [torch.randn(1, h, n, 16).mul(2).to(dtype).requires_grad_() for h, n in shapes]


def _mask(rows: int, columns: int, window: int | None) -> Tensor:
    distance = torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)
    hidden = (distance < 0) | (distance >= (window or columns))
    return torch.zeros(rows, columns).masked_fill(hidden, -torch.inf)


def _errors(inputs: list[Tensor], grad: Tensor, mask: Tensor, output: Tensor) -> list[float]:
    """Of output and gradients, relative to attention in fp64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    k, v = (x.repeat_interleave(exact[0].shape[1] // x.shape[1], dim=1) for x in exact[1:])
    expected = torch.softmax(exact[0] @ k.mT / 4 + mask, -1) @ v
    pairs = zip(
        (output, *torch.autograd.grad(output, inputs, grad)), (expected, *torch.autograd.grad(expected, exact, grad.double())), strict=True
    )
    return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "groups", "rows", "prefix", "window"),
    [
        (6, 2, 7, 0, None),
        (4, 4, 1, 5, None),
        (6, 3, 40, 21, None),
        (2, 1, BLOCK + 33, 0, None),
        (2, 1, BLOCK + 9, 70, None),
        (4, 2, 60, 30, 11),
    ],
)
def test_gradients_are_as_near_to_fp64_as_torchs_own(
    heads: int, groups: int, rows: int, prefix: int, window: int | None, dtype: torch.dtype
) -> None:
    inputs = _inputs(heads, groups, rows, prefix + rows, dtype)
    grad = torch.randn(1, heads, rows, 16).to(dtype)
    mask = _mask(rows, prefix + rows, window)
    given = None if prefix == 0 and window is None else mask.to(dtype)
    ours = _errors(inputs, grad, mask, CpuAttention.apply(*inputs, given, 0.25))
    theirs = scaled_dot_product_attention(*inputs, attn_mask=given, is_causal=given is None, scale=0.25, enable_gqa=True)
    for mine, other in zip(ours, _errors(inputs, grad, mask, theirs), strict=True):
        assert mine < max(1.5 * other, torch.finfo(dtype).eps)


def test_packed_training_in_16_bits_takes_it_and_fp32_scoring_and_one_thread_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []
    real = CpuAttention.apply

    def apply(query: Tensor, *rest: object) -> Tensor:
        calls.append(query.dtype)
        return real(query, *rest)

    monkeypatch.setattr(CpuAttention, "apply", apply)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    plan = AttentionPlan(lengths=(5, 3, 4), parents=(-1, 0, 0))
    settings = {"scaling": 0.25, "dropout": 0.0, "window": None}
    inputs = _inputs(4, 2, 12, 12, torch.float32)
    exact = sdpa.attend(*inputs, plan, **settings)
    assert calls == []
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sdpa.attend(*inputs, plan, **settings)
        # As in training, where autocast may still be on.
        gradients = torch.autograd.grad(rounded.float().sum(), inputs)
    assert calls == [torch.bfloat16] * 3
    for a, b in zip(gradients, torch.autograd.grad(exact.sum(), inputs), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.03 * b.norm()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        sdpa.attend(*inputs, plan, **settings)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with torch.autocast("cpu", torch.bfloat16):
        sdpa.attend(*inputs, plan, **settings)
    assert len(calls) == 3


def test_a_second_derivative_is_refused() -> None:
    inputs = _inputs(2, 1, 4, 4, torch.bfloat16)
    (first,) = torch.autograd.grad(CpuAttention.apply(*inputs, None, 0.25).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
