"""Executes a `Program`: all threads of a few CTAs in step, one numpy operation an instruction.

Threads of one CTA that take different sides of a branch run one side after the other, and meet at the branch's post-dominator, as on a
GPU. CTAs that take different sides as a whole go on by themselves. A barrier ends an interval: within one, threads are taken to run in any
order, and whoever relies on one is found by the memory's shadow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import arithmetic, conversion, transfer, warp  # noqa: F401  # They register the instructions.
from .control import meeting_points
from .counters import Counters
from .dtypes import Array
from .forms import Step, step_of
from .memory import GlobalMemory, SharedMemory
from .operands import Operands
from .program import Instruction, Program, PtxError
from .threads import Launch, Pending, Threads
from .transfer import element_size

__all__ = ["Machine"]

CONTROL = {"bra", "bra.uni", "bar.sync", "ret"}


class Machine:
    """One kernel, ready to run.

    Attributes:
        program: what it executes.
        cell: bytes that a cell of the memory's shadows stands for: the narrowest access of the program.
    """

    def __init__(self, program: Program, shared_bytes: int, batch: int = 128) -> None:
        """Raises `PtxError` for an instruction that is not known. `shared_bytes` has a CTA; `batch` CTAs run in step."""
        self.program, self.shared_bytes, self.batch = program, shared_bytes, batch
        operands = Operands(program.registers)
        self.steps: list[Step | None] = [None if i.form in CONTROL else step_of(i, operands) for i in program.instructions]
        self.guards = [None if i.predicate is None else operands.read(f"%{i.predicate}", "pred") for i in program.instructions]
        self.meet = meeting_points(program)
        self.cell = min((size for size in map(element_size, program.instructions) if size is not None), default=4)

    def run(self, grid: int, parameters: dict[str, Array], memory: GlobalMemory, ctas: Sequence[int] | None = None) -> Counters:
        """Launches a grid of one dimension.

        Args:
            grid: number of CTAs.
            parameters: bits of each argument, by the parameter's name.
            memory: the tensors, with cells of `self.cell` bytes.
            ctas: which of the CTAs run; all of them if None.

        Returns:
            What they executed.

        Raises:
            PtxError: what a GPU would refuse or do wrong; see `memory`.
        """
        launch = Launch(parameters=parameters, memory=memory, counters=Counters())
        todo = np.arange(grid, dtype=np.int32) if ctas is None else np.asarray(ctas, np.int32)
        launch.counters.ctas = len(todo)
        with np.errstate(all="ignore"):
            for begin in range(0, len(todo), self.batch):
                self._run_batch(todo[begin : begin + self.batch], launch)
        return launch.counters

    def _run_batch(self, ctas: Array, launch: Launch) -> None:
        shared = SharedMemory(len(ctas), self.shared_bytes, self.cell, check=launch.memory.shadow is not None)
        whole = Threads(
            launch=launch,
            ctas=ctas,
            num_threads=self.program.num_threads,
            shared=shared,
            slot=np.arange(len(ctas), dtype=np.int32),
            epoch=np.zeros_like(ctas),
            issued=np.zeros(len(ctas), np.int64),
        )
        groups = [whole]
        while groups:
            threads: Threads | None = groups.pop()
            while threads is not None:
                _rejoin(threads)
                instruction = self.program.instructions[threads.position]
                try:
                    threads = self._step(threads, instruction, groups)
                except PtxError as error:
                    raise PtxError(f"{self.program.name}: {error} ({instruction.form} at {instruction.place})") from None

    def _step(self, threads: Threads, instruction: Instruction, groups: list[Threads]) -> Threads | None:
        """Executes one instruction; returns who goes on, or None where all have returned. Who goes on elsewhere is put on `groups`."""
        guard = self.guards[threads.position]
        mask = threads.active if guard is None else guard(threads) ^ instruction.negated
        if guard is not None and threads.active is not None:
            mask = mask & threads.active
        threads.issue(instruction.form)
        step = self.steps[threads.position]
        if step is not None:
            step(threads, mask)
        elif instruction.opcode == "bra":
            return self._branch(threads, instruction, mask, groups)
        elif threads.active is not None or guard is not None:
            raise PtxError("only a part of the threads arrives")
        elif instruction.opcode == "ret":
            threads.launch.counters.longest = max(threads.launch.counters.longest, int(threads.issued.max()))
            return None
        else:
            threads.epoch = threads.epoch + 1
        threads.position += 1
        return threads

    def _branch(self, threads: Threads, instruction: Instruction, mask: Array | None, groups: list[Threads]) -> Threads:
        target, following = self.program.labels[instruction.operands[0]], threads.position + 1
        active = np.ones(threads.count, bool) if threads.active is None else threads.active
        taken = active if mask is None else mask
        stays = active & ~taken
        if not stays.any():
            threads.position = target
        elif not taken.any():
            threads.position = following
        elif threads.active is None and (whole := _whole_ctas(threads, taken)) is not None:
            groups.append(threads.part(whole, target))
            return threads.part(~whole, following)
        else:
            threads.pending.append(Pending(self.meet[threads.position], threads.active, (target, taken)))
            threads.position, threads.active = following, stays
        return threads


def _rejoin(threads: Threads) -> None:
    """Where the sides of a branch meet, the other one runs, or all go on together."""
    while threads.pending and threads.position == threads.pending[-1].meet:
        branch = threads.pending[-1]
        if branch.other is not None:
            (threads.position, threads.active), branch.other = branch.other, None
        else:
            threads.active = threads.pending.pop().came


def _whole_ctas(threads: Threads, taken: Array) -> Array | None:
    """Which CTAs took a branch, or None where one took it with a part of its threads."""
    by_cta = taken.reshape(-1, threads.num_threads)
    whole = by_cta.all(1)
    return whole if (whole == by_cta.any(1)).all() else None
