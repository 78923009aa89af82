"""What the runs say together: one row a variant, with paired intervals over prompts, as JSON, a table and a figure.

A variant's numbers are means over its seeds. Intervals resample prompts and, where there are several, seeds: in every draw the same ones
for all variants, so that differences are paired. A variant with fewer seeds is compared with the same seeds of the others. `seeds` shows
each seed by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import environment
from research.claim.runs import Run, scores_of
from srm.evaluation.intervals import Bootstrap, interval
from srm.evaluation.score_suite import BASELINES, baseline_rewards, read_rewards, read_scored
from srm.evaluation.sections import Rewards, rows_won, suite_scores
from srm.evaluation.spans import SpanResult, SpanRow, evaluate_spans
from srm.evaluation.suites import Suite

__all__ = ["MEASURES", "RANKED", "accuracy", "over_seeds", "summarise", "table", "write"]

# name: title of a column.
MEASURES = {
    "test": "held-out pairs",
    "suite": "suite, mean of sections",
    "credit": "credit AUC on marked errors",
    "placed": "credit AUC given position",
}
REFERENCE = "response"
# Files of pairs that results come from.
RANKED = ("test", "suite")
Traces = dict[str, np.ndarray]


def accuracy(suite: Suite, rewards: Rewards) -> float:
    """Share of rows won."""
    return float(rows_won(suite, rewards).mean())


def summarise(
    runs: Sequence[Run], folder: Path, suites: Mapping[str, Suite], spans: Sequence[SpanRow], *, draws: int = 2000
) -> dict[str, Any]:
    """Rows of variants and baselines: estimate, low and high of each measure, the same for the difference to `response`, and each seed."""
    draw = {name: Bootstrap([row.unit for row in suite.rows], draws=draws) for name, suite in suites.items()}

    def ranked(rewards: Mapping[str, Rewards]) -> Traces:
        scores = suite_scores(suites["suite"], rewards["suite"], draw["suite"])
        sections = {f"suite/{section}": trace for section, trace in scores.sections.items()}
        won = rows_won(suites["test"], rewards["test"]).astype(float)
        return {"test": draw["test"].mean(won), "suite": scores.average, **sections}

    # By the seed; baselines have none.
    traces: dict[str, dict[int | None, Traces]] = {}
    scored = {run: read_scored([row.to_suite_row() for row in spans], scores_of(run, folder, "spans")) for run in runs}
    credit = evaluate_spans(spans, {run.name: [response for (response,) in scored[run]] for run in runs}, draws=draws)
    for run in runs:
        found = ranked({name: read_rewards(suite.rows, scores_of(run, folder, name)) for name, suite in suites.items()})
        traces.setdefault(run.variant, {})[run.seed] = found | _credit(credit[run.name])
    for name in BASELINES:
        traces[f"{name} wins"] = {None: ranked({key: baseline_rewards(suite, name) for key, suite in suites.items()})}
    models = {run.name for run in runs}
    for name, found in credit.items():
        if name not in models:
            traces[f"credit: {name}"] = {None: _credit(found)}
    reference = traces.get(REFERENCE, {})
    rows = {}
    for name, seeds in traces.items():
        same_seeds = [trace for seed, trace in reference.items() if seed in seeds or None in seeds]
        rows[name] = _row(list(seeds.values()), [] if name == REFERENCE else same_seeds)
    return rows


def _credit(found: SpanResult) -> Traces:
    return {"credit": found.traces["auc"], "placed": found.at_place.trace}


def _row(seeds: Sequence[Traces], reference: Sequence[Traces]) -> dict[str, Any]:
    mean = _mean(seeds)
    row: dict[str, Any] = {name: interval(trace).to_dict() for name, trace in mean.items()}
    row["seeds"] = {name: [float(traces[name][0]) for traces in seeds] for name in mean}
    if reference:
        against = _mean(reference)
        row["minus_response"] = {name: interval(trace - against[name]).to_dict() for name, trace in mean.items() if name in against}
    return row


def _mean(seeds: Sequence[Traces]) -> Traces:
    return {name: over_seeds([traces[name] for traces in seeds]) for name in seeds[0]}


def over_seeds(traces: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over seeds: of the data over all of them, in each draw over as many drawn with replacement.

    Args:
        traces: [1 + S] a seed; the same seeds are drawn for any traces of as many seeds and draws.
    """
    trace_KS = np.stack(traces)
    number, draws = len(traces), trace_KS.shape[1] - 1
    drawn_KS = np.random.default_rng(0).integers(number, size=(number, draws))
    return np.concatenate([trace_KS[:, :1].mean(axis=0), np.take_along_axis(trace_KS[:, 1:], drawn_KS, axis=0).mean(axis=0)])


def write(path: Path | None, result: Mapping[str, Any], title: str) -> None:
    """Write `result`, whose `rows` are those of `summarise`, as JSON, and its table (.md) and figure (.png) beside it."""
    environment.write(path, result)
    if path is not None:
        path.with_suffix(".md").write_text(table(result["rows"]), encoding="utf-8")
        plot(result["rows"], path.with_suffix(".png"), title)


def table(rows: Mapping[str, dict[str, Any]]) -> str:
    """A Markdown table: estimate and interval of each measure, and the difference to `response` of those in percent."""
    scale = {"test": 100, "suite": 100, "credit": 1, "placed": 1}
    compared = [name for name in MEASURES if scale[name] == 100]
    titles = ["", *MEASURES.values(), *(f"{MEASURES[name].partition(',')[0]}, minus response" for name in compared)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in rows.items():
        cells = [_cell(row.get(measure), scale[measure]) for measure in MEASURES]
        cells += [_cell(row.get("minus_response", {}).get(measure), 100, signed=True) for measure in compared]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, float] | None, scale: int, *, signed: bool = False) -> str:
    if found is None:
        return ""
    form = f"{{:{'+' if signed else ''}.{1 if scale == 100 else 2}f}}"
    low, high = form.format(scale * found["low"]), form.format(scale * found["high"])
    return f"{form.format(scale * found['estimate'])} [{low}, {high}]"


def plot(rows: Mapping[str, dict[str, Any]], path: Path, title: str) -> None:
    """A dot and its interval for every variant, one panel a measure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(MEASURES), figsize=(5 * len(MEASURES), 0.32 * len(rows) + 1.6), squeeze=False)
    for axis, (measure, heading) in zip(axes[0], MEASURES.items(), strict=True):
        shown = [(name, row[measure]) for name, row in rows.items() if measure in row]
        for place, (name, found) in enumerate(reversed(shown)):
            colour = "#2166ac" if name == "sentence" else "#e66101" if name == REFERENCE else "#777777"
            axis.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=2)
            axis.plot(found["estimate"], place, "o", color=colour)
        axis.set_yticks(range(len(shown)), [name.removeprefix("credit: ") for name, _ in reversed(shown)])
        axis.axvline(0.5, color="#bbbbbb", linewidth=1, zorder=0)
        axis.set_title(heading, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
