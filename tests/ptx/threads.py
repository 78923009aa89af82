"""The threads of the CTAs that run together, in step: their registers, where they are, and which of them take part.

Shape letters: `C` CTAs, `L` threads of a CTA, all arrays over threads are [C·L].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .counters import Counters
from .dtypes import Array
from .memory import GlobalMemory, Lanes, Memory, SharedMemory

__all__ = ["Launch", "Pending", "Threads"]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What all CTAs of a launch share.

    Attributes:
        parameters: bits of each argument by the parameter's name, uint64 of no dimension.
        memory: the tensors.
        counters: what was executed.
    """

    parameters: dict[str, Array]
    memory: GlobalMemory
    counters: Counters


@dataclass
class Pending:
    """A branch that only a part of the threads took: where both parts meet, who came, and what has yet to run before they do."""

    meet: int
    came: Array | None
    other: tuple[int, Array] | None


@dataclass
class Threads:
    """CTAs that are at the same instruction.

    Attributes:
        launch: what they belong to.
        ctas: int32 [C], their numbers in the grid.
        num_threads: L.
        shared: their shared memory, and `slot` [C] is each one's place in it.
        epoch: int32 [C], barriers passed.
        issued: int64 [C], warp instructions executed.
        registers: values by name, as unsigned integers or bool.
        position: index of the next instruction.
        active: who takes part, or None for all.
        pending: branches that not all threads took, innermost last.
    """

    launch: Launch
    ctas: Array
    num_threads: int
    shared: SharedMemory
    slot: Array
    epoch: Array
    issued: Array
    registers: dict[str, Array] = field(default_factory=dict)
    position: int = 0
    active: Array | None = None
    pending: list[Pending] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.count = len(self.ctas) * self.num_threads
        self.thread = np.tile(np.arange(self.num_threads, dtype=np.uint32), len(self.ctas))

    def per_thread(self, of_ctas: Array) -> Array:
        """[C·L] from [C]."""
        return np.repeat(of_ctas, self.num_threads)

    def issue(self, form: str) -> None:
        """Counts an instruction for each warp of which a thread takes part."""
        if self.active is None:
            warps = self.num_threads // 32
            self.issued += warps
            self.launch.counters.instructions[form] += warps * len(self.ctas)
        else:
            busy = self.active.reshape(len(self.ctas), -1, 32).any(2).sum(1)
            self.issued += busy
            self.launch.counters.instructions[form] += int(busy.sum())

    def lanes(self, mask: Array | None) -> tuple[Array, Lanes]:
        """Which threads take part, and who they are."""
        index = np.arange(self.count) if mask is None else np.flatnonzero(mask)
        cta = index // self.num_threads
        return index, Lanes(
            thread=(index % self.num_threads).astype(np.int32), cta=self.slot[cta], cta_id=self.ctas[cta], epoch=self.epoch[cta]
        )

    def memory(self, space: str) -> Memory:
        """The memory of a state space."""
        return self.launch.memory if space == "global" else self.shared

    def part(self, chosen: Array, position: int) -> Threads:
        """The `chosen` [C] of the CTAs, which go on at `position`. All their threads take part."""
        kept = self.per_thread(chosen)
        return Threads(
            launch=self.launch,
            ctas=self.ctas[chosen],
            num_threads=self.num_threads,
            shared=self.shared,
            slot=self.slot[chosen],
            epoch=self.epoch[chosen],
            issued=self.issued[chosen],
            registers={name: value[kept] for name, value in self.registers.items()},
            position=position,
        )
