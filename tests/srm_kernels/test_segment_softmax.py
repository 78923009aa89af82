"""segment_softmax against one segment at a time."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm_kernels import cu_from_lengths, segment_softmax

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
RAGGED = [3, 0, 1, 5, 0, 300, 2]


def by_segment(score, cu_seqlens):
    return torch.cat([score[:0]] + [score[a:b].softmax(0) for a, b in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(), (1,), (3,), (17,)], ids=str)
def test_weights_and_gradient(compare, random, heads, dtype):
    compare(segment_softmax, by_segment, {"score": random(0, sum(RAGGED), *heads)}, dtype, cu_seqlens=cu_from_lengths(RAGGED))


def test_three_thousand_in_one_segment(compare, random):
    compare(segment_softmax, by_segment, {"score": 3 * random(0, 3000)}, torch.float32, cu_seqlens=cu_from_lengths([3000]).long())


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_nothing(lane, lengths):
    score = torch.zeros(0, device=lane.device, requires_grad=True)
    out = segment_softmax(score, cu_from_lengths(lengths).to(lane.device), backend=lane.backend)
    assert out.shape == (0,)
    assert torch.autograd.grad(out.sum(), score)[0].shape == (0,)


def test_extreme_scores(lane):
    score = torch.tensor([1e4, -1e4, 0.0, 1e4, -1e4, -1e4, 7.0, 7.0, 7.0, 7.0, 3.4e38], device=lane.device)
    out = segment_softmax(score, cu_from_lengths([3, 1, 2, 4, 1]).to(lane.device), backend=lane.backend)
    assert out.tolist() == [1, 0, 0, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 1]


def test_masked_scores(lane):
    inf = torch.inf
    score = torch.tensor([-inf, 0.0, 0.0, -inf, -inf, -inf, 2.0], device=lane.device, requires_grad=True)
    out = segment_softmax(score, cu_from_lengths([3, 3, 1]).to(lane.device), backend=lane.backend)
    assert out.tolist() == [0, 0.5, 0.5, 0, 0, 0, 1]
    (grad,) = torch.autograd.grad(out, score, torch.arange(7.0, device=lane.device))
    assert grad.tolist() == [0, -0.25, 0.25, 0, 0, 0, 0]


def test_shift_invariant(lane, random):
    score = random(0, sum(RAGGED)).to(lane.device, torch.float32)
    cu_seqlens = cu_from_lengths(RAGGED).to(lane.device)
    # A power of two keeps the differences exact, so the result must be too.
    shifted = segment_softmax((score * 1024).round() / 1024 + 64, cu_seqlens, backend=lane.backend)
    assert torch.equal(shifted, segment_softmax((score * 1024).round() / 1024, cu_seqlens, backend=lane.backend))


def test_a_nan_stays_in_its_segment(lane):
    out = segment_softmax(
        torch.tensor([1.0, torch.nan, 1.0, 1.0], device=lane.device), cu_from_lengths([2, 2]).to(lane.device), backend=lane.backend
    )
    assert out[:2].isnan().all()
    assert out[2:].tolist() == [0.5, 0.5]


def test_non_contiguous(lane, random):
    score = random(0, 20, 4).to(lane.device, torch.float32)
    cu_seqlens = cu_from_lengths([8, 12]).to(lane.device)
    for view in (score[:, 1], score.reshape(40, 2)[::2], score[:, ::2]):
        assert torch.equal(
            segment_softmax(view, cu_seqlens, backend=lane.backend), segment_softmax(view.clone(), cu_seqlens, backend=lane.backend)
        )


def test_same_bits_twice(lane, random):
    score = random(0, 500).to(lane.device, torch.float32).requires_grad_()
    cu_seqlens = cu_from_lengths([499, 1]).to(lane.device)
    runs = [segment_softmax(score, cu_seqlens, backend=lane.backend) for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(*(torch.autograd.grad(out.square().sum(), score)[0] for out in runs))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout(lane, data):
    lengths = data.draw(st.lists(st.integers(0, 9), max_size=12))
    heads = data.draw(st.sampled_from([(), (1,), (5,)]))
    score = torch.randn(sum(lengths), *heads, dtype=torch.float64, requires_grad=True)
    cu_seqlens = cu_from_lengths(lengths)
    out = segment_softmax(score.to(lane.device), cu_seqlens.to(lane.device), backend=lane.backend).cpu()
    expected = by_segment(score, cu_seqlens)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, score, cotangent), torch.autograd.grad(expected, score, cotangent))


def test_errors():
    score = torch.ones(4)
    with pytest.raises(ValueError, match=r"\[N\] or \[N, H\], got \[1, 4, 1\]"):
        segment_softmax(score[None, :, None], torch.tensor([0, 1]))
