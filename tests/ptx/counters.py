"""What a launch executed: the quantities that a GPU's profiler would report, and that no clock is needed for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .dtypes import Array

__all__ = ["SECTOR", "Counters"]

SECTOR = 32
"""Bytes that global memory moves at least."""


@dataclass
class Counters:
    """Sums over the CTAs that ran.

    Attributes:
        ctas: how many ran.
        instructions: warp instructions by form; what a predicate turns off is issued too, and counts.
        longest: warp instructions of the CTA that executed most.
        bytes: that threads asked of a state space, by (space, `ld` or `st`).
        requests: warp instructions that asked for any.
        sectors: of 32 bytes that global memory moved for them, by `ld` or `st`; what a warp asks for twice in an instruction moves once.
    """

    ctas: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    sectors: Counter[str] = field(default_factory=Counter)

    def access(self, space: str, kind: str, index: Array, address: Array, num_bytes: int) -> None:
        """Takes down an access of the threads `index` [L], at `address` [L], in one instruction."""
        warp = index >> 5
        self.bytes[space, kind] += len(index) * num_bytes
        self.requests[space, kind] += 1 + int((np.diff(warp) != 0).sum())
        if space == "global":
            # Aligned accesses of at most 16 bytes lie in one sector each.
            sectors = (warp.astype(np.uint64) << np.uint64(44)) ^ (address // np.uint64(SECTOR))
            self.sectors[kind] += len(np.unique(sectors))

    @property
    def warp_instructions(self) -> int:
        """All of them."""
        return sum(self.instructions.values())
