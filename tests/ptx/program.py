"""PTX text -> a `Program`: its parameters, its instructions in order, and where its labels point.

What Triton writes is one entry function a module, one statement a line or a few in the braces of inline assembly (PTX ISA, "Syntax").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Instruction", "Program", "PtxError", "parse"]

LOCATION = re.compile(r"\s*\.loc\s+\d+\s+\d+\s+\d+.*?//\s*(\S+)")
LABEL = re.compile(r"\s*(\$[\w$]+):")
STATEMENT = re.compile(r"(?:@(!?)%(\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
PARAMETER = re.compile(r"\.param\s+\.(\w+)(?:\s+\.ptr[^,\n]*?)?\s+([\w$]+)(?:,|\n|$)")
# Of a register that inline assembly throws away.
SCRATCH = re.compile(r"\{\s*\.reg\s+\.\w+\s+tmp;")


class PtxError(Exception):
    """What a GPU would refuse or do wrong, or what this emulator does not know."""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction.

    Attributes:
        form: opcode with all that follows its dots, `ld.global.v4.b32`.
        operands: as they are written; a vector in braces is one.
        predicate: the register that guards it, or None.
        negated: whether it runs where the predicate is false.
        place: file, line and column of the kernel's source.
    """

    form: str
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool
    place: str

    @property
    def opcode(self) -> str:
        """What comes before the first dot."""
        return self.form.partition(".")[0]

    @property
    def kind(self) -> str:
        """What comes behind the last dot: the type, for most."""
        return self.form.rpartition(".")[2]

    @property
    def modifiers(self) -> tuple[str, ...]:
        """What stands between dots, behind the opcode."""
        return tuple(self.form.split(".")[1:])


@dataclass(frozen=True, kw_only=True)
class Program:
    """One kernel.

    Attributes:
        name: of the entry function.
        num_threads: of a CTA.
        parameters: their names, in order.
        instructions: in order.
        labels: the index of the instruction that a label stands before.
        registers: type of the registers by the letters of their names, `{"rd": "b64"}`.
    """

    name: str
    num_threads: int
    parameters: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    registers: dict[str, str]


def parse(text: str) -> Program:
    """Reads one module of PTX.

    Args:
        text: the module; it has one `.entry` with a `.reqntid`.

    Returns:
        The program.

    Raises:
        PtxError: a statement that is not PTX as Triton writes it.
    """
    head, body = text[text.index(".entry") :].split("\n{", 1)
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    place = "?"
    for line in body.split("\n}")[0].splitlines():
        if found := LOCATION.match(line):
            place = found[1]
            continue
        rest = SCRATCH.sub("", line.split("//")[0])
        while found := LABEL.match(rest):
            labels[found[1]] = len(instructions)
            rest = rest[found.end() :]
        for statement in map(str.strip, rest.split(";")):
            # Braces open and close a scope; what begins with a dot declares registers, or says which source line this is.
            if statement and statement not in "{}" and not statement.startswith("."):
                instructions.append(_instruction(statement, place))
    return Program(
        name=re.search(r"\.entry\s+([\w$]+)", head)[1],  # type: ignore[index]  # Without a name it is no module.
        num_threads=int(re.search(r"\.reqntid\s+(\d+)", head)[1]),  # type: ignore[index]
        parameters=tuple(name for _, name in PARAMETER.findall(head)),
        instructions=tuple(instructions),
        labels=labels,
        registers={name: kind for kind, name in re.findall(r"\.reg\s+\.(\w+)\s+%([a-z]+)<", body)},
    )


def _instruction(statement: str, place: str) -> Instruction:
    found = STATEMENT.fullmatch(statement)
    if found is None:
        raise PtxError(f"not a PTX instruction: {statement!r} at {place}")
    negated, predicate, form, operands = found.groups()
    return Instruction(form=form, operands=_split(operands), predicate=predicate, negated=negated == "!", place=place)


def _split(operands: str) -> tuple[str, ...]:
    """At the commas outside of braces and brackets."""
    return tuple(part.strip() for part in re.split(r",(?![^{\[]*[}\]])", operands) if part.strip())
