"""What the runs say: scores with intervals over seeds, and how many responses one source needs for each of another's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["bootstrap", "by_cell", "compare", "final_score", "mean_score", "plot", "responses_to", "summarise"]

Record = Mapping[str, Any]
Interval = dict[str, Any]
RESAMPLES = 1000


def smooth(record: Record) -> list[float]:
    """The score of each step and up to four before it: one step has too few responses to say when a level is reached."""
    scores = record["score"]
    return [statistics.fmean(scores[max(0, step - 4) : step + 1]) for step in range(len(scores))]


def responses_to(level: float, record: Record) -> float | None:
    """How many responses it took until the smooth score was `level`; None: it never was."""
    return next((float(count) for count, score in zip(record["responses"], smooth(record), strict=True) if score >= level), None)


def curves(records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Mean KL and mean score over runs, at each look at KL."""
    kl = [statistics.fmean(column) for column in zip(*(record["kl"] for record in records), strict=True)]
    score = [statistics.fmean(column) for column in zip(*map(smooth, records), strict=True)]
    every = len(score) // len(kl)
    return kl, score[every - 1 :: every]


def final_score(record: Record) -> float:
    """Of the last fifth of the run."""
    scores = record["score"]
    return statistics.fmean(scores[-max(1, len(scores) // 5) :])


def mean_score(record: Record) -> float:
    """Over the whole run, the area under its curve."""
    return statistics.fmean(record["score"])


def bootstrap(rows: Sequence[Any], statistic: Callable[[Sequence[Any]], float]) -> Interval:
    """`statistic` of `rows`, one a seed, and the 95 % interval over resampled seeds."""
    random = Random(0)
    drawn = sorted(statistic(random.choices(rows, k=len(rows))) for _ in range(RESAMPLES))
    return {"value": statistic(rows), "low": drawn[int(0.025 * RESAMPLES)], "high": drawn[int(0.975 * RESAMPLES) - 1], "seeds": len(rows)}


def compare(ours: Sequence[Record], theirs: Sequence[Record], levels: Sequence[float]) -> dict[str, Any]:
    """Two cells on the seeds that both have: differences of scores, and the factor in responses for each level, theirs over ours.

    A run that never came to a level counts with all of its responses, so a factor is a bound where `never` says that some did not.
    """
    pairs = [(a, b) for a in ours for b in theirs if a["seed"] == b["seed"]]
    result: dict[str, Any] = {
        name: bootstrap([of(a) - of(b) for a, b in pairs], statistics.fmean)
        for name, of in (("final score", final_score), ("mean score", mean_score))
    }
    for level in levels:
        needed = [[responses_to(level, one) for one in pair] for pair in pairs]
        bounded = [
            [one["responses"][-1] if x is None else x for x, one in zip(row, pair, strict=True)]
            for row, pair in zip(needed, pairs, strict=True)
        ]
        never = {"ours": sum(a is None for a, _ in needed), "theirs": sum(b is None for _, b in needed)}
        # A level that neither cell comes to on most seeds says nothing.
        is_reached = 2 * min(never.values()) < len(pairs)
        result[f"responses to {level:g}"] = {**(bootstrap(bounded, _factor) if is_reached else {}), "never": never}
    return result


def _factor(needed: Sequence[Sequence[float]]) -> float:
    return statistics.fmean(b for _, b in needed) / statistics.fmean(a for a, _ in needed)


def summarise(runs: Sequence[Record], levels: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Of each cell: scores, responses to each level of those runs that came to it, and how they end."""
    cells: dict[str, dict[str, Any]] = {}
    for cell, records in by_cell(runs).items():
        found: dict[str, Any] = {
            "final score": bootstrap([final_score(record) for record in records], statistics.fmean),
            "mean score": bootstrap([mean_score(record) for record in records], statistics.fmean),
            "final KL": bootstrap([record["kl"][-1] for record in records], statistics.fmean),
            "final faults": bootstrap([record["faults"][-1] for record in records], statistics.fmean),
            "final sentences asked": bootstrap([record["sentences"][-1] / record["asked"][-1] for record in records], statistics.fmean),
        }
        for level in levels:
            needed = [responses_to(level, record) for record in records]
            there = [count for count in needed if count is not None]
            found[f"responses to {level:g}"] = {**(bootstrap(there, statistics.fmean) if there else {}), "never": len(needed) - len(there)}
        cells[cell] = found
    return cells


def by_cell(runs: Sequence[Record]) -> dict[str, list[Record]]:
    """In the order of their first run, each by seed."""
    cells: dict[str, list[Record]] = {}
    for record in runs:
        cells.setdefault(record["cell"], []).append(record)
    return {cell: sorted(records, key=lambda record: record["seed"]) for cell, records in cells.items()}


def plot(runs: Sequence[Record], cells: Mapping[str, str], path: Path, title: str) -> None:
    """The oracle's score against responses and against KL. cells: those to show, with their labels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    found = by_cell(runs)
    for colour, (cell, label) in zip(plt.get_cmap("tab10").colors, cells.items(), strict=False):  # type: ignore[attr-defined]
        records = found.get(cell, [])
        if not records:
            continue
        bands = [bootstrap(column, statistics.fmean) for column in zip(*map(smooth, records), strict=True)]
        responses = records[0]["responses"]
        left.plot(responses, [band["value"] for band in bands], color=colour, label=label)
        left.fill_between(responses, [band["low"] for band in bands], [band["high"] for band in bands], color=colour, alpha=0.2)
        right.plot(*curves(records), ".-", color=colour)
    # A run that is hacked leaves the frame.
    left.set_ylim(0, 0.95)
    left.set_xlabel("responses")
    right.set_xscale("log")
    right.set_xlabel("KL from the start, nats a response")
    left.set_ylabel("the oracle's score")
    if left.get_lines():
        left.legend(fontsize=7, loc="lower right")
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
