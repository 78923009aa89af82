"""Token-level rewards against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from srm.rl import sentence_rewards, token_level_rewards, whiten
from srm.scoring.token_ids import ScoredTokens


@pytest.fixture
def scored() -> ScoredTokens:
    """Three responses: two sentences, none, one."""
    return ScoredTokens(
        reward=torch.tensor([2.0, 0.5, -1.0]),
        sentence_reward=torch.tensor([9.0, 1.0, 3.0, 9.0, 9.0, -2.0]),
        weight=torch.tensor([0.5, 0.25, 0.25, 1.0, 0.5, 0.5]),
        ends=torch.tensor([-1, 1, 3, -1, -1, 0]),
        cu_boundaries=torch.tensor([0, 3, 4, 6]),
        lengths=torch.tensor([4, 0, 1]),
        width=5,
    )


def test_spans_and_places(scored: ScoredTokens) -> None:
    assert scored.spans.tolist() == [[0, 0], [0, 2], [2, 4], [0, 0], [0, 0], [0, 1]]
    assert scored.to_padded(scored.sentence_reward).tolist() == [[0, 1, 0, 3, 0], [0] * 5, [-2, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("kind", "paid"), [("weighted", [0, 0.25, 0.75, 0, 0, -1]), ("sentence", [0, 1, 3, 0, 0, -2]), ("response", [0, 0, 2, 0, 0, -1])]
)
def test_what_a_sentence_earns(scored: ScoredTokens, kind: str, paid: list[float]) -> None:
    assert sentence_rewards(scored, kind).tolist() == paid
    total = token_level_rewards(scored, kind=kind)
    assert total.shape == (3, 5)
    assert total.sum().item() == pytest.approx(sum(paid))
    assert total[0, 3].item() == paid[2]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_is_paid_on_the_policys_tokens_only(scored: ScoredTokens, estimator: str) -> None:
    torch.manual_seed(0)
    logprobs, reference = torch.randn(3, 5), torch.randn(3, 5)
    logprobs[0, 4] = -torch.inf
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
    got = token_level_rewards(scored, logprobs=logprobs, ref_logprobs=reference, mask=mask, kl_coef=0.1, estimator=estimator)
    x = logprobs - reference
    penalty = {"k1": x, "k2": x.square() / 2, "k3": (-x).exp() - 1 + x}[estimator]
    want = token_level_rewards(scored) - torch.where(mask.bool(), 0.1 * penalty, 0)
    torch.testing.assert_close(got, want)


def test_whitening(scored: ScoredTokens) -> None:
    full = token_level_rewards(scored, kind="sentence", whitening="full")
    value = torch.tensor([1.0, 3.0, -2.0])
    want = (value - value.mean()) / value.std(correction=0)
    torch.testing.assert_close(torch.stack([full[0, 1], full[0, 3], full[2, 0]]), want)
    scaled = token_level_rewards(scored, kind="response", whitening="scale")
    value = torch.tensor([2.0, -1.0])
    want = (value - value.mean()) / value.std(correction=0) + value.mean()
    torch.testing.assert_close(torch.stack([scaled[0, 3], scaled[2, 0]]), want)
    alike = torch.full((4,), 0.1)
    assert whiten(alike, torch.ones(4, dtype=torch.bool)).abs().max() < 1e-6
    assert whiten(torch.zeros(0), torch.zeros(0, dtype=torch.bool)).numel() == 0
    kept = torch.tensor([True, True, False])
    assert whiten(torch.tensor([1.0, 3.0, torch.inf]), kept).tolist() == [-1, 1, 0]


def test_the_prompts_reward_takes_no_part(scored: ScoredTokens) -> None:
    scored.sentence_reward[~scored.is_sentence] = torch.nan
    for kind, paid in (("weighted", [0, 0.25, 0.75, 0, 0, -1]), ("sentence", [0, 1, 3, 0, 0, -2])):
        assert sentence_rewards(scored, kind).tolist() == paid
        assert token_level_rewards(scored, kind=kind).sum().item() == pytest.approx(sum(paid))


def test_errors(scored: ScoredTokens) -> None:
    with pytest.raises(ValueError, match="`kind` must be one of weighted, sentence, response, got 'mean'"):
        token_level_rewards(scored, kind="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"kl_coef=0.1 needs `logprobs` and `ref_logprobs`, each \[3, 5\]"):
        token_level_rewards(scored, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"`logprobs` must be \[3, 5\]"):
        token_level_rewards(scored, kl_coef=0.1, logprobs=torch.zeros(3, 4), ref_logprobs=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="`whitening` must be one of none, scale, full, position"):
        token_level_rewards(scored, whitening="yes")  # type: ignore[arg-type]


def test_no_responses() -> None:
    empty = torch.zeros(0)
    nothing = ScoredTokens(
        reward=empty,
        sentence_reward=empty,
        weight=empty,
        ends=empty.long(),
        cu_boundaries=torch.zeros(1, dtype=torch.int64),
        lengths=empty.long(),
        width=0,
    )
    assert token_level_rewards(nothing).shape == (0, 0)
