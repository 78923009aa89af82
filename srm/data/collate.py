"""Encoded comparisons to a PackedBatch with the pairs to compare.

Shape letters: `P` pairs, `B` responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch

from srm.data.overlong import EncodedComparison
from srm.data.schema import Granularity
from srm.packing import PackingMode, PromptGroup, pack

__all__ = ["PairCollator"]


@dataclass(frozen=True, kw_only=True)
class PairCollator:
    """Collate function of a `DataLoader` over `EncodedComparison`s.

    Called with a list of comparisons it returns

    - `batch`: `PackedBatch`, the responses in order, comparison by comparison;
    - `pairs`: int64 [P, 2], (better, worse) as indices into the batch's B responses;
    - `margin`: float32 [P], 0 for pairs without one, or None where no pair has one;
    - `weight`: float32 [P], 1 / (number of pairs of the comparison), so that each comparison counts once; None where each is one pair.

    Attributes:
        packing: `shared`, `packed` or `none`.
        pad_token_id: fills padded rows with `packing="none"`.
        granularity: with `token`, boundaries are the last prompt token and every response token; else the sentences' ends.
    """

    packing: PackingMode = "shared"
    pad_token_id: int
    granularity: Granularity = "sentence"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("packing", self.packing, get_args(PackingMode)),
            ("granularity", self.granularity, get_args(Granularity)),
        ):
            if value not in allowed:
                raise ValueError(f"PairCollator: `{name}` must be one of {', '.join(allowed)}, got {value!r}.")

    def __call__(self, comparisons: Sequence[EncodedComparison]) -> dict[str, Any]:
        pairs: list[tuple[int, int]] = []
        margins: list[float | None] = []
        weights: list[float] = []
        first = 0
        for comparison in comparisons:
            for better, worse, margin in comparison.pairs:
                pairs.append((first + better, first + worse))
                margins.append(margin)
                weights.append(1 / len(comparison.pairs))
            first += len(comparison.responses)
        groups: Sequence[PromptGroup] = comparisons
        if self.granularity == "token":
            groups = [replace(group, responses=[response.every_token() for response in group.responses]) for group in groups]
        has_margin = any(margin is not None for margin in margins)
        return {
            "batch": pack(groups, mode=self.packing, pad_token_id=self.pad_token_id),
            "pairs": torch.tensor(pairs, dtype=torch.int64),
            "margin": torch.tensor([margin or 0.0 for margin in margins], dtype=torch.float32) if has_margin else None,
            "weight": torch.tensor(weights, dtype=torch.float32) if any(weight != 1 for weight in weights) else None,
        }
