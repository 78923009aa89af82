"""packed_gae against the usual loop over tokens."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm_kernels import cu_from_lengths, packed_gae

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LENGTHS = [5, 0, 1, 90, 3]


def by_token(reward, value, cu_seqlens, gamma, lam, bootstrap_value=None):
    advantages = [reward.new_zeros(())] * len(reward)
    for s, (start, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        following = reward.new_zeros(()) if bootstrap_value is None else bootstrap_value[s]
        advantage = 0.0
        for t in reversed(range(start, end)):
            advantage = reward[t] + gamma * following - value[t] + gamma * lam * advantage
            advantages[t], following = advantage, value[t]
    stacked = torch.stack(advantages) if advantages else reward.clone()
    return stacked, stacked + value


def inputs(random, lengths, bootstrap=True):
    floats = {"reward": random(0, sum(lengths)), "value": random(1, sum(lengths))}
    return floats | ({"bootstrap_value": random(2, len(lengths))} if bootstrap else {})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bootstrap", [True, False])
def test_advantages_returns_and_gradients(compare, random, dtype, bootstrap):
    floats = inputs(random, LENGTHS, bootstrap)
    # Sums over up to 20 effective tokens.
    compare(packed_gae, by_token, floats, dtype, scale=10, cu_seqlens=cu_from_lengths(LENGTHS), gamma=0.99, lam=0.95)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.9, 1.0), (1.0, 0.95)])
def test_corners(compare, random, gamma, lam):
    cu = cu_from_lengths(LENGTHS).long()
    compare(packed_gae, by_token, inputs(random, LENGTHS), torch.float64, cu_seqlens=cu, gamma=gamma, lam=lam)


def test_one_and_one_gives_rewards_to_go(lane):
    reward = torch.arange(6.0, device=lane.device)
    cu = cu_from_lengths([2, 4]).to(lane.device)
    advantages, returns = packed_gae(reward, torch.zeros_like(reward), cu, gamma=1.0, lam=1.0, backend=lane.backend)
    assert advantages.tolist() == returns.tolist() == [1, 1, 14, 12, 9, 5]


@pytest.mark.parametrize("lengths", [[], [0, 0], [1], [64], [65, 63], [500], [0, 128, 0]], ids=str)
def test_lengths_around_the_chunks(compare, random, lengths):
    """The interpreter's lane scans in chunks of 64."""
    compare(packed_gae, by_token, inputs(random, lengths), torch.float64, cu_seqlens=cu_from_lengths(lengths), gamma=0.99, lam=0.97)


def test_three_thousand_sequences(compare, random):
    lengths = [i % 2 * (i < 600) for i in range(3000)]
    compare(packed_gae, by_token, inputs(random, lengths), torch.float64, cu_seqlens=cu_from_lengths(lengths), gamma=0.99, lam=0.95)


def test_extreme_rewards_and_a_shift_of_the_values(lane, random):
    """With gamma = lam = 1 the values cancel in the returns; whole numbers stay exact."""
    lengths = [70, 1, 130]
    cu = cu_from_lengths(lengths).to(lane.device)
    reward = 1e4 * random(0, sum(lengths)).sign().to(lane.device, torch.float32)
    value = (100 * random(1, sum(lengths))).round().to(lane.device, torch.float32)
    to_go = torch.cat([part.flip(0).cumsum(0).flip(0) for part in reward.split(lengths)])
    for shift in (0, 1024):
        advantages, returns = packed_gae(reward, value + shift, cu, 1.0, 1.0, backend=lane.backend)
        assert torch.equal(returns, to_go)
        assert torch.equal(advantages, to_go - value - shift)


@pytest.mark.interpreter
def test_the_real_chunk(random):
    """Chunks as on a GPU, and more of them than one program of the middle pass takes at once."""
    lengths = [1500, 600]
    floats = inputs(random, lengths)
    out = packed_gae(**floats, cu_seqlens=cu_from_lengths(lengths), gamma=0.99, lam=0.95, backend="triton")
    torch.testing.assert_close(out, by_token(**floats, cu_seqlens=cu_from_lengths(lengths), gamma=0.99, lam=0.95))


@pytest.mark.interpreter
def test_more_chunks_than_one_block_of_carries(random, monkeypatch):
    monkeypatch.setattr("srm_kernels.ops.packed_gae.kernels.CHUNK", 8)
    floats = inputs(random, [150, 30])
    cu = cu_from_lengths([150, 30])
    out = packed_gae(**floats, cu_seqlens=cu, gamma=0.99, lam=0.95, backend="triton")
    torch.testing.assert_close(out, by_token(**floats, cu_seqlens=cu, gamma=0.99, lam=0.95))


def test_a_nan_stays_in_its_sequence(lane):
    reward = torch.ones(6, device=lane.device)
    reward[3] = torch.nan
    cu = cu_from_lengths([2, 2, 2]).to(lane.device)
    advantages, _ = packed_gae(reward, torch.zeros_like(reward), cu, gamma=1.0, lam=1.0, backend=lane.backend)
    assert advantages.isnan().tolist() == [False, False, True, True, False, False]
    assert advantages[[0, 1, 4, 5]].tolist() == [2, 1, 2, 1]


def test_non_contiguous_and_same_bits_twice(lane, random):
    both = random(0, 40, 2).to(lane.device, torch.float32)
    cu = torch.tensor([0, 9, 17, 9, 40, 9], device=lane.device)[::2]
    views, copies = list(both.unbind(1)), [x.clone() for x in both.unbind(1)]
    runs = []
    for leaves, offsets in ((views, cu), (views, cu), (copies, cu.clone())):
        reward, value = leaves = [x.detach().requires_grad_() for x in leaves]
        out = packed_gae(reward, value, offsets, gamma=0.99, lam=0.95, backend=lane.backend)
        runs.append([*out, *torch.autograd.grad(out[0].sum() + out[1].square().sum(), leaves)])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*runs, strict=True))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout(lane, data):
    lengths = data.draw(st.lists(st.integers(0, 40), max_size=3))
    gamma, lam = data.draw(st.sampled_from([(1.0, 1.0), (0.9, 0.8), (1.0, 0.95)]))
    leaves = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (sum(lengths), sum(lengths), len(lengths))]
    cu = cu_from_lengths(lengths)
    reward, value, offsets, bootstrap = (x.to(lane.device) for x in (*leaves[:2], cu, leaves[2]))
    out = packed_gae(reward, value, offsets, gamma, lam, bootstrap_value=bootstrap, backend=lane.backend)
    out, expected = tuple(x.cpu() for x in out), by_token(*leaves[:2], cu, gamma, lam, leaves[2])
    torch.testing.assert_close(out, expected)
    cotangents = [torch.randn_like(x) for x in out]
    loss = sum((g * x).sum() for g, x in zip(cotangents, expected, strict=True)) + sum(0 * x.sum() for x in leaves)
    torch.testing.assert_close(torch.autograd.grad(out, leaves, cotangents), torch.autograd.grad(loss, leaves))


def test_errors():
    x, cu = torch.ones(4), torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"packed_gae: `value` must have shape \[T\] = \[4\], got \[3\]"):
        packed_gae(x, x[:3], cu)
    with pytest.raises(ValueError, match=r"`bootstrap_value` must have shape \[S\] = \[1\], got \[2\]"):
        packed_gae(x, x, cu, bootstrap_value=x[:2])
    with pytest.raises(ValueError, match="`gamma` must be finite, got nan"):
        packed_gae(x, x, cu, gamma=float("nan"))
