"""Which rows make up which optimizer step, independent of how many processes share the work.

An epoch's order is cut into global batches, one an optimizer step; each is then dealt out to its slots, `num_processes` times the
number of accumulation steps. So two processes see the same global batches as one, and the order depends on the seed and the epoch
alone, which is what makes a run resumable. Rows are dealt so that all slots run about as many tokens: no process waits long for another
at the end of a step, and the longest pass, which decides how much memory training takes, is hardly longer than the others. With a limit
on the tokens of a pass, a slot is run in several: how many is worked out from the lengths, so all processes know it without asking.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from srm.data import EncodedComparison, PairCollator
from srm.packing import PackingMode, PromptGroup
from srm.scoring.batching import pass_cost

__all__ = ["GlobalBatchSampler", "PassCollator", "RowDataset"]


class GlobalBatchSampler(Sampler[list[list[int]]]):
    """Slots for every process in turn: process 0, 1, ..., then the next accumulation step. A slot is a list of forward passes, a pass
    a list of row indices.

    accelerate's `BatchSamplerShard` deals consecutive slots to the processes, so each process gets its own. Every process gets the
    same number, and the slots of a step have the same number of passes: processes that share weights (FSDP, ZeRO) run in step. Where
    there are fewer rows than passes, the empty ones hold the shortest row's index as `~index` (negative): a filler that runs, so that
    no process waits for another, and counts nothing.

    Args:
        rows: what is trained on.
        packing: how a pass is run, and so what it costs.
        batch_size: rows of one slot.
        num_processes, accumulation_steps: how many slots make a global batch.
        max_tokens: upper bound on the tokens of a pass, padding included; a single longer row still runs, alone. None: a slot is one pass.
        order: `random`, `sequential`, or `group_by_length`: random, rows of similar length near each other.
        drop_last: leave out the last global batch where it is short.
    """

    def __init__(
        self,
        rows: Sequence[PromptGroup],
        *,
        packing: PackingMode,
        batch_size: int,
        num_processes: int = 1,
        accumulation_steps: int = 1,
        max_tokens: int | None = None,
        order: str = "random",
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.rows = rows
        self.packing = packing
        self.lengths = [pass_cost([row], packing) for row in rows]
        self.slot_size = batch_size
        self.num_processes = num_processes
        self.global_size = batch_size * num_processes * accumulation_steps
        self.max_tokens = max_tokens
        self.order = order
        self.seed = seed
        self.drop_last = drop_last
        # Set by the trainer at each epoch's start. Not named `set_epoch`: accelerate would call that with a count of its own.
        self.epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.global_size)
        slots = whole * (self.global_size // self.slot_size)
        return slots if self.drop_last else slots + self._slots_of(rest)

    def __iter__(self) -> Iterator[list[list[int]]]:
        order = self._order()
        for start in range(0, len(order), self.global_size):
            rows = order[start : start + self.global_size]
            if self.drop_last and len(rows) < self.global_size:
                return
            yield from self._deal(rows)

    def _deal(self, rows: Sequence[int]) -> list[list[list[int]]]:
        """The rows of one global batch by slot and pass, in as few passes as keep each within `max_tokens`."""
        num_slots = self._slots_of(len(rows))
        # As many passes as there are rows always do, because a row alone may be longer.
        passes = next(passes for count in itertools.count(1) if self._fit(passes := self._spread(rows, num_slots * count)))
        filler = [~min(rows, key=lambda row: self.lengths[row])]
        return [[part or filler for part in passes[slot::num_slots]] for slot in range(num_slots)]

    def _fit(self, passes: list[list[int]]) -> bool:
        limit = self.max_tokens
        return limit is None or all(len(part) <= 1 or pass_cost((self.rows[row] for row in part), self.packing) <= limit for part in passes)

    def _spread(self, rows: Sequence[int], num_passes: int) -> list[list[int]]:
        """The rows by pass: the longest first, each to the pass with the fewest tokens among those with room."""
        passes: list[list[int]] = [[] for _ in range(num_passes)]
        # The place in the list breaks ties, so that equal lengths are dealt the same way everywhere.
        least = [(0, index) for index in range(num_passes)]
        for row in sorted(rows, key=lambda row: -self.lengths[row]):
            tokens, index = heapq.heappop(least)
            passes[index].append(row)
            if len(passes[index]) < self.slot_size:
                heapq.heappush(least, (tokens + self.lengths[row], index))
        return passes

    def _slots_of(self, rows: int) -> int:
        """How many places `rows` rows need, the same number for every process."""
        return self.num_processes * math.ceil(rows / (self.num_processes * self.slot_size))

    def _order(self) -> list[int]:
        if self.order == "sequential":
            return list(range(len(self.lengths)))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.order == "group_by_length":
            return list(LengthGroupedSampler(self.global_size, lengths=list(self.lengths), generator=generator))
        return torch.randperm(len(self.lengths), generator=generator).tolist()


class RowDataset(Dataset[list[tuple[Any, bool]]]):
    """The rows of a pass, each with whether it counts: index `i` gives `(row, True)`, a filler `~i` gives `(row, False)`."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int]) -> list[tuple[Any, bool]]:
        return [(self.rows[index], True) if index >= 0 else (self.rows[~index], False) for index in indices]


class PassCollator:
    """A slot's passes from a `RowDataset` to batches with `num_items`, the weight of a batch's pairs; 0 for a filler.

    Args:
        collate: makes a batch of rows.
    """

    def __init__(self, collate: PairCollator) -> None:
        self.collate = collate

    def __call__(self, passes: Iterable[Sequence[tuple[EncodedComparison, bool]]]) -> list[dict[str, Any]]:
        return [self._batch(rows) for rows in passes]

    def _batch(self, rows: Sequence[tuple[EncodedComparison, bool]]) -> dict[str, Any]:
        comparisons, counts = zip(*rows, strict=True)
        inputs = self.collate(list(comparisons))
        weight = inputs["weight"]
        num_items = float(len(inputs["pairs"]) if weight is None else weight.double().sum())
        return {**inputs, "num_items": num_items if all(counts) else 0.0}
