"""token_rewards against one token at a time."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm_kernels import cu_from_lengths, token_rewards

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LENGTHS = [3, 1, 0, 4]
# Siblings share b_0 = 2; two sentences end on token 9.
BOUNDARIES = torch.tensor([2, 5, 9, 2, 2, 9, 11, 12])


def by_token(sentence_reward, boundaries, cu_boundaries, logprobs, ref_logprobs, kl_coef, estimator="k1"):
    x = logprobs - ref_logprobs
    kl = {"k1": x, "k2": x**2 / 2, "k3": torch.exp(-x) - 1 + x}[estimator]
    out = list(-kl_coef * kl)
    for start, end in zip(cu_boundaries[:-1].tolist(), cu_boundaries[1:].tolist(), strict=True):
        for n in range(start + 1, end):
            out[int(boundaries[n])] = out[int(boundaries[n])] + sentence_reward[n]
    return torch.stack(out) if out else logprobs.clone()


def inputs(random, num_tokens=14):
    return {"sentence_reward": random(0, 8), "logprobs": random(1, num_tokens), "ref_logprobs": random(2, num_tokens)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_rewards_and_gradients(compare, random, dtype, estimator):
    rest = {"boundaries": BOUNDARIES, "cu_boundaries": cu_from_lengths(LENGTHS), "kl_coef": 0.3, "estimator": estimator}
    compare(token_rewards, by_token, inputs(random), dtype, **rest)


def test_three_thousand_sentences_over_several_blocks(compare, random):
    boundaries = torch.randint(0, 1200, (3000,), generator=torch.Generator().manual_seed(3)).int()
    floats = {"sentence_reward": random(0, 3000), "logprobs": random(1, 1200), "ref_logprobs": random(2, 1200)}
    compare(
        token_rewards,
        by_token,
        floats,
        torch.float32,
        boundaries=boundaries,
        cu_boundaries=cu_from_lengths([2500, 0, 500]).long(),
        kl_coef=0.1,
    )


def test_more_boundaries_than_tokens(compare, random):
    floats = {"sentence_reward": random(0, 600), "logprobs": random(1, 2), "ref_logprobs": random(2, 2)}
    # 300 rewards on one token: their sum is of size 20.
    rest = {"boundaries": torch.arange(600) % 2, "cu_boundaries": cu_from_lengths([600]), "kl_coef": 0.1}
    compare(token_rewards, by_token, floats, torch.float32, scale=10, **rest)


@pytest.mark.parametrize("num_tokens", [0, 5])
def test_no_sentences(lane, num_tokens):
    logprobs = torch.ones(num_tokens, device=lane.device)
    empty = torch.zeros(0, device=lane.device)
    out = token_rewards(
        empty, empty.long(), cu_from_lengths([0]).to(lane.device), logprobs, 0 * logprobs, kl_coef=0.5, backend=lane.backend
    )
    assert out.tolist() == [-0.5] * num_tokens


def test_k3_keeps_its_digits_near_zero(lane):
    """In fp32, exp(-x) - 1 + x has no correct digit at x = 1e-4; x²/2 is right to 1e-4 of itself there."""
    x = torch.tensor([1e-4, -1e-3, 0.0], device=lane.device)
    cu_boundaries, empty = torch.tensor([0], device=lane.device), torch.zeros(0, device=lane.device)
    out = token_rewards(empty, empty.long(), cu_boundaries, x, 0 * x, kl_coef=-1.0, estimator="k3", backend=lane.backend)
    expected = [math.expm1(-v) + v for v in x.double().tolist()]
    # expm1 is what fp32 can do without a series: an error of half a unit of x itself.
    assert out.tolist() == pytest.approx(expected, rel=1e-4, abs=0 if lane.backend == "triton" else 1e-10)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # What numpy says to the interpreter's infinity.
@pytest.mark.parametrize(
    ("estimator", "expected", "slope"),
    [
        ("k1", [1e4, -1e4, 0], [1, 1, 1]),
        ("k2", [5e7, 5e7, 0], [1e4, -1e4, 0]),
        ("k3", [9999, math.inf, 0], [1, -math.inf, 0]),
    ],
)
def test_extreme_ratios(lane, estimator, expected, slope):
    x = torch.tensor([1e4, -1e4, 0.0], device=lane.device, requires_grad=True)
    cu_boundaries, empty = torch.tensor([0], device=lane.device), torch.zeros(0, device=lane.device)
    out = token_rewards(empty, empty.long(), cu_boundaries, x, torch.zeros_like(x), kl_coef=-1.0, estimator=estimator, backend=lane.backend)
    assert out.tolist() == expected
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == slope


def test_shift_invariant(lane, random):
    """Only the ratio counts; multiples of 1/1024 stay exact under the shift."""
    floats = {name: (x.to(lane.device, torch.float32) * 1024).round() / 1024 for name, x in inputs(random).items()}
    indices = {"boundaries": BOUNDARIES.to(lane.device), "cu_boundaries": cu_from_lengths(LENGTHS).to(lane.device)}
    moved = {name: x + 64 if "logprobs" in name else x for name, x in floats.items()}
    out, shifted = (token_rewards(**x, **indices, kl_coef=0.3, estimator="k3", backend=lane.backend) for x in (floats, moved))
    assert torch.equal(out, shifted)


def test_a_large_coefficient_keeps_fp64(lane):
    x = torch.tensor([0.1], dtype=torch.float64, device=lane.device)
    cu_boundaries, empty = torch.tensor([0], device=lane.device), torch.zeros(0, dtype=torch.float64, device=lane.device)
    out = token_rewards(empty, empty.long(), cu_boundaries, x, 0 * x, kl_coef=0.1, backend=lane.backend)
    assert out.item() == pytest.approx(-0.01, rel=1e-13)


def test_same_bits_twice(lane, random):
    boundaries = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(3)).to(lane.device)
    reward, *rest = leaves = [random(i, n).to(lane.device, torch.float32).requires_grad_() for i, n in enumerate((200, 9, 9))]
    cu_boundaries = cu_from_lengths([200]).to(lane.device)
    runs = [token_rewards(reward, boundaries, cu_boundaries, *rest, kl_coef=0.1, backend=lane.backend) for _ in range(2)]
    assert torch.equal(*runs)
    first, second = (torch.autograd.grad(out.square().sum(), leaves) for out in runs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_non_contiguous(lane, random):
    """Views with gaps, and a cotangent that `sum` expands from one number."""
    floats = {name: x.to(lane.device) for name, x in inputs(random).items()}
    indices = {"boundaries": BOUNDARIES.to(lane.device), "cu_boundaries": cu_from_lengths(LENGTHS).to(lane.device)}
    runs = []
    for view in (lambda x: x, lambda x: torch.stack((x, x.flip(0)), 1)[:, 0]):
        leaves = {name: view(x).detach().requires_grad_() for name, x in floats.items()}
        out = token_rewards(**leaves, **{name: view(x) for name, x in indices.items()}, kl_coef=0.3, estimator="k3", backend=lane.backend)
        runs.append([out, *torch.autograd.grad(out.sum(), list(leaves.values()))])
    assert not leaves["logprobs"].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout(lane, data):
    lengths = data.draw(st.lists(st.integers(0, 6), max_size=5))
    num_tokens = data.draw(st.integers(1, 30))
    positions = st.lists(st.integers(0, num_tokens - 1), min_size=sum(lengths), max_size=sum(lengths))
    boundaries = torch.tensor(data.draw(positions), dtype=torch.int64)
    leaves = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (sum(lengths), num_tokens, num_tokens)]
    arguments = (leaves[0], boundaries, cu_from_lengths(lengths), *leaves[1:], 0.2, data.draw(st.sampled_from(["k1", "k2", "k3"])))
    moved = [x.to(lane.device) if isinstance(x, torch.Tensor) else x for x in arguments]
    out, expected = token_rewards(*moved, backend=lane.backend).cpu(), by_token(*arguments)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    expected_grads = torch.autograd.grad((cotangent * expected).sum() + sum(0 * x.sum() for x in leaves), leaves)
    torch.testing.assert_close(torch.autograd.grad(out, leaves, cotangent), expected_grads)


def test_errors():
    arguments = (torch.ones(2), torch.tensor([0, 3]), torch.tensor([0, 2]), torch.zeros(4), torch.zeros(4), 0.1)
    with pytest.raises(ValueError, match="`estimator` must be one of k1, k2, k3, got 'k4'"):
        token_rewards(*arguments, "k4")
    with pytest.raises(ValueError, match="token_rewards: `kl_coef` must be finite, got inf"):
        token_rewards(*arguments[:5], math.inf)
    with pytest.raises(ValueError, match=r"`ref_logprobs` must have shape \[T\] = \[4\], got \[3\]"):
        token_rewards(*arguments[:4], torch.zeros(3), 0.1)
    with pytest.raises(IndexError, match=r"`boundaries` must lie in \[0, 4\), got 4"):
        token_rewards(arguments[0], torch.tensor([0, 4]), *arguments[2:])
