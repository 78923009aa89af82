"""The 16-bit backward pass on the CPU against fp64, and beside torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srm.packing.backends import cpu_backward, sdpa
from srm.packing.backends.cpu_backward import BLOCK
from srm.packing.plan import AttentionPlan

SCALE = 0.2  # no power of two, which would be exact in every dtype


def _inputs(heads: int, groups: int, plan: AttentionPlan, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(plan.num_tokens)
    # As a projection leaves them: heads innermost.
    shapes = ((1, plan.num_tokens, h, 16) for h in (heads, groups, groups))
    return [torch.randn(shape).mul(2).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def _exact(inputs: list[Tensor], plan: AttentionPlan, window: int | None) -> Tensor:
    """[1, T, H, E]: one dense matrix of scores, every key of every segment in it."""
    q, k, v = inputs
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    seen = torch.zeros(plan.num_tokens, plan.num_tokens, dtype=torch.bool)
    for segment, (rows, parent) in enumerate(zip(plan.rows, plan.parents, strict=True)):
        columns = torch.arange(plan.num_tokens)
        of_segment = columns[rows]
        if parent >= 0:
            of_segment = torch.cat([columns[plan.rows[parent]], of_segment])
        for i, row in enumerate(columns[rows]):
            sees = plan.prefix(segment) + i + 1
            seen[row, of_segment[max(0, sees - (window or sees)) : sees]] = True
    return ((q @ k.mT * SCALE).masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "groups", "lengths", "parents", "window"),
    [
        (6, 2, (7,), (-1,), None),
        (4, 4, (5, 1, 1), (-1, 0, 0), None),
        (6, 3, (21, 40, 9, 13, 30), (-1, 0, 0, -1, 3), None),
        (2, 1, (BLOCK + 33,), (-1,), None),
        (2, 1, (70, BLOCK + 9, 20), (-1, 0, 0), None),
        (4, 2, (30, 60, 8, 50), (-1, 0, 0, -1), 11),
        (2, 2, (40, BLOCK + 9), (-1, 0), 33),
    ],
)
def test_gradients_are_as_near_to_fp64_as_torchs_own(
    heads: int, groups: int, lengths: tuple[int, ...], parents: tuple[int, ...], window: int | None, dtype: torch.dtype
) -> None:
    plan = AttentionPlan(lengths=lengths, parents=parents)
    inputs = _inputs(heads, groups, plan, dtype)
    grad = torch.randn(1, plan.num_tokens, heads, 16).to(dtype)
    in_fp64 = [x.detach().double().requires_grad_() for x in inputs]
    output = _exact(in_fp64, plan, window)
    expected = (output, *torch.autograd.grad(output, in_fp64, grad.double()))

    def errors(output: Tensor) -> list[float]:
        found = (output, *torch.autograd.grad(output, inputs, grad))
        return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]

    ours = errors(sdpa.attend(*inputs, plan, scaling=SCALE, dropout=0.0, window=window))
    theirs = errors(sdpa._attend(*inputs, plan, scale=SCALE, dropout=0.0, window=window))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine < max(1.5 * other, torch.finfo(dtype).eps)


def test_training_in_16_bits_takes_it_and_fp32_and_scoring_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []
    real = cpu_backward.gradients

    def gradients(query: Tensor, *rest: object, **settings: object) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(query.dtype)
        return real(query, *rest, **settings)

    monkeypatch.setattr(cpu_backward, "gradients", gradients)
    plan = AttentionPlan(lengths=(5, 3, 4), parents=(-1, 0, 0))
    settings = {"scaling": SCALE, "dropout": 0.0, "window": None}
    inputs = _inputs(4, 2, plan, torch.float32)
    expected = torch.autograd.grad(sdpa.attend(*inputs, plan, **settings).sum(), inputs)
    assert calls == []
    with torch.autocast("cpu", torch.bfloat16):
        # The backward pass too, as where a trainer leaves autocast on.
        gradients_in_bf16 = torch.autograd.grad(sdpa.attend(*inputs, plan, **settings).float().sum(), inputs)
    assert calls == [torch.bfloat16]
    for a, b in zip(gradients_in_bf16, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.03 * b.norm()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert sdpa.attend(*inputs, plan, **settings).grad_fn is None


def test_a_second_derivative_is_refused() -> None:
    plan = AttentionPlan(lengths=(4,), parents=(-1,))
    inputs = _inputs(2, 1, plan, torch.bfloat16)
    output = sdpa.attend(*inputs, plan, scaling=SCALE, dropout=0.0, window=None)
    (first,) = torch.autograd.grad(output.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
