"""difference_rewards against one segment at a time."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm_kernels import cu_from_lengths, difference_rewards

RAGGED = [0, 3, 1, 0, 5, 700, 0]


def by_segment(value, cu_boundaries):
    out = []
    for a, b in zip(cu_boundaries[:-1].tolist(), cu_boundaries[1:].tolist(), strict=True):
        out += [value[i] - value[i - 1] if i > a else value[i] for i in range(a, b)]
    return torch.stack(out) if out else value.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_rewards_and_gradient(compare, random, dtype):
    compare(difference_rewards, by_segment, {"value": random(0, sum(RAGGED))}, dtype, cu_boundaries=cu_from_lengths(RAGGED))


@pytest.mark.parametrize("lengths", [[], [0, 0], [1], [3000]], ids=["none", "empty", "one", "long"])
def test_lengths(compare, random, lengths):
    compare(
        difference_rewards, by_segment, {"value": random(0, sum(lengths))}, torch.float32, cu_boundaries=cu_from_lengths(lengths).long()
    )


def test_a_nan_stays_in_its_segment(lane):
    value = torch.tensor([1.0, torch.nan, 5.0, 7.0], device=lane.device)
    out = difference_rewards(value, cu_from_lengths([2, 2]).to(lane.device), backend=lane.backend)
    assert out[2:].tolist() == [5, 2]


def test_extreme_values_and_a_shift(lane, random):
    cu_boundaries = cu_from_lengths([4, 2]).to(lane.device)
    value = torch.tensor([1e4, -1e4, 1e4, 1e4, -torch.inf, 5.0], device=lane.device)
    assert difference_rewards(value, cu_boundaries, backend=lane.backend).tolist() == [1e4, -2e4, 2e4, 0, -torch.inf, torch.inf]
    # Multiples of 1/1024 stay exact under the shift: what a sentence adds is the same, only the first of a segment moves.
    value = (random(0, 6).to(lane.device, torch.float32) * 1024).round() / 1024
    shift = difference_rewards(value + 64, cu_boundaries, backend=lane.backend) - difference_rewards(
        value, cu_boundaries, backend=lane.backend
    )
    assert shift.tolist() == [64, 0, 0, 0, 64, 0]


def test_non_contiguous(lane, random):
    value = random(0, 10, 2).to(lane.device, torch.float32)[:, 1]
    cu_boundaries = torch.tensor([0, 9, 4, 9, 10, 9], device=lane.device)[::2]
    assert torch.equal(
        difference_rewards(value, cu_boundaries, backend=lane.backend),
        difference_rewards(value.clone(), cu_boundaries.clone(), backend="torch"),
    )


def test_same_bits_twice(lane, random):
    value = random(0, sum(RAGGED)).to(lane.device, torch.float32).requires_grad_()
    cu_boundaries = cu_from_lengths(RAGGED).to(lane.device)
    cotangent = random(1, sum(RAGGED)).to(lane.device, torch.float32)
    runs = [difference_rewards(value, cu_boundaries, backend=lane.backend) for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(*(torch.autograd.grad(out, value, cotangent)[0] for out in runs))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout(lane, data):
    lengths = data.draw(st.lists(st.integers(0, 9), max_size=12))
    cu_boundaries = cu_from_lengths(lengths)
    value = torch.randn(sum(lengths), dtype=torch.float64, requires_grad=True)
    out = difference_rewards(value.to(lane.device), cu_boundaries.to(lane.device), backend=lane.backend).cpu()
    expected = by_segment(value, cu_boundaries)
    assert torch.equal(out, expected)
    cotangent = torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, value, cotangent), torch.autograd.grad(expected, value, cotangent))
    for a, b in zip(cu_boundaries[:-1].tolist(), cu_boundaries[1:].tolist(), strict=True):  # The inverse that the docstring promises.
        torch.testing.assert_close(out[a:b].cumsum(0), value[a:b])


def test_errors():
    with pytest.raises(ValueError, match=r"`value` must have shape \[N\], got \[2, 2\]"):
        difference_rewards(torch.ones(2, 2), torch.tensor([0, 2]))
