"""What the runs say: scores with intervals over seeds, and how many responses one source needs for each of another's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["Interval", "bootstrap", "compare", "plot", "responses_to", "score_at_kl", "summarise"]

Record = Mapping[str, Any]
Interval = dict[str, Any]
RESAMPLES = 2000


def responses_to(level: float, record: Record) -> float | None:
    """How many responses it took until the oracle's score was `level`, between points of the curve in a straight line; None: never."""
    before_x, before_y = 0.0, None
    for x, y in zip(record["responses"], record["score"], strict=True):
        if y >= level:
            return float(x) if before_y is None else before_x + (x - before_x) * (level - before_y) / (y - before_y)
        before_x, before_y = x, y
    return None


def score_at_kl(kl: float, record: Record) -> float | None:
    """The score where KL first passes `kl` nats a response; None: never."""
    points = list(zip(record["kl"], record["score"], strict=True))
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= kl < x1:
            return float(y0 + (y1 - y0) * (kl - x0) / (x1 - x0))
    return None


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
        needed = [tuple(responses_to(level, one) for one in pair) for pair in pairs]
        bounded = [
            tuple(one["responses"][-1] if x is None else x for x, one in zip(row, pair, strict=True))
            for row, pair in zip(needed, pairs, strict=True)
        ]
        never = {"ours": sum(a is None for a, _ in needed), "theirs": sum(b is None for _, b in needed)}
        result[f"responses to {level:g}"] = {**bootstrap(bounded, _factor), "never": never}
    return result


def _factor(needed: Sequence[Sequence[float]]) -> float:
    return statistics.fmean(b for _, b in needed) / statistics.fmean(a for a, _ in needed)


def summarise(runs: Sequence[Record], levels: Sequence[float], kls: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Of each cell: scores, responses to each level, and scores at given KL."""
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
            found[f"responses to {level:g}"] = _of_those(responses_to(level, record) for record in records)
        for kl in kls:
            found[f"score at a KL of {kl:g}"] = _of_those(score_at_kl(kl, record) for record in records)
        cells[cell] = found
    return cells


def _of_those(values: Any) -> dict[str, Any]:
    """The interval of the mean of those that are there, and how many are not."""
    listed = list(values)
    there = [value for value in listed if value is not None]
    return {**(bootstrap(there, statistics.fmean) if there else {}), "never": len(listed) - len(there)}


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
        columns = list(zip(*(record["score"] for record in records), strict=True))
        middle = [statistics.fmean(column) for column in columns]
        bands = [bootstrap(column, statistics.fmean) for column in columns]
        left.plot(records[0]["responses"], middle, color=colour, label=label)
        left.fill_between(records[0]["responses"], [b["low"] for b in bands], [b["high"] for b in bands], color=colour, alpha=0.2)
        kl = [statistics.fmean(column) for column in zip(*(record["kl"] for record in records), strict=True)]
        right.plot(kl, middle, color=colour)
    left.set_xlabel("responses")
    right.set_xlabel("KL from the start, nats a response")
    left.set_ylabel("the oracle's score")
    left.legend(fontsize=8)
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
