"""The instructions that are known: each module of them registers the forms it implements, and what is not registered is an error."""

from __future__ import annotations

import re
from collections.abc import Callable

from .dtypes import Array
from .operands import Operands
from .program import Instruction, PtxError
from .threads import Threads

__all__ = ["Build", "Step", "form", "step_of"]

Step = Callable[[Threads, "Array | None"], None]
"""Executes an instruction for the threads of a mask, or for all."""
Build = Callable[[Instruction, Operands], Step]

FORMS: list[tuple[re.Pattern[str], Build]] = []


def form(pattern: str) -> Callable[[Build], Build]:
    """Registers what builds the instructions whose whole form matches `pattern`.

    Args:
        pattern: regular expression of the form, such as `neg(\\.ftz)?\\.f32`; whatever it does not name is unknown.

    Returns:
        The decorator.
    """

    def register(build: Build) -> Build:
        FORMS.append((re.compile(pattern), build))
        return build

    return register


def step_of(instruction: Instruction, operands: Operands) -> Step:
    """What executes `instruction`.

    Args:
        instruction: any but a branch, a barrier or a return, which move threads and not values.
        operands: of its program.

    Returns:
        Its step.

    Raises:
        PtxError: a form that nothing is registered for.
    """
    for pattern, build in FORMS:
        if pattern.fullmatch(instruction.form):
            return build(instruction, operands)
    raise PtxError(
        f"unknown PTX instruction `{instruction.form} {', '.join(instruction.operands)}` at {instruction.place}: "
        "implement it in tests/ptx, with a case in tests/ptx/opcode_cases.py."
    )
