"""gather_boundaries against one row at a time."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm_kernels import gather_boundaries

EPS = 1e-3
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Out of order, repeated, first and last token.
POSITIONS = torch.tensor([7, 0, 7, 12, 3, 18, 7, 3])


def by_row(hidden, boundaries, norm_weight=None, eps=EPS):
    rows = [hidden[int(t)] for t in boundaries]
    if norm_weight is not None:
        rows = [row / (row.pow(2).mean() + eps).sqrt() * norm_weight for row in rows]
    return torch.stack(rows) if rows else hidden[:0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [576, 960, 1, 4097])
def test_rows_and_gradient(compare, random, width, dtype):
    compare(gather_boundaries, by_row, {"hidden": random(0, 19, width)}, dtype, boundaries=POSITIONS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [576, 960, 1, 4097])
def test_norm_and_gradients(compare, random, width, dtype):
    floats = {"hidden": random(0, 19, width), "norm_weight": random(1, width)}
    # An output of size 4 rounds to 4 units of a dtype's tolerance.
    compare(gather_boundaries, by_row, floats, dtype, scale=4, boundaries=POSITIONS, eps=EPS)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_weight_gradient_over_several_chunks(compare, random, index_dtype):
    boundaries = torch.randint(0, 50, (150,), generator=torch.Generator().manual_seed(2)).to(index_dtype)
    floats = {"hidden": random(0, 50, 40), "norm_weight": random(1, 40)}
    compare(gather_boundaries, by_row, floats, torch.float32, scale=4, boundaries=boundaries, eps=EPS)


def test_half_gradients_at_int32_positions(compare, random):
    compare(gather_boundaries, by_row, {"hidden": random(0, 19, 8)}, torch.bfloat16, boundaries=POSITIONS.int())


def test_three_thousand_boundaries(lane, compare, random, assert_close):
    """33 gradients meet on each token. The interpreter takes 4 ms for each: of 400 there, which are found in as many steps."""
    boundaries = torch.randint(0, 90, (3000,), generator=torch.Generator().manual_seed(4))
    hidden = random(0, 90, 16)
    rows = gather_boundaries(hidden.to(lane.device, torch.float32), boundaries.to(lane.device), backend=lane.backend)
    assert_close(rows, hidden[boundaries])
    if lane.name == "interpreter":
        hidden, boundaries = hidden[:12], boundaries[:400] % 12
    compare(gather_boundaries, by_row, {"hidden": hidden}, torch.float32, scale=10, boundaries=boundaries)


def test_extreme_rows(lane):
    """The norm of nothing, of the largest and of small fp16 numbers: 0, ±1 and 1."""
    hidden = torch.tensor([[0.0, 0.0], [65504.0, -65504.0], [1e-3, 1e-3]], dtype=torch.float16, device=lane.device)
    weight, boundaries = torch.ones_like(hidden[0]), torch.arange(3, device=lane.device)
    out = gather_boundaries(hidden, boundaries, weight, 1e-12, backend=lane.backend)
    assert out.flatten().tolist() == pytest.approx([0, 0, 1, -1, 1, 1], abs=1e-3)


def test_a_nan_stays_in_its_row(lane, random):
    hidden = random(0, 6, 16).to(lane.device, torch.float32)
    hidden[3, 5] = torch.nan
    weight, boundaries = random(1, 16).to(lane.device, torch.float32), torch.tensor([2, 3, 4, 2], device=lane.device)
    hidden.requires_grad_()
    out = gather_boundaries(hidden, boundaries, weight, backend=lane.backend)
    assert out.isnan().any(1).tolist() == [False, True, False, False]
    (grad,) = torch.autograd.grad(out[:, 0].sum(), hidden)
    assert grad.isnan().any(1).tolist() == [False, False, False, True, False, False]
    assert grad.nan_to_num(1.0).any(1).tolist() == [False, False, True, True, True, False]


def test_rows_may_lie_apart_and_columns_too(lane, random, assert_close):
    base = random(0, 20, 2, 24).to(lane.device, torch.float32)
    between = base.flatten()[1:481].view(20, 24)  # Begins between two multiples of 16 bytes.
    for hidden in (base[:, 0], base[:, 1, ::2], base[:, 0, :].T, between):
        hidden = hidden.detach().requires_grad_()
        boundaries = torch.tensor([1, 5, 5, 3], device=lane.device)[::1]
        out = gather_boundaries(hidden, boundaries, backend=lane.backend)
        assert_close(out, by_row(hidden.detach().cpu().double(), boundaries.cpu()))
        (grad,) = torch.autograd.grad(out.sum(), hidden)
        assert grad[5].unique().tolist() == [2.0]
        assert grad.sum().item() == out.numel()


def test_strided_boundaries(lane, random):
    hidden = random(0, 10, 8).to(lane.device, torch.float32)
    boundaries = torch.tensor([1, 9, 2, 9, 3, 9], device=lane.device)[::2]
    assert torch.equal(gather_boundaries(hidden, boundaries, backend=lane.backend), hidden[1:4])


@pytest.mark.parametrize("shape", [(0, 8), (5, 8), (5, 0)])
def test_nothing_to_gather(lane, shape):
    hidden = torch.ones(shape, device=lane.device, requires_grad=True)
    weight = torch.ones(shape[1], device=lane.device, requires_grad=True)
    boundaries = torch.zeros(0 if shape[1] else 3, dtype=torch.int64, device=lane.device)
    out = gather_boundaries(hidden, boundaries, weight, backend=lane.backend)
    assert out.shape == (boundaries.numel(), shape[1])
    grads = torch.autograd.grad(out.sum(), (hidden, weight))
    assert [g.shape for g in grads] == [hidden.shape, weight.shape]
    assert all(not g.any() for g in grads)


def test_same_bits_twice(lane, random):
    hidden = random(0, 30, 48).to(lane.device, torch.float32).requires_grad_()
    weight = random(1, 48).to(lane.device, torch.float32).requires_grad_()
    boundaries = torch.randint(0, 30, (70,), generator=torch.Generator().manual_seed(3)).to(lane.device)
    grads = [
        torch.autograd.grad(gather_boundaries(hidden, boundaries, weight, backend=lane.backend).square().sum(), (hidden, weight))
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_wider_output(lane, random):
    hidden = random(0, 6, 16).to(lane.device, torch.bfloat16).requires_grad_()
    positions = torch.full((300,), 4, device=lane.device)
    out = gather_boundaries(hidden, positions, out_dtype=torch.float32, backend=lane.backend)
    assert out.dtype == torch.float32
    assert torch.equal(out, hidden[positions].float())
    # Summed in fp32 and rounded once: in bf16, 256 + 1 is 256.
    (grad,) = torch.autograd.grad(out.sum(), hidden)
    assert grad.dtype == torch.bfloat16
    assert grad[4].unique().tolist() == [300.0]
    assert not grad[:4].any()


def test_only_what_is_needed(lane, random):
    hidden = random(0, 6, 16).to(lane.device, torch.float32)
    weight = random(1, 16).to(lane.device, torch.float32).requires_grad_()
    gather_boundaries(hidden, torch.tensor([4, 4], device=lane.device), weight, backend=lane.backend).sum().backward()
    assert hidden.grad is None
    assert weight.grad is not None


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout(lane, data):
    num_tokens = data.draw(st.integers(1, 12))
    index_dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
    boundaries = torch.tensor(data.draw(st.lists(st.integers(0, num_tokens - 1), max_size=8)), dtype=index_dtype)
    hidden = torch.randn(num_tokens, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True) if data.draw(st.booleans()) else None
    leaves = [hidden] if weight is None else [hidden, weight]
    moved, norm = hidden.to(lane.device), None if weight is None else weight.to(lane.device)
    out = gather_boundaries(moved, boundaries.to(lane.device), norm, EPS, backend=lane.backend).cpu()
    expected = by_row(hidden, boundaries, weight)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    # Without boundaries nothing depends on the weight: no gradient for autograd, zero for us.
    loss = (expected * cotangent).sum() + sum(0 * x.sum() for x in leaves)
    torch.testing.assert_close(torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(loss, leaves))


def test_errors():
    hidden, boundaries = torch.ones(4, 3), torch.tensor([0, 3])
    with pytest.raises(ValueError, match=r"`hidden` must have shape \[T, D\], got \[1, 4, 3\]"):
        gather_boundaries(hidden[None], boundaries)
    with pytest.raises(TypeError, match=r"`boundaries` must be int32 or int64, got torch\.float32"):
        gather_boundaries(hidden, boundaries.float())
    with pytest.raises(IndexError, match=r"`boundaries` must lie in \[0, 4\), got 4"):
        gather_boundaries(hidden, boundaries + 1)
    with pytest.raises(IndexError, match="got -1"):
        gather_boundaries(hidden, boundaries - 1)
    with pytest.raises(ValueError, match=r"`norm_weight` must have shape \[D\] = \[3\], got \[2\]"):
        gather_boundaries(hidden, boundaries, torch.ones(2))
    with pytest.raises(TypeError, match=r"`hidden` must be floating point .*, got torch\.int64"):
        gather_boundaries(hidden.long(), boundaries)
    with pytest.raises(TypeError, match=r"`hidden` must be floating point \(fp16, bf16, fp32 or fp64\), got torch\.float8_e4m3fn"):
        gather_boundaries(hidden.to(torch.float8_e4m3fn), boundaries)
    with pytest.raises(TypeError, match=r"`out_dtype` must be floating point .*, got torch\.int64"):
        gather_boundaries(hidden, boundaries, out_dtype=torch.int64)
