"""What has the factor 0 takes no part, whatever it holds: in the ops, in their gradients, and under autograd through the references."""

import math

import pytest
import torch

from srm_kernels import bradley_terry_loss, cu_from_lengths, packed_gae, sentence_attention_pool, sentence_pool, token_rewards
from srm_kernels.ops.bradley_terry_loss.reference import bradley_terry_loss_reference
from srm_kernels.ops.packed_gae.reference import packed_gae_reference
from srm_kernels.ops.sentence_attention_pool.reference import sentence_attention_pool_reference
from srm_kernels.ops.token_rewards.reference import token_rewards_reference

INF, NAN = math.inf, math.nan
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # What numpy says to the interpreter.


def on(lane, *values):
    return [torch.tensor(x, device=lane.device) for x in values]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_no_price_no_penalty(lane, estimator):
    reward, boundaries, cu_boundaries, policy, reference = on(
        lane, [9.0, 1.0], [0, 1], [0, 2], [0.0, -INF, NAN, -1.0], [0.0, 0.0, 0.0, -INF]
    )
    policy.requires_grad_()
    arguments = (reward, boundaries, cu_boundaries, policy, reference, 0.0, estimator)
    for out in (token_rewards(*arguments, backend=lane.backend), token_rewards_reference(*arguments)):
        assert out.tolist() == [0, 1, 0, 0]
    out = token_rewards(*arguments, backend=lane.backend)
    assert torch.autograd.grad(out.sum(), policy)[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_token_that_both_rule_out_pays_nothing(lane, estimator):
    empty, cu_boundaries, policy, reference = on(lane, [], [0], [-INF, 2.0], [-INF, 2.0])
    policy.requires_grad_()
    arguments = (empty, empty.long(), cu_boundaries, policy, reference, 0.5, estimator)
    slope = -0.5 if estimator == "k1" else 0
    for out in (token_rewards(*arguments, backend=lane.backend), token_rewards_reference(*arguments)):
        assert out.tolist() == [0, 0]
        assert torch.autograd.grad(out.sum(), policy)[0].tolist() == [0, slope]


PAIRS = torch.tensor([[0, 1], [2, 3]])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "centering": 0.2}], ids=["plain", "all terms"])
def test_a_pair_of_weight_zero_may_hold_anything(lane, bad, options):
    reward, weight, margin = on(lane, [bad, 0.0, 1.0, 0.0], [0.0, 2.0], [bad, 0.0])
    reward.requires_grad_()
    pairs = PAIRS.to(lane.device)
    alone = reward.detach()[2:].requires_grad_()
    expected = bradley_terry_loss(alone, pairs[:1], **options, backend=lane.backend)
    options = {**options, "margin": margin, "weight": weight}
    for loss in (
        bradley_terry_loss(reward, pairs, **options, backend=lane.backend),
        bradley_terry_loss_reference(reward, pairs, **options),
    ):
        torch.testing.assert_close(loss, expected)
        grad = torch.autograd.grad(loss, reward)[0]
        assert grad[:2].tolist() == [0, 0]
        torch.testing.assert_close(grad[2:], torch.autograd.grad(expected, alone, retain_graph=True)[0])


def test_without_centering_only_differences_count(lane):
    """1e19 squared is infinite in fp32, and an infinite lead costs nothing."""
    pairs = PAIRS.to(lane.device)
    for rewards, expected in (([1e19, 1e19, 2.0, 2.0], math.log(2)), ([INF, 0.0, 0.0, 0.0], math.log(2) / 2)):
        reward = torch.tensor(rewards, device=lane.device, requires_grad=True)
        for loss in (bradley_terry_loss(reward, pairs, backend=lane.backend), bradley_terry_loss_reference(reward, pairs)):
            assert loss.item() == pytest.approx(expected)
            assert torch.autograd.grad(loss, reward)[0].isfinite().all()


def test_gamma_zero_looks_at_no_later_value(lane):
    reward, value, bootstrap = on(lane, [1.0, 2.0, 3.0], [0.5, INF, 0.5], [NAN])
    cu_seqlens = cu_from_lengths([3]).to(lane.device)
    reward.requires_grad_()
    for run in (packed_gae, packed_gae_reference):
        backend = {"backend": lane.backend} if run is packed_gae else {}
        advantages, _ = run(reward, value, cu_seqlens, 0.0, 0.9, bootstrap_value=bootstrap, **backend)
        assert advantages.tolist() == [0.5, -INF, 2.5]
        assert torch.autograd.grad(advantages[[0, 2]].sum(), reward)[0].tolist() == [1, 0, 1]


def test_gamma_zero_passes_no_gradient_on(lane):
    value, bootstrap = (torch.ones(n, device=lane.device, requires_grad=True) for n in (2, 1))
    cu_seqlens = cu_from_lengths([2]).to(lane.device)
    advantages, _ = packed_gae(torch.ones(2, device=lane.device), value, cu_seqlens, 0.0, bootstrap_value=bootstrap, backend=lane.backend)
    grads = torch.autograd.grad(advantages, (value, bootstrap), torch.tensor([INF, INF], device=lane.device))
    assert [g.tolist() for g in grads] == [[-INF, -INF], [0]]


@pytest.mark.parametrize("bad", [NAN, INF])
def test_an_excluded_prompt_may_hold_anything(lane, bad):
    """`difference=False`, so that the prompt's value is no part of the first sentence's reward either."""
    key = torch.tensor([[bad, bad], [1.0, 0.0], [0.0, 1.0]], device=lane.device)
    value = torch.tensor([bad, 1.0, 2.0], device=lane.device)
    query = torch.tensor([[1.0, 2.0]], device=lane.device)
    cu_boundaries = torch.tensor([0, 3], device=lane.device)
    runs = []
    for clean in (False, True):
        leaves = [x.nan_to_num(0, 0).requires_grad_() if clean else x.clone().requires_grad_() for x in (query, key, value)]
        options = {"include_prompt": False, "difference": False, "pooling": "attention"}
        ours = sentence_attention_pool(*leaves, cu_boundaries, **options, backend=lane.backend)
        reference = sentence_attention_pool_reference(*leaves, cu_boundaries, **options)
        for reward, _, weight in (ours, reference):
            runs.append((reward, weight, *torch.autograd.grad(reward.sum() + weight[1], leaves)))
    for run in runs[:-1]:
        for ours, expected in zip(run, runs[-1], strict=True):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("pooling", "expected"), [("sum", 3.0), ("last", 2.0), ("mean", 1.5)])
def test_pooling_leaves_out_what_it_does_not_count(lane, pooling, expected):
    value, cu_boundaries = on(lane, [NAN, 1.0, 2.0], [0, 3])
    reward = sentence_pool(value, cu_boundaries, pooling, include_prompt=False, difference=False, backend=lane.backend)[0]
    assert reward.item() == expected
