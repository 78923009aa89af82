"""segment_softmax against one segment at a time."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm_kernels import cu_from_lengths, segment_softmax

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
RAGGED = [3, 0, 1, 5, 0, 300, 2]


def by_segment(scores, cu):
    return torch.cat([scores[:0]] + [scores[a:b].softmax(0) for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(), (1,), (3,), (17,)], ids=str)
def test_weights_and_gradient(compare, random, heads, dtype):
    compare(segment_softmax, by_segment, {"scores": random(0, sum(RAGGED), *heads)}, dtype, cu=cu_from_lengths(RAGGED))


def test_three_thousand_in_one_segment(compare, random):
    compare(segment_softmax, by_segment, {"scores": 3 * random(0, 3000)}, torch.float32, cu=cu_from_lengths([3000]).long())


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_nothing(lane, lengths):
    scores = torch.zeros(0, device=lane.device, requires_grad=True)
    out = segment_softmax(scores, cu_from_lengths(lengths).to(lane.device), backend=lane.backend)
    assert out.shape == (0,)
    assert torch.autograd.grad(out.sum(), scores)[0].shape == (0,)


def test_extreme_scores(lane):
    scores = torch.tensor([1e4, -1e4, 0.0, 1e4, -1e4, -1e4, 7.0, 7.0, 7.0, 7.0, 3.4e38], device=lane.device)
    out = segment_softmax(scores, cu_from_lengths([3, 1, 2, 4, 1]).to(lane.device), backend=lane.backend)
    assert out.tolist() == [1, 0, 0, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 1]


def test_masked_scores(lane):
    inf = torch.inf
    scores = torch.tensor([-inf, 0.0, 0.0, -inf, -inf, -inf, 2.0], device=lane.device, requires_grad=True)
    out = segment_softmax(scores, cu_from_lengths([3, 3, 1]).to(lane.device), backend=lane.backend)
    assert out.tolist() == [0, 0.5, 0.5, 0, 0, 0, 1]
    (grad,) = torch.autograd.grad(out, scores, torch.arange(7.0, device=lane.device))
    assert grad.tolist() == [0, -0.25, 0.25, 0, 0, 0, 0]


def test_shift_invariant(lane, random):
    scores = random(0, sum(RAGGED)).to(lane.device, torch.float32)
    cu = cu_from_lengths(RAGGED).to(lane.device)
    # A power of two keeps the differences exact, so the result must be too.
    shifted = segment_softmax((scores * 1024).round() / 1024 + 64, cu, backend=lane.backend)
    assert torch.equal(shifted, segment_softmax((scores * 1024).round() / 1024, cu, backend=lane.backend))


def test_a_nan_stays_in_its_segment(lane):
    out = segment_softmax(
        torch.tensor([1.0, torch.nan, 1.0, 1.0], device=lane.device), cu_from_lengths([2, 2]).to(lane.device), backend=lane.backend
    )
    assert out[:2].isnan().all()
    assert out[2:].tolist() == [0.5, 0.5]


def test_non_contiguous(lane, random):
    scores = random(0, 20, 4).to(lane.device, torch.float32)
    cu = cu_from_lengths([8, 12]).to(lane.device)
    for view in (scores[:, 1], scores.reshape(40, 2)[::2], scores[:, ::2]):
        assert torch.equal(segment_softmax(view, cu, backend=lane.backend), segment_softmax(view.clone(), cu, backend=lane.backend))


def test_same_bits_twice(lane, random):
    scores = random(0, 500).to(lane.device, torch.float32).requires_grad_()
    cu = cu_from_lengths([499, 1]).to(lane.device)
    runs = [segment_softmax(scores, cu, backend=lane.backend) for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(*(torch.autograd.grad(out.square().sum(), scores)[0] for out in runs))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout(lane, data):
    lengths = data.draw(st.lists(st.integers(0, 9), max_size=12))
    heads = data.draw(st.sampled_from([(), (1,), (5,)]))
    scores = torch.randn(sum(lengths), *heads, dtype=torch.float64, requires_grad=True)
    cu = cu_from_lengths(lengths)
    out = segment_softmax(scores.to(lane.device), cu.to(lane.device), backend=lane.backend).cpu()
    expected = by_segment(scores, cu)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, scores, cotangent), torch.autograd.grad(expected, scores, cotangent))


def test_errors():
    scores = torch.ones(4)
    with pytest.raises(ValueError, match=r"segment_softmax: `cu` must end at len\(scores\)=4, got 3 \(response 0\)"):
        segment_softmax(scores, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"`cu` must not fall, got 3 then 2 \(response 1\)"):
        segment_softmax(scores, torch.tensor([0, 3, 2, 4]))
    with pytest.raises(ValueError, match=r"`cu` must start at 0, got 1"):
        segment_softmax(scores, torch.tensor([1, 4]))
    with pytest.raises(ValueError, match=r"\[N\] or \[N, H\], got \[1, 4, 1\]"):
        segment_softmax(scores[None, :, None], torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="`cu` must be a tensor, got list"):
        segment_softmax(scores, [0, 4])
    # The shape counts on every device, though the values cannot be read there.
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match=r"segment_softmax: `cu` must have B \+ 1 entries, got none"):
            segment_softmax(scores.to(device), torch.zeros(0, dtype=torch.int64, device=device))
