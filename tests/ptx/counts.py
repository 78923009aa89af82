"""Counts what the compiled kernels execute, with no GPU and no clock: `python -m tests.ptx.counts [--write --reason TEXT]`.

Warp instructions, and the bytes, 32-byte sectors and requests of global memory, for every op, forward and backward, at three sizes. A grid
is sampled where no kernel needs the whole of another's work: up to `SAMPLE` of its programs run, evenly spread, and stand for the rest.
`--write` puts the table into `counts.json` beside this file and into docs/kernels.md; where a number rises by more than 3 % it asks for
the reason, which the file keeps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from .count_cases import CASES, CountCase
from .driver import TARGETS, Driver, emulated

__all__ = ["COUNTS", "Row", "count", "main", "moved", "table"]

COUNTS, PAGE = Path(__file__).with_name("counts.json"), Path(__file__).parents[2] / "docs" / "kernels.md"
TARGET, SAMPLE, LIMIT = 90, 256, 0.03
Row = dict[str, int]
"""launches, programs, warp_instructions, longest_program (its warp instructions), and of global memory load_bytes, store_bytes,
load_sectors, store_sectors, requests."""


def count(case: CountCase, target: int = TARGET) -> dict[str, Row]:
    """Runs a case, forward and backward.

    Args:
        case: one of `CASES`.
        target: what its kernels are compiled for.

    Returns:
        A row for each direction, by "op | direction | size".
    """
    run = case.make()
    rows = {}
    with emulated(target, check=False, sample=None if case.whole else _spread) as driver:
        output, inputs = run()
        rows["forward"] = _row(driver)
        driver.launches.clear()
        torch.autograd.grad(output, inputs, torch.zeros_like(output))
        rows["backward"] = _row(driver)
    return {f"{case.op} | {direction} | {case.size}": row for direction, row in rows.items() if row["launches"]}


def moved(now: Mapping[str, Row], before: Mapping[str, Row], sign: int = 1) -> Iterator[str]:
    """What rose (or, with a `sign` of -1, fell) by more than 3 %.

    Args:
        now: rows of `count`.
        before: rows to compare with; a case that they have not is passed over.
        sign: 1 or -1.

    Yields:
        A line for each number.
    """
    for key, row in now.items():
        for name, value in row.items():
            old = before.get(key, {}).get(name, value)
            if sign * (value - old) > LIMIT * old:
                yield f"{key}: {name} {old:,} -> {value:,}"


def table(counts: Mapping[str, Row]) -> str:
    """The counts as the table of docs/kernels.md."""
    heads = [
        "op",
        "direction",
        "size",
        "launches",
        "programs",
        "warp instructions",
        "of the longest program",
        "MB",
        "in sectors",
        "requests",
    ]
    lines = [" | ".join(heads), " | ".join(["---"] * 3 + ["---:"] * 7)]
    for key, row in counts.items():
        num_bytes, sectors = row["load_bytes"] + row["store_bytes"], row["load_sectors"] + row["store_sectors"]
        cells = [row["launches"], row["programs"], row["warp_instructions"], row["longest_program"]]
        cells_ = [*key.split(" | "), *(f"{x:,}" for x in cells), _megabytes(num_bytes), _megabytes(32 * sectors), f"{row['requests']:,}"]
        lines.append(" | ".join(cells_))
    return "\n".join(f"| {line} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        argv: arguments; those of the process if None.

    Returns:
        The exit code: 1 where numbers rose and no reason was given.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.counts", description=__doc__.split("\n")[0])
    parser.add_argument("--op", default="", help="only ops whose name contains this; prints, and writes nothing")
    parser.add_argument("--target", type=int, default=TARGET, choices=TARGETS, help="compiled for sm_..; the table is for 90")
    parser.add_argument("--write", action="store_true", help="put the numbers into counts.json and docs/kernels.md")
    parser.add_argument("--reason", help="why numbers may rise by more than 3 %%")
    args = parser.parse_args(argv)
    if args.write and (args.op or args.target != TARGET):
        parser.error("--write takes all ops, for the table's own target")
    known = json.loads(COUNTS.read_text()) if COUNTS.exists() else {"counts": {}, "reasons": []}
    counts: dict[str, Row] = {}
    for case in CASES:
        if args.op in case.op:
            counts |= count(case, args.target)
    print(table(counts))
    rose = list(moved(counts, known["counts"])) if args.target == TARGET else []
    fell = list(moved(counts, known["counts"], -1)) if args.target == TARGET else []
    for title, lines in (("risen", rose), ("fallen", fell)):
        print(f"\n{len(lines)} numbers have {title} by more than 3 %", *lines, sep="\n  ")
    if args.write:
        if rose and not args.reason:
            print("\nNothing written: say why with --reason.", file=sys.stderr)
            return 1
        _write(counts, [*known["reasons"], *([{"reason": args.reason, "rose": rose}] if rose else [])])
    return 0


def _write(counts: Mapping[str, Row], reasons: list[Any]) -> None:
    stored = {"triton": triton.__version__, "target": TARGET, "sample": SAMPLE, "reasons": reasons, "counts": counts}
    COUNTS.write_text(json.dumps(stored, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition("<!-- counts -->\n")
    _, _, after = rest.partition("<!-- /counts -->\n")
    PAGE.write_text(f"{before}<!-- counts -->\n{table(counts)}\n<!-- /counts -->\n{after}")


def _spread(grid: int) -> Sequence[int]:
    """Programs that stand for all: the first, the last, and what lies evenly in between."""
    return np.unique(np.linspace(0, grid - 1, min(grid, SAMPLE)).round().astype(int)).tolist()


def _row(driver: Driver) -> Row:
    """Sums over the launches; of a sampled grid, as if all its programs were like those that ran."""

    def total(of_launch: Any) -> int:
        return round(sum(of_launch(x.counters) * x.grid / x.counters.ctas for x in driver.launches))

    return {
        "launches": len(driver.launches),
        "programs": sum(x.grid for x in driver.launches),
        "warp_instructions": total(lambda c: c.warp_instructions),
        "longest_program": max((x.counters.longest for x in driver.launches), default=0),
        **{f"{name}_bytes": total(lambda c, key=key: c.bytes["global", key]) for name, key in (("load", "ld"), ("store", "st"))},
        **{f"{name}_sectors": total(lambda c, key=key: c.sectors[key]) for name, key in (("load", "ld"), ("store", "st"))},
        "requests": total(lambda c: c.requests["global", "ld"] + c.requests["global", "st"]),
    }


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.2f}"


if __name__ == "__main__":
    sys.exit(main())
