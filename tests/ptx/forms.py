"""The instructions that are known: each module of them registers the forms it implements, and what is not registered is an error."""

from __future__ import annotations

import functools
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
# How many operands an instruction reads: by its form, or else by its opcode. What is not here checks for itself.
SOURCES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("abs", "neg", "not", "cvt", "mov", "ex2", "rcp"), (1,)),
    **dict.fromkeys(("add", "sub", "mul", "div", "max", "min", "and", "or", "xor", "shl", "shr", "setp"), (2,)),
    **dict.fromkeys(("fma", "mad", "selp", "bfe", "prmt"), (3,)),
    **dict.fromkeys(("cvt.rn.f16x2.f32", "cvt.rn.bf16x2.f32"), (2,)),
    **dict.fromkeys(("max.f32", "min.f32"), (2, 3)),
}


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
    build = _build_of(instruction.form)
    sources = len(instruction.operands) - 1
    if build is not None and sources in SOURCES.get(instruction.form, SOURCES.get(instruction.opcode, (sources,))):
        return build(instruction, operands)
    raise PtxError(
        f"unknown PTX instruction `{instruction.form} {', '.join(instruction.operands)}` at {instruction.place}: "
        "implement it in tests/ptx, with a case in tests/ptx/opcode_cases.py."
    )


@functools.cache
def _build_of(form: str) -> Build | None:
    return next((build for pattern, build in FORMS if pattern.fullmatch(form)), None)
