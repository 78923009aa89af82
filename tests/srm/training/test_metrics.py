"""Logged metrics against plain loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from accelerate import Accelerator

from srm.modeling import SentenceRewardOutput
from srm.packing import PackedBatch
from srm.training.losses import RewardLoss
from srm.training.metrics import RewardMetrics, attention_entropy
from srm_kernels import SentenceLayout


def batch(counts: list[int], *, run: int = 10, packed: int = 14, padded: int = 20) -> PackedBatch:
    cu = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    ids = torch.zeros(1, run, dtype=torch.int64)
    return PackedBatch(
        input_ids=ids,
        position_ids=ids,
        layout=SentenceLayout(torch.zeros(sum(counts), dtype=torch.int64), cu),
        num_padded_tokens=padded,
        num_packed_tokens=packed,
    )


def output(rewards: list[float], attention: list[float]) -> SentenceRewardOutput:
    empty = torch.zeros(len(attention))
    return SentenceRewardOutput(reward=torch.tensor(rewards), sentence_reward=empty, weight=torch.tensor(attention), value=empty)


def loss_of(pair_loss: float, **parts: float) -> RewardLoss:
    objective = torch.tensor(pair_loss + sum(parts.values()))
    return RewardLoss(
        objective=objective, pair_loss=torch.tensor(pair_loss), parts={name: torch.tensor(part) for name, part in parts.items()}
    )


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_two_batches_against_a_loop(accelerator):
    metrics = RewardMetrics(torch.device("cpu"), pooling="attention")
    metrics.add(output([1.0, -1.0], [0.5, 0.5, 1.0]), batch([2, 1]), torch.tensor([[0, 1]]), None, loss_of(0.3))
    # A ranking of three: three pairs that share the weight of one row.
    pairs, weight = torch.tensor([[0, 1], [0, 2], [1, 2]]), torch.full((3,), 1 / 3)
    metrics.add(output([2.0, 3.0, 3.0], [0.2, 0.8, 0.25, 0.25, 0.25, 0.25, 1.0]), batch([2, 4, 1]), pairs, weight, loss_of(0.9))
    logs = metrics.read(accelerator, seconds=2.0)

    chosen, rejected, weights = [1.0, 2.0, 2.0, 3.0], [-1.0, 3.0, 3.0, 3.0], [1, 1 / 3, 1 / 3, 1 / 3]

    def mean(values: list[float]) -> float:
        return statistics.fmean(values, weights)

    assert logs["loss"] == pytest.approx((0.3 + 0.9) / 2)
    # Right, wrong, wrong, and a tie that is half right.
    assert logs["accuracy"] == pytest.approx(mean([1, 0, 0, 0.5]))
    assert logs["margin"] == pytest.approx(mean([c - r for c, r in zip(chosen, rejected, strict=True)]))
    assert logs["chosen_reward_mean"] == pytest.approx(mean(chosen))
    assert logs["chosen_reward_std"] == pytest.approx(math.sqrt(mean([(c - mean(chosen)) ** 2 for c in chosen])))
    assert logs["rejected_reward_std"] == pytest.approx(math.sqrt(mean([(r - mean(rejected)) ** 2 for r in rejected])))
    assert logs["sentences_per_response"] == pytest.approx((1 + 0 + 1 + 3 + 0) / 5)
    entropies = [math.log(2), 0.0, -0.2 * math.log(0.2) - 0.8 * math.log(0.8), math.log(4), 0.0]
    assert logs["attention_entropy"] == pytest.approx(statistics.fmean(entropies))
    assert logs["attention_entropy_normalized"] == pytest.approx((1 + entropies[2] / math.log(2) + 1) / 3)
    assert logs["tokens_saved_by_packing"] == pytest.approx((40 - 28) / 40)
    assert logs["tokens_saved_by_sharing"] == pytest.approx((28 - 20) / 40)
    assert logs["tokens_per_second"] == pytest.approx(28 / 2)
    assert metrics.read(accelerator) == {}


def test_padding_saves_nothing(accelerator):
    metrics = RewardMetrics(torch.device("cpu"))
    metrics.add(output([1.0, 0.0], [1.0, 1.0]), batch([1, 1], run=20, packed=14, padded=20), torch.tensor([[0, 1]]), None, loss_of(0.3))
    logs = metrics.read(accelerator)
    assert (logs["tokens_saved_by_packing"], logs["tokens_saved_by_sharing"]) == (0.0, 0.0)


@pytest.mark.parametrize(("granularity", "pooling"), [("token", "attention"), ("response", "attention"), ("sentence", "mean")])
def test_what_has_no_meaning_is_not_logged(accelerator, granularity, pooling):
    metrics = RewardMetrics(torch.device("cpu"), granularity=granularity, pooling=pooling)
    metrics.add(output([1.0, 0.0], [1.0, 1.0]), batch([1, 1]), torch.tensor([[0, 1]]), None, loss_of(0.3))
    logs = metrics.read(accelerator)
    assert "attention_entropy" not in logs
    assert ("sentences_per_response" in logs) == (granularity != "token")
    assert ("mean_value_accuracy" in logs) == (granularity != "token")


@pytest.mark.parametrize(
    ("include_prompt", "shares"), [(True, [[0.2, 0.8], [0.1, 0.2, 0.3, 0.4]]), (False, [[0, 1.0], [0, 0.2, 0.2, 0.6]])]
)
def test_value_attention_is_taken_apart(accelerator, include_prompt, shares):
    """Its weights are sums of softmax weights, and the entropy is that of the softmax."""
    logs = []
    for pooling in ("attention", "value_attention"):
        weights = [[sum(row[i:]) for i in range(len(row))] if pooling == "value_attention" else row for row in shares]
        metrics = RewardMetrics(torch.device("cpu"), pooling=pooling, include_prompt=include_prompt)
        metrics.add(output([1.0, 0.0], weights[0] + weights[1]), batch([2, 4]), torch.tensor([[0, 1]]), None, loss_of(0.3))
        logs.append(metrics.read(accelerator))
    assert logs[0]["attention_entropy"] > 0
    assert logs[1] == pytest.approx(logs[0], abs=1e-6)


def test_entropy_without_the_prompt_counts_one_place_less():
    attention = torch.tensor([0.0, 0.5, 0.5, 0.0, 1.0])
    entropy, share, spread = attention_entropy(attention, torch.tensor([3, 2]), include_prompt=False)
    torch.testing.assert_close(entropy, torch.tensor([math.log(2), 0.0]))
    torch.testing.assert_close(share, torch.tensor([1.0, 0.0]))
    assert spread.tolist() == [True, False]


def test_the_mean_value_may_disagree_with_the_reward(accelerator):
    metrics = RewardMetrics(torch.device("cpu"))
    # Rewards right twice, values of the sentences right once, wrong once and tied once; the prompt's value does not count.
    for rewards, chosen, rejected in (
        ([1.0, 0.0], [0, 2, 0], [9, 1, 0]),
        ([1.0, 0.0], [9, 0, 0], [0, 2, 2]),
        ([0.0, 1.0], [1, 3, 3], [1, 6, 0]),
    ):
        of = SentenceRewardOutput(
            reward=torch.tensor(rewards),
            sentence_reward=torch.zeros(6),
            weight=torch.full((6,), 1 / 3),
            value=torch.tensor([*chosen, *rejected], dtype=torch.float32),
        )
        metrics.add(of, batch([3, 3]), torch.tensor([[0, 1]]), None, loss_of(0.3))
    logs = metrics.read(accelerator)
    assert (logs["accuracy"], logs["mean_value_accuracy"]) == (pytest.approx(2 / 3), pytest.approx(1.5 / 3))
    assert metrics.last_correct == (3.0, 2.0, 1.5)
    metrics.read(accelerator)
    assert metrics.last_correct == (0.0, 0.0, 0.0)


def test_weights_count_in_both_accuracies(accelerator):
    metrics = RewardMetrics(torch.device("cpu"))
    of = SentenceRewardOutput(
        reward=torch.tensor([1.0, 0.0, 2.0]),
        sentence_reward=torch.zeros(6),
        weight=torch.full((6,), 0.5),
        value=torch.tensor([0.0, 5.0, 0.0, 0.0, 0.0, 1.0]),
    )
    # (0, 1): both right. (1, 0): both wrong. (0, 2): the reward is wrong, the mean value is right.
    pairs, weight = torch.tensor([[0, 1], [1, 0], [0, 2]]), torch.tensor([0.5, 0.25, 0.25])
    metrics.add(of, batch([2, 2, 2]), pairs, weight, loss_of(0.3))
    metrics.read(accelerator)
    assert metrics.last_correct == (1.0, 0.5, 0.75)
