"""gather_boundaries against one row at a time."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm_kernels import gather_boundaries

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Out of order, repeated, first and last token.
POSITIONS = torch.tensor([7, 0, 7, 12, 3, 18, 7, 3])


def by_row(hidden, boundaries):
    return torch.stack([hidden[int(t)] for t in boundaries]) if len(boundaries) else hidden[:0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [576, 1032, 1, 1025])
def test_rows_and_gradient(compare, random, width, dtype):
    """One block of columns and several, in rows that begin at multiples of 16 bytes and in between."""
    compare(gather_boundaries, by_row, {"hidden": random(0, 19, width)}, dtype, boundaries=POSITIONS)


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


def test_a_nan_stays_in_its_row(lane, random):
    hidden = random(0, 6, 16).to(lane.device, torch.float32)
    hidden[3, 5] = torch.nan
    boundaries = torch.tensor([2, 3, 4, 2], device=lane.device)
    out = gather_boundaries(hidden.requires_grad_(), boundaries, backend=lane.backend)
    assert out.isnan().any(1).tolist() == [False, True, False, False]
    (grad,) = torch.autograd.grad(out, hidden, torch.where(out.isnan().any(1, keepdim=True), torch.nan, torch.ones_like(out)))
    assert grad.isnan().all(1).tolist() == [False, False, False, True, False, False]
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
    boundaries = torch.zeros(0 if shape[1] else 3, dtype=torch.int64, device=lane.device)
    out = gather_boundaries(hidden, boundaries, backend=lane.backend)
    assert out.shape == (boundaries.numel(), shape[1])
    (grad,) = torch.autograd.grad(out.sum(), hidden)
    assert grad.shape == hidden.shape
    assert not grad.any()


def test_same_bits_twice(lane, random):
    hidden = random(0, 30, 48).to(lane.device, torch.float32).requires_grad_()
    boundaries = torch.randint(0, 30, (70,), generator=torch.Generator().manual_seed(3)).to(lane.device)
    grads = [torch.autograd.grad(gather_boundaries(hidden, boundaries, backend=lane.backend).square().sum(), hidden)[0] for _ in range(2)]
    assert torch.equal(*grads)


@pytest.mark.parametrize(("dtype", "large"), [(torch.bfloat16, 256), (torch.float16, 2048)], ids=str)
@pytest.mark.parametrize("out_dtype", [None, torch.float32], ids=str)
def test_siblings_that_nearly_cancel(lane, dtype, large, out_dtype):
    """300 responses share a prompt. What is left of their gradients is lost where they are summed in 16 bits: `large` + 1 is `large`.

    At int32 positions, because PyTorch's index_add_ sums 16-bit numbers at int64 ones in fp32 by itself. fp32 rows bring gradients that
    16 bits do not hold.
    """
    hidden = torch.ones(6, 16, dtype=dtype, device=lane.device, requires_grad=True)
    positions = torch.full((300,), 4, dtype=torch.int32, device=lane.device)
    out = gather_boundaries(hidden, positions, out_dtype=out_dtype, backend=lane.backend)
    rest = 0.5 if out.dtype == torch.float32 else 0.0
    flowing = torch.tensor([large + rest, 1 - rest, -large]).repeat(100).to(lane.device, out.dtype)[:, None].expand_as(out)
    (grad,) = torch.autograd.grad(out, hidden, flowing)
    assert grad.dtype == dtype
    assert grad[4].unique().tolist() == [100]
    assert not grad[[0, 1, 2, 3, 5]].any()


def test_sums_in_fp64_round_once(lane):
    """fp32 rows of fp64 states: their gradients sum in fp64, where 2^24 + 1 is a number."""
    hidden = torch.ones(2, 8, dtype=torch.float64, device=lane.device, requires_grad=True)
    out = gather_boundaries(hidden, torch.zeros(3, dtype=torch.int64, device=lane.device), out_dtype=torch.float32, backend=lane.backend)
    flowing = torch.tensor([2.0**24, 1.0, -(2.0**24)], device=lane.device)[:, None].expand_as(out)
    (grad,) = torch.autograd.grad(out, hidden, flowing)
    assert grad.dtype == torch.float64
    assert grad[:, 0].tolist() == [1, 0]


def test_wider_output(lane, random):
    hidden = random(0, 6, 16).to(lane.device, torch.bfloat16)
    positions = torch.tensor([4, 1, 4], device=lane.device)
    out = gather_boundaries(hidden, positions, out_dtype=torch.float32, backend=lane.backend)
    assert out.dtype == torch.float32
    assert torch.equal(out, hidden[positions].float())


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout(lane, data):
    num_tokens = data.draw(st.integers(1, 12))
    index_dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
    boundaries = torch.tensor(data.draw(st.lists(st.integers(0, num_tokens - 1), max_size=8)), dtype=index_dtype)
    hidden = torch.randn(num_tokens, 5, dtype=torch.float64, requires_grad=True)
    out = gather_boundaries(hidden.to(lane.device), boundaries.to(lane.device), backend=lane.backend).cpu()
    expected = by_row(hidden, boundaries)
    assert torch.equal(out, expected)
    cotangent = torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, hidden, cotangent), torch.autograd.grad(expected, hidden, cotangent))


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
    with pytest.raises(TypeError, match=r"`hidden` must be floating point .*, got torch\.int64"):
        gather_boundaries(hidden.long(), boundaries)
    with pytest.raises(TypeError, match=r"`hidden` must be floating point \(fp16, bf16, fp32 or fp64\), got torch\.float8_e4m3fn"):
        gather_boundaries(hidden.to(torch.float8_e4m3fn), boundaries)
    with pytest.raises(TypeError, match=r"`out_dtype` must be floating point .*, got torch\.int64"):
        gather_boundaries(hidden, boundaries, out_dtype=torch.int64)
