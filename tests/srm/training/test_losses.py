"""The terms of the loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from srm.modeling import SentenceRewardOutput
from srm.training.losses import mean_value, reward_loss, sentence_reward_penalty

# Responses of 2, 0 and 1 sentences.
REWARDS = torch.tensor([1.0, -2.0, 3.0, 4.0, 0.0, 2.0])
VALUES = torch.tensor([1.0, -1.0, 2.0, 4.0, 0.0, 2.0])
CU = torch.tensor([0, 3, 4, 6])
MEAN_SQUARES = [14 / 3, 16.0, 2.0]
MEAN_VALUES = [0.5, 0.0, 2.0]


def output(reward: list[float]) -> SentenceRewardOutput:
    return SentenceRewardOutput(reward=torch.tensor(reward), sentence_reward=REWARDS, value=VALUES)


def bradley_terry(difference: float) -> float:
    return math.log1p(math.exp(-difference))


def test_penalty_is_the_mean_square_of_each_response():
    assert sentence_reward_penalty(REWARDS, CU).tolist() == pytest.approx(MEAN_SQUARES)


def test_mean_value_leaves_the_prompt_out():
    assert mean_value(VALUES, CU).tolist() == pytest.approx(MEAN_VALUES)


def test_mean_value_takes_nothing_from_the_prompt():
    value = VALUES.clone()
    value[CU[:-1]] = math.nan
    assert mean_value(value, CU).tolist() == pytest.approx(MEAN_VALUES)


@pytest.mark.parametrize("weight", [[0.0, 1.0], [0.0, 0.0]])
def test_a_pair_without_weight_takes_no_part(weight):
    """The first pair is NaN in every term."""
    rewards, values = REWARDS.clone(), VALUES.clone()
    rewards[3:4], values[3:4] = math.nan, math.nan
    poisoned = SentenceRewardOutput(reward=torch.tensor([1.0, math.nan, -1.0]), sentence_reward=rewards, value=values)
    pairs, terms = torch.tensor([[0, 1], [2, 0]]), {"mean_value_coefficient": 0.25, "sentence_reward_l2": 0.5}
    loss = reward_loss(poisoned, CU, pairs, weight=torch.tensor(weight), centering=0.1, **terms)
    alone = reward_loss(output([1.0, 0.0, -1.0]), CU, pairs[1:], centering=0.1, **terms)
    for found, wanted in (
        (loss.objective, alone.objective),
        (loss.pair_loss, alone.pair_loss),
        *zip(loss.parts.values(), alone.parts.values(), strict=True),
    ):
        assert found.item() == pytest.approx(wanted.item() if any(weight) else 0.0)


@pytest.mark.parametrize("term", [sentence_reward_penalty, mean_value])
def test_terms_of_no_response_are_empty(term):
    assert term(torch.zeros(0), torch.tensor([0])).shape == (0,)


@pytest.mark.parametrize("weight", [None, [1.0, 3.0]])
def test_loss_by_hand(weight):
    pairs = torch.tensor([[0, 1], [2, 0]])
    loss = reward_loss(
        output([1.0, 0.0, -1.0]),
        CU,
        pairs,
        weight=None if weight is None else torch.tensor(weight),
        centering=0.1,
        mean_value_coefficient=0.25,
        sentence_reward_l2=0.5,
    )
    shares = [0.5, 0.5] if weight is None else [0.25, 0.75]

    def mean(*each: float) -> float:
        return sum(share * value for share, value in zip(shares, each, strict=True))

    assert loss.pair_loss.item() == pytest.approx(pair := mean(bradley_terry(1.0), bradley_terry(-2.0)), rel=1e-6)
    expected = {
        "centering_penalty": mean((1.0 + 0.0) ** 2, (-1.0 + 1.0) ** 2),
        "mean_value_loss": mean(bradley_terry(0.5), bradley_terry(1.5)),
        "sentence_reward_penalty": mean((MEAN_SQUARES[0] + MEAN_SQUARES[1]) / 2, (MEAN_SQUARES[2] + MEAN_SQUARES[0]) / 2),
    }
    assert {name: part.item() for name, part in loss.parts.items()} == pytest.approx(expected, rel=1e-6)
    weighted = 0.1 * expected["centering_penalty"] + 0.25 * expected["mean_value_loss"] + 0.5 * expected["sentence_reward_penalty"]
    assert loss.objective.item() == pytest.approx(pair + weighted, rel=1e-6)


def test_only_the_objective_has_a_gradient():
    reward = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    out = SentenceRewardOutput(reward=reward, sentence_reward=REWARDS, value=VALUES)
    loss = reward_loss(out, CU, torch.tensor([[0, 1]]), centering=0.1, mean_value_coefficient=1.0)
    assert loss.objective.requires_grad
    assert not any(part.requires_grad for part in (loss.pair_loss, *loss.parts.values()))


def test_without_additions_the_pair_loss_is_what_is_minimised():
    loss = reward_loss(output([1.0, 0.0, -1.0]), CU, torch.tensor([[0, 1]]))
    assert loss.objective.item() == loss.pair_loss.item() == pytest.approx(bradley_terry(1.0))
    assert loss.parts == {}


def gradient(values: list[float], cu: list[int], **terms: float) -> list[float]:
    """Of the loss of one pair, into its values; attention is uniform."""
    value = torch.tensor(values, requires_grad=True)
    sentence_reward = torch.cat([torch.cat([row[:1], row.diff()]) for row in value.split(torch.tensor(cu).diff().tolist())])
    reward = torch.stack([row.mean() for row in sentence_reward.split(torch.tensor(cu).diff().tolist())])
    out = SentenceRewardOutput(reward=reward, sentence_reward=sentence_reward, value=value)
    (grad,) = torch.autograd.grad(reward_loss(out, torch.tensor(cu), torch.tensor([[0, 1]]), **terms).objective, value)
    return grad.tolist()


def test_penalty_anchors_the_prompt():
    """The pair loss alone leaves the shared prompt's value, indices 0 and 2, without a gradient."""
    values, cu = [5.0, 1.0, 5.0, -1.0], [0, 2, 4]
    alone, priced = gradient(values, cu), gradient(values, cu, sentence_reward_l2=0.01)
    assert alone[0] + alone[2] == 0
    assert priced[0] + priced[2] > 0


def test_mean_value_trains_every_sentence_end():
    """The pair loss alone trains the last value only; the prompt's is left to the penalty."""
    values, cu = [0.0, 1.0, 2.0, 0.0, 1.0, -2.0], [0, 3, 6]
    assert gradient(values, cu)[1] == 0
    grad = gradient(values, cu, mean_value_coefficient=1.0)
    assert grad[1] < 0 < grad[4]
    assert grad[0] == grad[3] == 0
