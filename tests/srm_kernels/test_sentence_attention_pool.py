"""sentence_attention_pool against one response at a time, query and keys rotated one by one as complex numbers."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm_kernels import cu_from_lengths, sentence_attention_pool, sentence_pool

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
RAGGED = [3, 1, 0, 9, 2]


def rotated(x, index, theta):
    if theta is None:
        return x
    pairs = torch.view_as_complex(x.reshape(-1, 2).contiguous())
    angles = torch.tensor([index * theta ** (-2 * j / x.numel()) for j in range(x.numel() // 2)], dtype=x.dtype)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()


def by_response(query, key, value, cu_boundaries, rope_theta=1e4, include_prompt=True, difference=True, pooling="value_attention"):
    rewards, sentence_rewards, attentions = [], [], []
    for b, (start, end) in enumerate(itertools.pairwise(cu_boundaries.tolist())):
        n = end - start
        r = [value[start + i] - (value[start + i - 1] if difference and i else 0) for i in range(n)]
        q = rotated(query[b], n - 1, rope_theta)
        first = 0 if include_prompt else 1
        scores = [q @ rotated(key[start + i], i, rope_theta) / math.sqrt(len(q)) for i in range(first, n)]
        a = [value.new_zeros(())] * min(first, n) + (list(torch.stack(scores).softmax(0)) if scores else [])
        pooled = value[start:end] if pooling == "value_attention" else r
        rewards.append(sum((w * x for w, x in zip(a, pooled, strict=True)), value.new_zeros(())))
        if pooling == "value_attention" and difference:
            a = list(itertools.accumulate(reversed(a)))[::-1]
        sentence_rewards += r
        attentions += a
    return tuple(torch.stack(x) if x else value[:0] for x in (rewards, sentence_rewards, attentions))


def inputs(random, lengths, width):
    total = sum(lengths)
    return {"query": random(0, len(lengths), width), "key": random(1, total, width), "value": random(2, total)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pooling", ["attention", "value_attention"])
def test_outputs_and_gradients(compare, random, dtype, pooling):
    # All arithmetic is fp32, but gradients come back in the dtype of their input, up to size 4.
    compare(
        sentence_attention_pool,
        by_response,
        inputs(random, RAGGED, 256),
        dtype,
        scale=4,
        cu_boundaries=cu_from_lengths(RAGGED),
        pooling=pooling,
    )


@pytest.mark.parametrize("width", [32, 128, 512, 1000, 2048, 4096])
@pytest.mark.parametrize("pooling", ["attention", "value_attention"])
def test_every_tile(compare, random, width, pooling):
    """From 64 rows a tile to one, which more threads share when it is wide; 256 and the widths under 32 are elsewhere."""
    cu_boundaries = cu_from_lengths(RAGGED)
    compare(
        sentence_attention_pool,
        by_response,
        inputs(random, RAGGED, width),
        torch.float32,
        scale=4,
        cu_boundaries=cu_boundaries,
        pooling=pooling,
    )


@pytest.mark.parametrize(("width", "theta"), [(6, 1e4), (2, 10.0), (34, 500.0), (7, None), (1, None), (300, None)])
@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("difference", [True, False])
@pytest.mark.parametrize("pooling", ["attention", "value_attention"])
def test_variants(compare, random, width, theta, include_prompt, difference, pooling):
    options = {"rope_theta": theta, "include_prompt": include_prompt, "difference": difference, "pooling": pooling}
    compare(
        sentence_attention_pool,
        by_response,
        inputs(random, RAGGED, width),
        torch.float64,
        cu_boundaries=cu_from_lengths(RAGGED).long(),
        **options,
    )


@pytest.mark.parametrize("lengths", [[], [0], [1], [0, 1, 0], [200]], ids=str)
@pytest.mark.parametrize("pooling", ["attention", "value_attention"])
def test_lengths(compare, random, lengths, pooling):
    cu_boundaries = cu_from_lengths(lengths)
    compare(sentence_attention_pool, by_response, inputs(random, lengths, 8), torch.float32, cu_boundaries=cu_boundaries, pooling=pooling)


@pytest.mark.parametrize("pooling", ["attention", "value_attention"])
def test_three_thousand_sentences(lane, random, assert_close, pooling):
    """fp32 angles would be wrong in the fourth digit here: against fp64 throughout, to 1e-5."""
    floats = inputs(random, [3000], 4)
    floats["key"] = floats["key"] * 3
    moved = {name: x.to(lane.device, torch.float32) for name, x in floats.items()}
    cu_boundaries = cu_from_lengths([3000])
    expected = by_response(**{name: x.cpu().double() for name, x in moved.items()}, cu_boundaries=cu_boundaries, pooling=pooling)
    out = sentence_attention_pool(**moved, cu_boundaries=cu_boundaries.to(lane.device), pooling=pooling, backend=lane.backend)
    assert_close(out, expected, scale=3)
    torch.testing.assert_close(out[2].cpu().double(), expected[2], rtol=1e-4, atol=0)


def test_extreme_scores(lane):
    """Scores of ±1e4 and equal ones: weights 1, 0 and uniform, nothing overflows."""
    query = torch.tensor([[100.0, 0.0], [0.0, 0.0]], device=lane.device)
    key = torch.tensor([[141.4, 0.0], [-141.4, 0.0], [0.0, 0.0], [5.0, 5.0], [7.0, 7.0]], device=lane.device)
    value = torch.arange(5.0, device=lane.device)
    options = {"rope_theta": None, "difference": False, "backend": lane.backend}
    reward, _, weight = sentence_attention_pool(query, key, value, cu_from_lengths([3, 2]).to(lane.device), **options)
    assert weight.tolist() == [1, 0, 0, 0.5, 0.5]
    assert reward.tolist() == [0, 3.5]


def test_shift_invariant(lane, random):
    """64 more in the first column of the keys is 32 more in each score, exactly, and changes no weight."""
    query = torch.tensor([[1.0, 2.0, -1.0, 4.0]], device=lane.device)
    key = (random(0, 9, 4).to(lane.device, torch.float32) * 1024).round() / 1024
    value, cu_boundaries = random(1, 9).to(lane.device, torch.float32), cu_from_lengths([9]).to(lane.device)
    shift = 64 * torch.eye(4, device=lane.device)[0]
    out, shifted = (sentence_attention_pool(query, x, value, cu_boundaries, None, backend=lane.backend) for x in (key, key + shift))
    assert all(torch.equal(a, b) for a, b in zip(out, shifted, strict=True))


def test_the_prompt_left_out_leaves_nothing(lane):
    """A response with only b_0 and `include_prompt=False`: no attention, reward 0, no gradient."""
    query, key, value = (torch.ones(s, device=lane.device, requires_grad=True) for s in ((1, 4), (1, 4), (1,)))
    reward, sentence_reward, weight = sentence_attention_pool(
        query, key, value, cu_from_lengths([1]).to(lane.device), include_prompt=False, backend=lane.backend
    )
    assert (reward.item(), sentence_reward.item(), weight.item()) == (0, 1, 0)
    assert all(not g.any() for g in torch.autograd.grad(reward.sum() + weight.sum(), (query, key, value)))


def test_equal_keys_make_the_mean_of_values(lane, random):
    """`value_attention` with nothing to prefer: a sentence reward counts with the share of boundaries from its own on."""
    query, value = random(0, 2, 4).to(lane.device, torch.float32), random(1, 7).to(lane.device, torch.float32)
    cu_boundaries = cu_from_lengths([3, 4]).to(lane.device)
    options = {"rope_theta": None, "pooling": "value_attention", "backend": lane.backend}
    reward, _, weight = sentence_attention_pool(query, torch.ones(7, 4, device=lane.device), value, cu_boundaries, **options)
    expected = torch.tensor([1, 2 / 3, 1 / 3, 1, 3 / 4, 2 / 4, 1 / 4], device=lane.device)
    torch.testing.assert_close(weight, expected)
    torch.testing.assert_close(reward, torch.stack([value[:3].mean(), value[3:].mean()]))


def without_attention(value, cu_boundaries, pooling, include_prompt=True, difference=True):
    rewards, sentence_rewards, weights = [], [], []
    for start, end in itertools.pairwise(cu_boundaries.tolist()):
        r = [value[i] - (value[i - 1] if difference and i > start else 0) for i in range(start, end)]
        counted = range(0 if include_prompt else 1, end - start)
        share = {"mean": 1 / max(len(counted), 1), "sum": 1.0, "last": 0.0}[pooling]
        w = [share if i in counted else 0.0 for i in range(end - start)]
        if pooling == "last" and counted:
            w[-1] = 1.0
        rewards.append(sum((x * y for x, y in zip(w, r, strict=True)), value.new_zeros(())))
        sentence_rewards, weights = sentence_rewards + r, weights + w
    # The weights are constants, which autograd must still find in a graph.
    return torch.stack(rewards), torch.stack(sentence_rewards), value.new_tensor(weights) + 0 * value.sum()


@pytest.mark.parametrize("pooling", ["mean", "sum", "last"])
@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("difference", [True, False])
def test_without_attention(compare, random, pooling, include_prompt, difference):
    rest = {"cu_boundaries": cu_from_lengths(RAGGED), "pooling": pooling, "include_prompt": include_prompt, "difference": difference}
    compare(sentence_pool, without_attention, {"value": random(0, sum(RAGGED))}, torch.float32, **rest)


@pytest.mark.parametrize(("pooling", "expected", "share"), [("mean", 2, [1 / 3] * 3), ("sum", 6, [1, 1, 1]), ("last", 1, [0, 0, 1])])
def test_three_ways_to_pool_by_hand(lane, pooling, expected, share):
    """Values 1, 5, 6 and, of another response, 9: sentence rewards 1, 4, 1 and 9. A sum telescopes to the last value."""
    value, cu_boundaries = torch.tensor([1.0, 5, 6, 9], device=lane.device), torch.tensor([0, 3, 4], device=lane.device)
    reward, sentence_reward, weight = sentence_pool(value, cu_boundaries, pooling, backend=lane.backend)
    assert sentence_reward.tolist() == [1, 4, 1, 9]
    assert reward.tolist() == pytest.approx([expected, 9])
    assert weight.tolist() == pytest.approx([*share, 1])


def test_non_contiguous(lane, random):
    """Views with gaps, and cotangents that `sum` expands from one number."""
    floats = {name: x.to(lane.device, torch.float32) for name, x in inputs(random, RAGGED, 8).items()}
    cu_boundaries = cu_from_lengths(RAGGED).to(lane.device)
    runs = []
    for view in (lambda x: x, lambda x: torch.stack((x, x.flip(0)), -1)[..., 0]):
        leaves = {name: view(x).detach().requires_grad_() for name, x in floats.items()}
        out = sentence_attention_pool(**leaves, cu_boundaries=view(cu_boundaries), backend=lane.backend)
        runs.append([*out, *torch.autograd.grad(sum(x.sum() for x in out), list(leaves.values()))])
    assert not leaves["key"].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_score_depends_on_its_response_only(lane, random):
    """The same bits alone and in company."""
    floats = {name: x.to(lane.device, torch.float32) for name, x in inputs(random, [5, 40], 32).items()}
    both = sentence_attention_pool(**floats, cu_boundaries=cu_from_lengths([5, 40]).to(lane.device), backend=lane.backend)
    alone = sentence_attention_pool(
        floats["query"][1:], floats["key"][5:], floats["value"][5:], cu_from_lengths([40]).to(lane.device), backend=lane.backend
    )
    if lane.backend == "triton":
        assert torch.equal(both[0][1:], alone[0])
        assert torch.equal(both[2][5:], alone[2])
    else:
        torch.testing.assert_close(both[0][1:], alone[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spoilt", ["query", "key", "value"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("pooling", ["attention", "value_attention"])
def test_what_is_no_number_stays_in_its_response(lane, random, pooling, number, spoilt):
    """Forward and backward: the others come out as if it were not there."""
    lengths = [4, 3, 5]
    cu = cu_from_lengths(lengths).to(lane.device)
    floats = {name: x.to(lane.device, torch.float32) for name, x in inputs(random, lengths, 8).items()}
    results = []
    for is_spoilt in (False, True):
        leaves = {name: x.clone() for name, x in floats.items()}
        if is_spoilt:
            leaves[spoilt][1 if spoilt == "query" else 5] = number
        leaves = {name: x.requires_grad_() for name, x in leaves.items()}
        out = sentence_attention_pool(**leaves, cu_boundaries=cu, pooling=pooling, backend=lane.backend)
        flowing = [torch.ones_like(x) for x in out]
        if is_spoilt:
            flowing[2][4] = number
        results.append((*out, *torch.autograd.grad(out, list(leaves.values()), flowing)))
    assert not all(x.isfinite().all() for x in results[1])
    for clean, other in zip(*results, strict=True):
        own = slice(1, 2) if len(clean) == 3 else slice(4, 7)
        for rest in (slice(None, own.start), slice(own.stop, None)):
            assert torch.equal(clean[rest], other[rest])


@pytest.mark.parametrize("scale", [1e6, 1e12])
@pytest.mark.parametrize("pooling", ["attention", "value_attention"])
def test_a_gradient_depends_on_its_response_only(lane, random, pooling, scale):
    """Though the one before it has gradients a million times as large and more, which a sum over both would drown it in."""
    floats = {name: x.to(lane.device, torch.float32) for name, x in inputs(random, [30, 20], 8).items()}
    flowing = [x.to(lane.device, torch.float32) for x in (random(3, 2), random(4, 50), random(5, 50))]
    flowing[0][0] *= scale
    flowing[2][:30] *= scale
    alone = [floats["query"][1:], floats["key"][30:], floats["value"][30:]]
    grads = []
    for leaves, lengths, cotangents in (
        (list(floats.values()), [30, 20], flowing),
        (alone, [20], [flowing[0][1:], flowing[1][30:], flowing[2][30:]]),
    ):
        leaves = [x.detach().requires_grad_() for x in leaves]
        out = sentence_attention_pool(*leaves, cu_from_lengths(lengths).to(lane.device), pooling=pooling, backend=lane.backend)
        grads.append(torch.autograd.grad(out, leaves, cotangents))
    for both, one in zip(*grads, strict=True):
        torch.testing.assert_close(both[-len(one) :], one, rtol=1e-5, atol=1e-5)


def test_same_bits_twice(lane, random):
    floats = {name: x.to(lane.device, torch.float32).requires_grad_() for name, x in inputs(random, RAGGED, 64).items()}
    runs = []
    for _ in range(2):
        out = sentence_attention_pool(**floats, cu_boundaries=cu_from_lengths(RAGGED).to(lane.device), backend=lane.backend)
        runs.append([*out, *torch.autograd.grad(sum(x.square().sum() for x in out), list(floats.values()))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout(lane, data):
    lengths = data.draw(st.lists(st.integers(0, 9), max_size=4))
    width = data.draw(st.sampled_from([2, 4, 10]))
    options = {
        "rope_theta": data.draw(st.sampled_from([None, 10.0, 1e4])),
        "include_prompt": data.draw(st.booleans()),
        "difference": data.draw(st.booleans()),
        "pooling": data.draw(st.sampled_from(["attention", "value_attention"])),
    }
    shapes = ((len(lengths), width), (sum(lengths), width), (sum(lengths),))
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    cu_boundaries = cu_from_lengths(lengths)
    out = sentence_attention_pool(*(x.to(lane.device) for x in (*leaves, cu_boundaries)), **options, backend=lane.backend)
    out, expected = tuple(x.cpu() for x in out), by_response(*leaves, cu_boundaries, **options)
    torch.testing.assert_close(out, expected)
    cotangents = [torch.randn_like(x) for x in out]
    # What no output depends on has no gradient for autograd, and zero for us.
    loss, expected_loss = (sum((g * x).sum() for g, x in zip(cotangents, y, strict=True)) for y in (out, expected))
    expected_grads = torch.autograd.grad(expected_loss + sum(0 * x.sum() for x in leaves), leaves)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), expected_grads)


def test_errors():
    query, key, value, cu_boundaries = torch.ones(1, 4), torch.ones(3, 4), torch.ones(3), torch.tensor([0, 3])
    with pytest.raises(ValueError, match=r"`query` must have shape \[B, A\] = \[1, 4\], got \[2, 4\]"):
        sentence_attention_pool(torch.ones(2, 4), key, value, cu_boundaries)
    with pytest.raises(ValueError, match=r"`key` must have shape \[N, A\] = \[3, 4\], got \[3, 6\]"):
        sentence_attention_pool(query, torch.ones(3, 6), value, cu_boundaries)
    with pytest.raises(ValueError, match=r"the width A of `query` must be even for rotary pairs, got 3\. `rope_theta=None` turns them off"):
        sentence_attention_pool(torch.ones(1, 3), torch.ones(3, 3), value, cu_boundaries)
    with pytest.raises(ValueError, match="`rope_theta` must be finite, got nan"):
        sentence_attention_pool(query, key, value, cu_boundaries, math.nan)
    with pytest.raises(
        ValueError, match=r"`pooling` must be one of attention, value_attention, got 'mean'\. `sentence_pool` has the others\.$"
    ):
        sentence_attention_pool(query, key, value, cu_boundaries, pooling="mean")
    with pytest.raises(ValueError, match="the width A of `query` must be at least 1, got 0"):
        sentence_attention_pool(torch.ones(1, 0), torch.ones(3, 0), value, cu_boundaries, None)
    with pytest.raises(ValueError, match=r"`rope_theta` must be positive"):
        sentence_attention_pool(query, key, value, cu_boundaries, 0)
    sentence_attention_pool(query, key, value, cu_boundaries, 0.5)
    with pytest.raises(
        ValueError, match=r"`pooling` must be one of mean, sum, last, got 'max'\. `sentence_attention_pool` has the others\.$"
    ):
        sentence_pool(value, cu_boundaries, "max")
