"""bradley_terry_loss against one pair at a time."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm_kernels import bradley_terry_loss

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def by_pair(reward, pairs, margin=None, label_smoothing=0.0, centering=0.0, weight=None):
    total, norm = reward.new_zeros(()), 0.0
    for p, (c, r) in enumerate(pairs.tolist()):
        d = reward[c] - reward[r] - (margin if isinstance(margin, float) else 0 if margin is None else margin[p].double())
        loss = -(1 - label_smoothing) * torch.nn.functional.logsigmoid(d) - label_smoothing * torch.nn.functional.logsigmoid(-d)
        w = 1.0 if weight is None else weight[p].item()
        total, norm = total + w * (loss + centering * (reward[c] + reward[r]) ** 2), norm + w
    return total / norm if norm else 0 * reward.sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_loss_and_gradient(compare, random, dtype, index_dtype):
    pairs = torch.tensor([[0, 1], [2, 0], [0, 3], [4, 1]], dtype=index_dtype)
    compare(bradley_terry_loss, by_pair, {"reward": random(0, 5)}, dtype, pairs=pairs)


@pytest.mark.parametrize("margin", [None, 0.7, torch.tensor([0.1, -2.0, 3.0, 0.0])], ids=["none", "number", "tensor"])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.0, 0.5, 0.25])], ids=["even", "weighted"])
@pytest.mark.parametrize(("label_smoothing", "centering"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.3, 0.5)])
def test_options(compare, random, margin, weight, label_smoothing, centering):
    options = {"margin": margin, "weight": weight, "label_smoothing": label_smoothing, "centering": centering}
    pairs = torch.tensor([[0, 1], [2, 0], [0, 3], [4, 1]])
    compare(bradley_terry_loss, by_pair, {"reward": random(0, 5)}, torch.float64, pairs=pairs, **options)


def test_a_ranking_of_three_thousand_pairs(compare, random):
    pairs = torch.tensor(list(itertools.combinations(range(79), 2)))
    compare(bradley_terry_loss, by_pair, {"reward": random(0, 90)}, torch.float32, pairs=pairs, centering=0.1)


def test_pairs_of_neighbours(compare, random):
    """Most programs meet their responses in one step over the pairs, and skip the others."""
    pairs = torch.arange(1200).reshape(-1, 2)
    compare(bradley_terry_loss, by_pair, {"reward": random(0, 1203)}, torch.float32, pairs=pairs, centering=0.1)


def test_nothing_to_compare(lane):
    reward = torch.ones(3, device=lane.device, requires_grad=True)
    none = torch.zeros(0, 2, dtype=torch.int64, device=lane.device)
    one = torch.tensor([[0, 1]], device=lane.device)
    for loss in (
        bradley_terry_loss(reward, none, backend=lane.backend),
        bradley_terry_loss(reward[:0], none, backend=lane.backend),
        bradley_terry_loss(reward, one, weight=torch.zeros(1, device=lane.device), backend=lane.backend),
    ):
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, reward)[0].any()


def test_extreme_differences(lane):
    reward = torch.tensor([1e4, -1e4, 0.0], device=lane.device, requires_grad=True)
    loss = bradley_terry_loss(reward, torch.tensor([[1, 0], [0, 1], [2, 2]], device=lane.device), backend=lane.backend)
    assert loss.item() == pytest.approx((2e4 + math.log(2)) / 3)
    assert torch.autograd.grad(loss, reward)[0].tolist() == pytest.approx([1 / 3, -1 / 3, 0])


def test_shift_invariant(lane, random):
    """Without centering only differences count; multiples of 1/1024 stay exact under the shift."""
    pairs = torch.tensor([[0, 1], [2, 0], [0, 3], [0, 1]], device=lane.device)
    reward = (random(0, 5).to(lane.device, torch.float32) * 1024).round() / 1024
    runs = []
    for x in (reward, reward + 64):
        x.requires_grad_()
        loss = bradley_terry_loss(x, pairs, 0.5, 0.1, backend=lane.backend)
        runs.append((loss, torch.autograd.grad(loss, x)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_small_losses_keep_their_digits(lane):
    reward = torch.tensor([30.0, 0.0], device=lane.device)
    loss = bradley_terry_loss(reward, torch.tensor([[0, 1]], device=lane.device), backend=lane.backend)
    assert loss.item() == pytest.approx(math.exp(-30), rel=1e-5)
    rewards = torch.tensor([0.0, 21.0], dtype=torch.float64, device=lane.device)
    loss = bradley_terry_loss(rewards, torch.tensor([[0, 1]], device=lane.device), backend=lane.backend)
    assert loss.item() == pytest.approx(math.log1p(math.exp(21)), rel=1e-13)


def test_same_bits_twice(lane, random):
    reward = random(0, 40).to(lane.device, torch.float32).requires_grad_()
    pairs = torch.randint(0, 40, (300, 2), generator=torch.Generator().manual_seed(1)).to(lane.device)
    losses = [bradley_terry_loss(reward, pairs, backend=lane.backend) for _ in range(2)]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(loss, reward)[0] for loss in losses))


def test_non_contiguous(lane, random):
    """Views with gaps, columns for rows."""
    floats = {"reward": random(0, 5), "margin": random(1, 4), "weight": random(2, 4).abs()}
    floats = {name: x.to(lane.device, torch.float32) for name, x in floats.items()}
    pairs = torch.tensor([[0, 1], [2, 0], [0, 3], [4, 1]], device=lane.device)
    strided = {name: torch.stack((x, x.flip(0)), 1)[:, 0] for name, x in floats.items()} | {"pairs": pairs.T.contiguous().T}
    assert not any(x.is_contiguous() for x in strided.values())
    runs = []
    for arguments in (floats | {"pairs": pairs}, strided):
        reward = arguments.pop("reward").requires_grad_()
        loss = bradley_terry_loss(reward, **arguments, backend=lane.backend)
        runs.append((loss, torch.autograd.grad(loss, reward)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_pairs(lane, data):
    num = data.draw(st.integers(1, 9))
    response = st.integers(0, num - 1)
    pairs = torch.tensor(data.draw(st.lists(st.tuples(response, response), max_size=12)), dtype=torch.int64).reshape(-1, 2)
    options = {
        "margin": data.draw(st.sampled_from([None, 0.7, torch.randn(len(pairs))])),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.2])),
        "centering": data.draw(st.sampled_from([0.0, 0.3])),
        "weight": data.draw(st.sampled_from([None, torch.arange(len(pairs)) % 3 / 2])),
    }
    reward = torch.randn(num, dtype=torch.float64, requires_grad=True)
    moved = {name: x.to(lane.device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    loss = bradley_terry_loss(reward.to(lane.device), pairs.to(lane.device), **moved, backend=lane.backend).cpu()
    expected = by_pair(reward, pairs, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, reward), torch.autograd.grad(expected, reward))


def test_errors():
    reward, pairs = torch.zeros(2), torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match=r"`pairs` must have shape \[P, 2\], \(chosen, rejected\), got \[2\]"):
        bradley_terry_loss(reward, pairs[0])
    with pytest.raises(IndexError, match=r"`pairs` must lie in \[0, 2\), got 2"):
        bradley_terry_loss(reward, pairs + 1)
    with pytest.raises(ValueError, match="`weight` is data and gets no gradient"):
        bradley_terry_loss(reward, pairs, weight=torch.ones(1, requires_grad=True))
    with pytest.raises(ValueError, match=r"`label_smoothing` must be in \[0, 1\), got 1"):
        bradley_terry_loss(reward, pairs, label_smoothing=1)
    with pytest.raises(ValueError, match="`centering` must be finite, got nan"):
        bradley_terry_loss(reward, pairs, centering=math.nan)
    with pytest.raises(ValueError, match="`centering` must not be negative, got -1"):
        bradley_terry_loss(reward, pairs, centering=-1)
    with pytest.raises(ValueError, match=r"`margin` must have shape \[P\] = \[1\], got \[2\]"):
        bradley_terry_loss(reward, pairs, torch.zeros(2))
