"""Losses and their gradients against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from srm.rl.losses import clipped_policy_loss, clipped_value_loss, reference_kl, reinforce_loss

MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_reinforce_pushes_each_token_by_its_advantage() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -math.inf], [-0.5, math.nan, -3.0]], requires_grad=True)
    loss = reinforce_loss(logprobs, torch.tensor([[2.0, -1.0, 0.0], [4.0, 0.0, 0.0]]), MASK)
    assert loss.item() == pytest.approx(2 * 1 - 1 * 2 + 4 * 0.5)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-2, 1, 0], [-4, 0, 0]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.5, 2.0, -1.2 * 2, 0.0, 1),  # far enough up
        (0.5, 2.0, -0.5 * 2, -2.0 * 0.5, 0),  # too low: back up
        (1.5, -2.0, 1.5 * 2, 2.0 * 1.5, 0),  # too high: back down
        (0.5, -2.0, 0.8 * 2, 0.0, 1),  # far enough down
    ],
)
def test_ppo_clips_what_has_moved_far_enough(ratio: float, advantage: float, loss: float, slope: float, clipped: int) -> None:
    old = torch.tensor([[-1.0, -math.inf]])
    logprobs = torch.tensor([[-1.0 + math.log(ratio), -2.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    got, num_clipped = clipped_policy_loss(logprobs, old, torch.tensor([[advantage, 7.0]]), mask, cliprange=0.2)
    assert got.item() == pytest.approx(loss)
    assert num_clipped.item() == clipped
    got.backward()
    assert logprobs.grad is not None
    # d ratio / d logprob is the ratio itself.
    assert logprobs.grad[0].tolist() == pytest.approx([slope, 0.0])


def test_ppo_at_the_old_policy_is_reinforce() -> None:
    torch.manual_seed(0)
    logprobs, advantages = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    plain = torch.autograd.grad(reinforce_loss(logprobs, advantages, MASK), logprobs)[0]
    loss, _ = clipped_policy_loss(logprobs, logprobs.detach(), advantages, MASK, cliprange=0.2)
    torch.testing.assert_close(torch.autograd.grad(loss, logprobs)[0], plain)


def test_a_value_gains_nothing_from_moving_past_the_clip() -> None:
    old, returns = torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[1.0, 1.0, 9.0]])
    value = torch.tensor([[0.1, 0.5, math.nan]], requires_grad=True)
    loss = clipped_value_loss(value, old, returns, torch.tensor([[True, True, False]]), cliprange=0.2)
    assert loss.item() == pytest.approx(0.5 * (0.9**2 + 0.8**2))
    loss.backward()
    assert value.grad is not None
    assert value.grad[0].tolist() == pytest.approx([-0.9, 0.0, 0.0])


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        ("k2", 0.5 * 1 + 0.5 * 4, [-1.0, 2.0, 0.0]),
        ("k3", (math.exp(1) - 1 - 1) + (math.exp(-2) + 2 - 1), [1 - math.exp(1), 1 - math.exp(-2), 0.0]),
    ],
)
def test_the_penalty_of_grpo_pulls_towards_the_reference(estimator: Any, value: float, gradient: list[float]) -> None:
    reference = torch.tensor([[-1.0, -3.0, math.nan]])
    logprobs = torch.tensor([[-2.0, -1.0, -math.inf]], requires_grad=True)
    penalty = reference_kl(logprobs, reference, torch.tensor([[True, True, False]]), estimator)
    assert penalty.item() == pytest.approx(value)
    penalty.backward()
    assert logprobs.grad is not None
    # Below the reference it falls when the policy rises, above it the other way.
    assert logprobs.grad[0].tolist() == pytest.approx(gradient)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_whose_kl_the_penalty_lowers(estimator: Any) -> None:
    """Over all tokens, each as often as the policy says it: k2 has the gradient of KL(policy, reference), k3 of KL(reference, policy)."""
    logits = torch.tensor([2.0, 0.0, -1.0], requires_grad=True)
    reference = torch.tensor([0.5, 1.0, 0.0]).log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    share = logprobs.exp().detach()
    parts = [
        reference_kl(logprobs[i : i + 1, None], reference[i : i + 1, None], torch.ones(1, 1, dtype=torch.bool), estimator) for i in range(3)
    ]
    (got,) = torch.autograd.grad(sum(share[i] * part for i, part in enumerate(parts)), logits, retain_graph=True)  # type: ignore[type-var]
    policy_first = (logprobs.exp() * (logprobs - reference)).sum()
    reference_first = (reference.exp() * (reference - logprobs)).sum()
    (wanted,) = torch.autograd.grad(policy_first if estimator == "k2" else reference_first, logits)
    torch.testing.assert_close(got, wanted)


def test_padding_may_hold_anything() -> None:
    """Not in the loss, nor in a gradient: 0 · NaN is NaN."""
    clean, poisoned = (torch.where(MASK, torch.tensor([[0.5, -1.0, 0.0], [2.0, 0.0, 0.0]]), fill) for fill in (0.0, math.nan))

    def losses(x: torch.Tensor, data: torch.Tensor) -> list[torch.Tensor]:
        return [
            reinforce_loss(x, data, MASK),
            clipped_policy_loss(x, data, data, MASK, cliprange=0.2)[0],
            clipped_value_loss(x, data, data + 1, MASK, cliprange=0.2),
            reference_kl(x, data, MASK),
            reference_kl(x, data, MASK, "k3"),
        ]

    for which in range(5):
        runs = []
        for data in (clean, poisoned):
            x = (data + 0.1).requires_grad_()
            loss = losses(x, data)[which]
            runs.append((loss, torch.autograd.grad(loss, x)[0]))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
