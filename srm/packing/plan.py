"""The attention plan: who attends to whom, worked out once per batch and shared by all layers.

Shape letters: `S` segments, `R` mask rows, `C` mask columns.
"""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from srm.packing.batch import PackedBatch
from srm.packing.gather import KeyRows, key_rows

__all__ = ["QUERY_BLOCK", "AttentionPlan"]

# Masked queries run in blocks of this many rows, so that a mask never grows with the square of a segment.
QUERY_BLOCK = 1024


class AttentionPlan:
    """The segments of one packed row.

    No dataclass: FSDP2 copies every dataclass among a layer's arguments where it rounds them, and what one layer built, the next would
    build anew.

    Args:
        lengths: tokens of each segment, in row order [S].
        parents: index of the segment whose keys come first, or -1 [S]. A parent has no parent itself and precedes its children.
    """

    def __init__(self, *, lengths: tuple[int, ...], parents: tuple[int, ...]) -> None:
        assert len(lengths) == len(parents)
        assert all(parent < child and (parent < 0 or parents[parent] < 0) for child, parent in enumerate(parents))
        self.lengths = lengths
        self.parents = parents
        self._masks: dict[tuple[int | None, torch.dtype, torch.device], Tensor] = {}
        self._key_rows: dict[torch.device, KeyRows] = {}
        # What backends keep for the batch beside that, by a key of their own.
        self.cache: dict[Any, Any] = {}

    @classmethod
    def from_batch(cls, batch: PackedBatch) -> AttentionPlan:
        """The plan of a batch, from the layout's copy on the host; without one it is read back, which waits for the device once.

        Args:
            batch: a packed one.

        Returns:
            A new plan, with nothing built yet.

        Raises:
            ValueError: the batch is padded.
        """
        if batch.cu_seqlens is None or batch.parent is None:
            raise ValueError("AttentionPlan.from_batch: the batch is padded (mode `none`), so it has no segments.")
        if batch.segments is not None:
            lengths, parents = batch.segments
            return cls(lengths=lengths, parents=parents)
        return cls(lengths=tuple(batch.cu_seqlens.diff().tolist()), parents=tuple(batch.parent.tolist()))

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return sum(self.lengths)

    @cached_property
    def num_keys(self) -> int:
        """Keys that all segments see, a parent's once for each child."""
        return self.num_tokens + sum(self.prefix(segment) for segment in range(len(self.lengths)))

    @cached_property
    def max_queries(self) -> int:
        """Tokens of the longest segment."""
        return max(self.lengths)

    @cached_property
    def max_keys(self) -> int:
        """Keys that the segment with the most of them sees."""
        return max(self.prefix(segment) + length for segment, length in enumerate(self.lengths))

    def key_rows(self, device: torch.device) -> KeyRows:
        """Where each segment's keys are, for variable-length attention; built once a batch and device.

        Args:
            device: where they are wanted.

        Returns:
            The same object at every call.
        """
        if device not in self._key_rows:
            # Pinned and not waited for: the copy overlaps with what the device still has to do.
            host = torch.tensor([self.lengths, self.parents], dtype=torch.int64)
            lengths, parents = (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
            self._key_rows[device] = key_rows(
                lengths,
                parents,
                num_tokens=self.num_tokens,
                num_keys=self.num_keys,
                has_parents=any(parent >= 0 for parent in self.parents),
            )
        return self._key_rows[device]

    @cached_property
    def rows(self) -> tuple[slice, ...]:
        """Where each segment's tokens are [S]."""
        ends = list(accumulate(self.lengths))
        return tuple(slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True))

    def prefix(self, segment: int) -> int:
        """Keys that precede a segment's own.

        Args:
            segment: its index.

        Returns:
            The length of its parent, 0 without one.
        """
        parent = self.parents[segment]
        return self.lengths[parent] if parent >= 0 else 0

    def mask(self, rows: int, prefix: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An additive mask: row `i` sees the columns up to `prefix + i`, the last `window` of them.

        All masks are views into one matrix per window and dtype, because a mask depends on the distance `prefix + row - column` alone.

        Args:
            rows: how many queries, at most `QUERY_BLOCK`.
            prefix: how many keys precede the first query's own.
            window: how many keys a query sees, its own included; None for all.
            dtype: the mask's.
            device: the mask's.

        Returns:
            [rows, prefix + rows] of 0 and -inf.
        """
        key = (window, dtype, device)
        if key not in self._masks:
            self._masks[key] = self._widest_mask(window, dtype, device)
        widest = self._masks[key]
        first = widest.shape[1] - widest.shape[0] - prefix
        return widest[:rows, first : first + prefix + rows]

    def _widest_mask(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        rows = min(QUERY_BLOCK, self.max_queries)
        prefix = self.max_keys if window is None else min(self.max_keys, window)
        # How far each row's own column lies to the right of the column looked at.
        distance = torch.arange(rows, device=device)[:, None] - torch.arange(-prefix, rows, device=device)
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
