"""A model on generated pairs: does it rank them, and does it find the damaged sentences?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from srm.data.synthetic import SyntheticPair
from srm.evaluation.credit import CreditReport, credit_report, judge
from srm.evaluation.pairs import PairOutcome, accuracy_by_subset, won

if TYPE_CHECKING:
    from srm.modeling import ScoredResponse, SentenceRewardModel

__all__ = ["GeneratedResult", "measure"]


@dataclass(frozen=True, kw_only=True)
class GeneratedResult:
    """How a model does on generated pairs, whose faults are known.

    Attributes:
        accuracy: share of pairs whose chosen answer has the higher reward, ties half.
        mean_value_accuracy: the same for the mean of the values at sentence ends, as training logs it.
        longer_wins: the same for the longer answer.
        credit: of the sentences of the rejected answers.
        scored: (chosen, rejected) a pair, in order.
    """

    accuracy: float
    mean_value_accuracy: float
    longer_wins: float
    credit: CreditReport
    scored: tuple[tuple[ScoredResponse, ScoredResponse], ...]

    def to_dict(self) -> dict[str, Any]:
        """The numbers, without the scores."""
        numbers = {name: getattr(self, name) for name in ("accuracy", "mean_value_accuracy", "longer_wins")}
        return {**numbers, "credit": self.credit.to_dict()}


def measure(
    model: SentenceRewardModel, pairs: Sequence[SyntheticPair], *, tokens_per_batch: int = 4096, show_progress: bool = False
) -> GeneratedResult:
    """Score `pairs` and compare with what is known about them.

    Args:
        model: the reward model.
        pairs: generated ones.
        tokens_per_batch: as in `SentenceRewardModel.score`.
        show_progress: as in `SentenceRewardModel.score`.
    """
    scored = model.score(
        [pair.prompt for pair in pairs],
        [[pair.chosen, pair.rejected] for pair in pairs],
        tokens_per_batch=tokens_per_batch,
        show_progress=show_progress,
    )
    # `score` answers lists with lists.
    both = tuple((chosen, rejected) for chosen, rejected in cast("list[list[ScoredResponse]]", scored))
    outcomes = [
        PairOutcome(
            subset=pair.domain,
            chosen_reward=chosen.reward,
            rejected_reward=rejected.reward,
            chosen_length=len(pair.chosen),
            rejected_length=len(pair.rejected),
        )
        for pair, (chosen, rejected) in zip(pairs, both, strict=True)
    ]
    overall = accuracy_by_subset(outcomes)[-1]
    return GeneratedResult(
        accuracy=overall.accuracy,
        mean_value_accuracy=fmean(won(_mean_value(chosen), _mean_value(rejected)) for chosen, rejected in both),
        longer_wins=overall.longer_wins,
        credit=credit_report(judge(rejected, pair.to_row()["damaged"]) for pair, (_, rejected) in zip(pairs, both, strict=True)),
        scored=both,
    )


def _mean_value(response: ScoredResponse) -> float:
    """Sentence rewards are differences of values: their running sum is the value at each sentence's end."""
    rewards = (sentence.reward for sentence in response.sentences)
    _, *values = accumulate(rewards, initial=response.prompt_reward)
    return fmean(values)
