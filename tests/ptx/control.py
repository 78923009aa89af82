"""Where the two sides of a branch meet again: at its immediate post-dominator."""

from __future__ import annotations

from .program import Program

__all__ = ["meeting_points"]


def meeting_points(program: Program) -> dict[int, int]:
    """For each branch with a predicate the index of the first instruction that both its sides come to, or -1 if only the end is."""
    blocks = _blocks(program)
    passed = _post_dominators(blocks)
    meeting = {}
    for begin, (last, _) in blocks.items():
        if program.instructions[last].opcode == "bra" and program.instructions[last].predicate is not None:
            beyond = passed[begin] - {begin}
            # The nearest is the one that has all others behind it.
            meeting[last] = next(block for block in beyond if beyond <= passed[block])
    return meeting


def _blocks(program: Program) -> dict[int, tuple[int, list[int]]]:
    """For the first instruction of each block its last one, and the blocks that may follow; -1 is the end."""
    instructions = program.instructions
    ends = {i for i, instruction in enumerate(instructions) if instruction.opcode in ("bra", "ret")}
    begins = sorted({0, *program.labels.values(), *(i + 1 for i in ends)} & set(range(len(instructions))))
    blocks = {}
    for begin, following in zip(begins, [*begins[1:], len(instructions)], strict=True):
        last = instructions[following - 1]
        targets = {"ret": [-1], "bra": [program.labels[last.operands[0]]] if last.opcode == "bra" else []}.get(last.opcode, [following])
        if last.opcode in ("bra", "ret") and last.predicate is not None:
            targets = [*targets, following]
        blocks[begin] = (following - 1, targets)
    return blocks


def _post_dominators(blocks: dict[int, tuple[int, list[int]]]) -> dict[int, set[int]]:
    """For each block those that every way from it to the end passes, itself included."""
    everything = {*blocks, -1}
    passed = dict.fromkeys(blocks, everything) | {-1: {-1}}
    changed = True
    while changed:
        changed = False
        for begin, (_, targets) in reversed(blocks.items()):
            now = {begin} | set.intersection(*(passed[target] for target in targets))
            changed |= now != passed[begin]
            passed[begin] = now
    return passed
