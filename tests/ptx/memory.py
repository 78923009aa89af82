"""Memory with a shadow: what a kernel reads and writes, and what it must not.

A GPU answers an access out of bounds or off its alignment with an error or with another tensor's data, and says nothing at all about a
read of memory that nobody wrote, or about two threads that meet at one address without a barrier. Here each is a `PtxError`.

Shape letters: `L` lanes that take part, `E` elements a lane.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from .dtypes import RAW, Array
from .program import PtxError

__all__ = ["GlobalMemory", "Lanes", "Memory", "Shadow", "SharedMemory", "view_of"]

NOBODY, SEVERAL = -1, -2


def view_of(address: int, count: int, dtype: np.dtype[Any]) -> Array:
    """The memory of this process, `count` elements from `address` on. Nothing checks that it is anybody's."""
    interface = {"version": 3, "data": (address, False), "shape": (count,), "typestr": dtype.str}
    return np.asarray(SimpleNamespace(__array_interface__=interface))


class Marks:
    """Who touched each cell last: a thread or a warp, in which CTA, between which of its barriers."""

    def __init__(self, num_cells: int) -> None:
        self.owner, self.cta, self.epoch = (np.full(num_cells, NOBODY, np.int32) for _ in range(3))

    def clash(self, cells: Array, owner: Array, cta: Array, epoch: Array) -> bool:
        """Whether another owner of the same CTA touched one of the cells since its last barrier."""
        return bool(((self.epoch[cells] == epoch) & (self.cta[cells] == cta) & (self.owner[cells] != owner)).any())

    def foreign(self, cells: Array, cta: Array) -> bool:
        """Whether another CTA touched one of the cells."""
        before = self.cta[cells]
        return bool(((before != NOBODY) & (before != cta)).any())

    def put(self, cells: Array, owner: Array, cta: Array, epoch: Array) -> None:
        self.owner[cells], self.cta[cells], self.epoch[cells] = owner, cta, epoch

    def add(self, cells: Array, owner: Array, cta: Array, epoch: Array) -> None:
        """Like `put`, but who was there before in the same interval, or comes in the same instruction, counts too."""
        before_owner, before_cta, before_epoch = self.owner[cells], self.cta[cells], self.epoch[cells]
        together = (before_epoch == epoch) & (before_cta == cta) & (before_owner != owner)
        self.put(cells, np.where(together, SEVERAL, owner), np.where((before_cta != NOBODY) & (before_cta != cta), SEVERAL, cta), epoch)
        # Of two lanes at one cell the last one stays: the other sees that it is not itself.
        self.owner[cells[(self.owner[cells] != owner)]] = SEVERAL
        self.cta[cells[(self.cta[cells] != cta)]] = SEVERAL


class Shadow:
    """What happened to each cell since the launch; a cell is as wide as the narrowest access of the program."""

    def __init__(self, num_cells: int, written: bool) -> None:
        self.written = np.full(num_cells, written)
        self.writers, self.readers, self.adders = (Marks(num_cells) for _ in range(3))

    def load(self, cells: Array, owner: Array, cta: Array, epoch: Array) -> str | None:
        """Takes a load of `cells` [L, E] down, and says what is wrong with it."""
        self.readers.add(cells, owner, cta, epoch)
        if not self.written[cells].all():
            return "uninitialised read: nobody wrote there"
        if self.writers.clash(cells, owner, cta, epoch):
            return "race: reads what another thread wrote, without a barrier in between"
        if self.writers.foreign(cells, cta):
            return "race: reads what another CTA wrote"
        return self._beside_adders(cells, owner, cta, epoch)

    def store(self, cells: Array, owner: Array, cta: Array, epoch: Array) -> str | None:
        """Takes a store to `cells` [L, E] down, and says what is wrong with it."""
        problem = None
        if self.writers.clash(cells, owner, cta, epoch):
            problem = "race: writes what another thread wrote, without a barrier in between"
        elif self.readers.clash(cells, owner, cta, epoch):
            problem = "race: writes what another thread read, without a barrier in between"
        elif self.writers.foreign(cells, cta) or self.readers.foreign(cells, cta):
            problem = "race: writes what another CTA read or wrote"
        else:
            problem = self._beside_adders(cells, owner, cta, epoch)
        self.writers.put(cells, owner, cta, epoch)
        self.written[cells] = True
        return problem

    def add(self, cells: Array, owner: Array, cta: Array, epoch: Array) -> str | None:
        """Takes an atomic addition down, and says what is wrong with it: others may add at the same time, but not read or write."""
        self.adders.add(cells, owner, cta, epoch)
        if not self.written[cells].all():
            return "uninitialised read: nobody wrote there"
        for marks in (self.writers, self.readers):
            if marks.clash(cells, owner, cta, epoch) or marks.foreign(cells, cta):
                return "race: adds to what another thread reads or writes as it likes"
        return None

    def _beside_adders(self, cells: Array, owner: Array, cta: Array, epoch: Array) -> str | None:
        if self.adders.clash(cells, owner, cta, epoch) or self.adders.foreign(cells, cta):
            return "race: reads or writes what another thread adds to"
        return None


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The threads that take part in an access.

    Attributes:
        thread: int32 [L], their numbers in the CTA.
        cta: int32 [L], their CTA's place among those that run together.
        cta_id: int32 [L], its number in the grid.
        epoch: int32 [L], the barriers it has passed.
    """

    thread: Array
    cta: Array
    cta_id: Array
    epoch: Array


class Memory(ABC):
    """Bytes that lanes load from, store to and add to.

    Attributes:
        space: `global` or `shared`.
        shadow: None where nothing is checked but bounds and alignment, for counting.
    """

    space: str
    shadow: Shadow | None

    def __init__(self, base: int, num_bytes: int, cell: int) -> None:
        """Views of the `num_bytes` at address `base`, a multiple of 16, by the size of an element."""
        self.cell = cell
        self.views = {size: view_of(base, num_bytes // size, dtype) for size, dtype in RAW.items()}

    @abstractmethod
    def locate(self, address: Array, cta: Array, num_bytes: int) -> tuple[Array, Array]:
        """For each lane the offset of its first byte in the views, and its first cell in the shadow.

        Args:
            address: uint64 [L].
            cta: of each lane, its place among those that run together.
            num_bytes: of the access.

        Raises:
            PtxError: an address out of bounds.
        """

    @abstractmethod
    def owner(self, thread: Array) -> Array:
        """Who must meet others at a barrier: a thread, or a warp."""

    def load(self, lanes: Lanes, address: Array, size: int, count: int) -> list[Array]:
        """`count` elements of `size` bytes for each of the lanes.

        Returns:
            `count` arrays [L] of unsigned integers.

        Raises:
            PtxError: an access out of bounds or not aligned, of bytes that nobody wrote, or a race.
        """
        first = self._touch(lanes, address, size * count, "load")
        view = self.views[size]
        return [view[first // size + i] for i in range(count)]

    def store(self, lanes: Lanes, address: Array, size: int, values: list[Array]) -> None:
        """The counterpart of `load`; `values` are arrays [L] of unsigned integers.

        Raises:
            PtxError: an access out of bounds or not aligned, a race, or lanes that store different data at one address.
        """
        first = self._touch(lanes, address, size * len(values), "store")
        view = self.views[size]
        for i, value in enumerate(values):
            view[first // size + i] = value
        if any((view[first // size + i] != value).any() for i, value in enumerate(values)):
            raise PtxError("race: two threads store different data at one address")

    def add(self, lanes: Lanes, address: Array, size: int, value: Array) -> Array:
        """Adds `value`, unsigned integers [L], at each address, one lane after the other.

        Returns:
            [L], what each lane found there.

        Raises:
            PtxError: as a load's or a store's, or another thread that reads or writes there without adding.
        """
        place = self._touch(lanes, address, size, "add") // size
        found = np.empty_like(value)
        for lane, at in enumerate(place):
            found[lane] = self.views[size][at]
            self.views[size][at] += value[lane]
        return found

    def _touch(self, lanes: Lanes, address: Array, num_bytes: int, what: Literal["load", "store", "add"]) -> Array:
        first, cell = self.locate(address, lanes.cta, num_bytes)
        if (address % np.uint64(num_bytes)).any():
            raise PtxError(f"misaligned: {num_bytes} bytes at {int(address[address % np.uint64(num_bytes) != 0][0]):#x}")
        if self.shadow is not None:
            cells = cell[:, None] + np.arange(num_bytes // self.cell)
            check = getattr(self.shadow, what)
            who = (np.broadcast_to(x[:, None], cells.shape) for x in (self.owner(lanes.thread), lanes.cta_id, lanes.epoch))
            if problem := check(cells, *who):
                raise PtxError(problem)
        return first


class GlobalMemory(Memory):
    """The tensors that a launch was given, where they lie; what lies between them is out of bounds."""

    space = "global"

    def __init__(self, extents: Iterable[tuple[int, int]], cell: int, check: bool = True) -> None:
        """`extents`: address of the first byte and number of bytes of each tensor; views of one storage may overlap."""
        merged: list[list[int]] = []
        for begin, num_bytes in sorted(extents):
            if merged and begin < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], begin + num_bytes)
            elif num_bytes:
                merged.append([begin, begin + num_bytes])
        self.begin, self.end = (np.array([x[i] for x in merged], np.uint64) for i in range(2))
        self.base = int(merged[0][0]) // 16 * 16 if merged else 0
        super().__init__(self.base or 16, int(merged[-1][1]) - self.base if merged else 0, cell)
        sizes = [-(-end // cell) - begin // cell for begin, end in merged]
        self.first_cell = np.cumsum([0, *sizes])
        self.shadow = Shadow(int(self.first_cell[-1]), written=True) if check else None

    def forget(self, address: Array, num_bytes: int) -> None:
        """Nobody has written the `num_bytes` at each address yet."""
        if self.shadow is not None and len(address):
            _, cell = self.locate(address.astype(np.uint64), address, num_bytes)
            self.shadow.written[cell[:, None] + np.arange(max(1, num_bytes // self.cell))] = False

    def locate(self, address: Array, cta: Array, num_bytes: int) -> tuple[Array, Array]:
        tensor = np.searchsorted(self.begin, address, side="right") - 1
        bad = (tensor < 0) | (address > self.end[tensor] - np.uint64(num_bytes))
        if bad.any():
            at = int(address[bad][0])
            near = ", ".join(f"{int(b):#x} to {int(e):#x}" for b, e in zip(self.begin, self.end, strict=True))
            raise PtxError(f"out of bounds: {num_bytes} bytes at {at:#x}, {int(bad.sum())} such lanes; the tensors lie at {near}")
        cell = self.first_cell[tensor] + (address // np.uint64(self.cell) - self.begin[tensor] // np.uint64(self.cell)).astype(np.int64)
        return (address - np.uint64(self.base)).astype(np.int64), cell

    def owner(self, thread: Array) -> Array:
        return thread


class SharedMemory(Memory):
    """What the threads of a CTA share, for each of the CTAs that run together; nothing is written at first.

    Lanes of one warp are taken to run in step, as Triton takes them: only warps must meet at a barrier.
    """

    space = "shared"

    def __init__(self, num_ctas: int, num_bytes: int, cell: int, check: bool = True) -> None:
        self.num_bytes = num_bytes
        self.stride = max(16, -(-num_bytes // 16) * 16)
        self.room = np.full(num_ctas * self.stride + 16, 0xAB, np.uint8)  # Held: the views do not own it.
        begin = -self.room.ctypes.data % 16
        super().__init__(self.room.ctypes.data + begin, num_ctas * self.stride, cell)
        self.shadow = Shadow(num_ctas * self.stride // cell, written=False) if check else None

    def locate(self, address: Array, cta: Array, num_bytes: int) -> tuple[Array, Array]:
        bad = address.astype(np.int64) + num_bytes > self.num_bytes
        if bad.any():
            raise PtxError(f"out of bounds: {num_bytes} bytes at {int(address[bad][0])} of {self.num_bytes} in shared memory")
        first = cta * self.stride + address.astype(np.int64)
        return first, first // self.cell

    def owner(self, thread: Array) -> Array:
        return thread >> 5
