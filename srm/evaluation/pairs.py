"""Accuracy on preference pairs, by subset, beside the baseline that every reward model must beat: the longer response wins."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srm.data import ResponseRow, read_responses
from srm.data.responses import num_chars
from srm.scoring.lines import read_scores_of

__all__ = ["PairOutcome", "SubsetAccuracy", "accuracy_by_subset", "pair_outcomes", "scored_rows", "won"]


@dataclass(frozen=True, kw_only=True)
class PairOutcome:
    """Rewards and lengths of one pair.

    Attributes:
        subset: what the pair is counted under.
        chosen_reward: of the chosen response.
        rejected_reward: of the rejected one.
        chosen_length: in characters of the assistant's words.
        rejected_length: in the same.
    """

    subset: str
    chosen_reward: float
    rejected_reward: float
    chosen_length: int
    rejected_length: int


@dataclass(frozen=True, kw_only=True)
class SubsetAccuracy:
    """Share of pairs ranked rightly, by the model and by length. A tie counts half, for both.

    Attributes:
        subset: its name.
        num_pairs: how many it has.
        accuracy: the model's.
        longer_wins: of ranking by length.
    """

    subset: str
    num_pairs: int
    accuracy: float
    longer_wins: float


def scored_rows(
    source: str, output: Path, *, split: str = "train", left_out: Container[int] = frozenset()
) -> Iterator[list[tuple[ResponseRow, dict[str, Any]]]]:
    """The responses of each row of an input, each with its line of the output.

    Args:
        source: as in `srm.data.read_responses`.
        output: what `srm-score` wrote from it.
        split: as in `srm.data.read_responses`.
        left_out: as in `srm.data.read_responses`.

    Raises:
        UserError: the output does not hold exactly the input's responses.
    """
    rows = read_responses(source, split=split, left_out=left_out)
    for _, responses in itertools.groupby(read_scores_of(output, rows), key=lambda both: both[0].row):
        yield list(responses)


def pair_outcomes(rows: Iterable[Sequence[tuple[ResponseRow, dict[str, Any]]]]) -> Iterator[PairOutcome]:
    """What became of those of the scored rows that are preference pairs."""
    for responses in rows:
        by_label = {row.label: (row, score["reward"]) for row, score in responses}
        if by_label.keys() != {"chosen", "rejected"}:
            continue
        (chosen, chosen_reward), (rejected, rejected_reward) = by_label["chosen"], by_label["rejected"]
        yield PairOutcome(
            subset=str(chosen.extra.get("subset", "pairs")),
            chosen_reward=chosen_reward,
            rejected_reward=rejected_reward,
            chosen_length=num_chars(chosen.response),
            rejected_length=num_chars(rejected.response),
        )


def accuracy_by_subset(outcomes: Iterable[PairOutcome]) -> list[SubsetAccuracy]:
    """One row a subset in order of name, and last the row `all` over all pairs."""
    by_subset: dict[str, list[PairOutcome]] = {}
    everything: list[PairOutcome] = []
    for outcome in outcomes:
        by_subset.setdefault(outcome.subset, []).append(outcome)
        everything.append(outcome)
    rows = [_accuracy(subset, by_subset[subset]) for subset in sorted(by_subset)]
    return [*rows, _accuracy("all", everything)] if everything else []


def _accuracy(subset: str, outcomes: Sequence[PairOutcome]) -> SubsetAccuracy:
    return SubsetAccuracy(
        subset=subset,
        num_pairs=len(outcomes),
        accuracy=sum(won(o.chosen_reward, o.rejected_reward) for o in outcomes) / len(outcomes),
        longer_wins=sum(won(o.chosen_length, o.rejected_length) for o in outcomes) / len(outcomes),
    )


def won(chosen: float, rejected: float) -> float:
    """1 where chosen is above rejected, 0 below; a tie counts half.

    Args:
        chosen: its reward.
        rejected: its reward.
    """
    return 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
