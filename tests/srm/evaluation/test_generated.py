"""measure(): a model that knows the truth, one that knows its opposite, and one that knows nothing."""

from __future__ import annotations

import pytest

from srm.data.synthetic import SyntheticPair, generate_pairs
from srm.evaluation.generated import _mean_value, measure
from srm.scoring.results import ScoredResponse, ScoredSentence

PAIRS = generate_pairs(40, split="test", seed=5)


class Oracle:
    """Gives damaged sentences the reward `bad` and all others 1."""

    def __init__(self, pairs: list[SyntheticPair], bad: float) -> None:
        self.damaged = {pair.rejected: {damage.sentence for damage in pair.damaged} for pair in pairs}
        self.sentences = {answer: sentences for pair in pairs for answer, sentences in self._answers(pair)}
        self.bad = bad

    @staticmethod
    def _answers(pair: SyntheticPair) -> list[tuple[str, tuple[str, ...]]]:
        return [(pair.chosen, pair.chosen_sentences), (pair.rejected, pair.rejected_sentences)]

    def score(self, prompts: list[str], responses: list[list[str]], **_: object) -> list[list[ScoredResponse]]:
        return [[self._score(answer) for answer in group] for group in responses]

    def _score(self, answer: str) -> ScoredResponse:
        scored, start = [], 0
        for index, sentence in enumerate(self.sentences[answer]):
            reward = self.bad if index in self.damaged.get(answer, ()) else 1.0
            end = start + len(sentence) + 1
            scored.append(
                ScoredSentence(text=answer[start:end], start=start, end=end, reward=reward, weight=0.5, weighted_reward=reward / 2)
            )
            start = end
        return ScoredResponse(
            reward=min(sentence.reward for sentence in scored), prompt_reward=0.0, prompt_weight=1.0, sentences=tuple(scored)
        )


@pytest.mark.parametrize(("bad", "accuracy", "auc"), [(0.0, 1.0, 1.0), (1.0, 0.5, 0.5)])
def test_measure_of_known_models(bad: float, accuracy: float, auc: float) -> None:
    result = measure(Oracle(PAIRS, bad), PAIRS)
    assert result.accuracy == accuracy
    assert result.mean_value_accuracy == accuracy
    assert result.credit.overall.auc == auc
    assert result.credit.overall.num_bad == sum(len(pair.damaged) for pair in PAIRS)
    assert set(result.credit.by_kind) == {damage.kind for pair in PAIRS for damage in pair.damaged}
    assert result.credit.several is not None
    assert result.credit.several.num_responses == sum(len(pair.damaged) > 1 for pair in PAIRS)
    longer = [(len(p.chosen) > len(p.rejected)) + (len(p.chosen) == len(p.rejected)) / 2 for p in PAIRS]
    assert result.longer_wins == pytest.approx(sum(longer) / len(PAIRS))


def test_inverted_credit_is_not_hidden_by_accuracy() -> None:
    result = measure(Oracle(PAIRS, 2.0), PAIRS)
    assert result.credit.overall.auc == 0.0
    assert result.to_dict()["credit"]["overall"]["auc"] == 0.0
    assert "scored" not in result.to_dict()
    # Its rewards are least, 1, in chosen and rejected answers alike, and add up to more in the rejected ones.
    assert (result.accuracy, result.mean_value_accuracy) == (0.5, 0.0)


def test_the_mean_value_is_of_running_sums_from_the_prompts() -> None:
    sentences = tuple(ScoredSentence(text="A.", start=0, end=2, reward=r, weight=0.0, weighted_reward=0.0) for r in (1.0, -3.0))
    # Values 2.5 and -0.5.
    assert _mean_value(ScoredResponse(reward=0.0, prompt_reward=1.5, prompt_weight=1.0, sentences=sentences)) == 1.0
