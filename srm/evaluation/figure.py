"""Reports as one picture each, with matplotlib (`pip install "srm-kernels[eval]"`)."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from srm.evaluation.compare import SuiteReport
from srm.evaluation.intervals import Interval
from srm.evaluation.score_suite import BASELINES
from srm.evaluation.spans import SpanResult
from srm.evaluation.step_scores import OVERALL, StepResult
from srm.evaluation.steps import StepSuite
from srm.extras import name_the_extra
from srm.views.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["span_figure", "step_figure", "suite_figure"]

# Okabe and Ito's colours, which stay apart in every common colour blindness; the marker says the same.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vP*"
_GREYS = ("#777777", "#aaaaaa")


def suite_figure(report: SuiteReport) -> bytes:
    """PNG: sections with intervals, accuracy by relative length, and the reliability of sigmoid(dR).

    Raises:
        UserError: matplotlib is not installed.
    """
    sections = [*report.suite.weights, *(["average"] if len(report.suite.weights) > 1 else [])]
    height = 1.6 + 0.32 * len(sections) * max(2, len(report.results)) * 0.6
    figure = _figure(13.5, max(4.2, height))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1.3, 1.0))
    styles = _styles(report)
    _rows(left, {name: result.scores.intervals for name, result in report.results.items()}, sections, styles)
    left.set(title=f"{_label(report.suite.name)}: right, by section", xlabel="per cent right, 95 % interval over prompts")
    strata = {
        name: {stratum: accuracy for stratum, (accuracy, _) in result.length.strata.items()} | {"balanced": result.length.balanced}
        for name, result in report.results.items()
    }
    _rows(middle, strata, list(next(iter(strata.values()))), styles)
    middle.set(title="by length of the right response", xlabel="per cent right")
    _reliability(right, report, styles)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    return _png(figure)


def span_figure(results: Mapping[str, SpanResult]) -> bytes:
    """PNG: AUC, average precision, hit rate and AUC given position of each model and baseline.

    Raises:
        UserError: matplotlib is not installed.
    """
    measures: dict[str, dict[str, Interval]] = {
        "AUC within responses": {name: result.auc for name, result in results.items()},
        "average precision": {name: result.average_precision for name, result in results.items()},
        "the lowest sentence is bad": {name: result.hit_rate for name, result in results.items()},
        "AUC given position": {name: result.at_place.auc for name, result in results.items()},
    }
    return _measures(measures, [name for name, result in results.items() if result.by_kind is not None], "prompts")


def step_figure(suite: StepSuite, results: Mapping[str, StepResult]) -> bytes:
    """PNG: the published score and AUC given position of each model and baseline.

    Args:
        suite: from `read_steps`.
        results: by name of the model or baseline, from `evaluate_steps`.

    Raises:
        UserError: matplotlib is not installed.
    """
    overall = OVERALL[suite.rule]
    measures = {
        overall: {name: result.intervals[overall] for name, result in results.items()},
        "AUC given position": {name: result.at_place.auc for name, result in results.items()},
    }
    return _measures(measures, [name for name, result in results.items() if result.num_open is not None], "problems")


def _measures(measures: Mapping[str, Mapping[str, Interval]], models: Sequence[str], unit: str) -> bytes:
    """A panel a measure, in it a point with its interval for each model, and in grey for each baseline."""
    names = list(next(iter(measures.values())))
    figure = _figure(3.9 * len(measures), 1.4 + 0.3 * len(names))
    for axes, (title, found) in zip(figure.subplots(1, len(measures), sharey=True), measures.items(), strict=True):
        for index, name in enumerate(names):
            colour = _COLOURS[index % len(_COLOURS)] if name in models else _GREYS[0]
            _interval(axes, found[name], index, colour=colour, marker="o", label=_label(name), scale=1.0)
        if title.startswith("AUC"):
            axes.axvline(0.5, color="#bbbbbb", linewidth=1, zorder=0)
        axes.set(title=title, xlabel=f"95 % interval over {unit}", xlim=(-0.03, 1.03))
        axes.set_yticks(range(len(names)), [_label(name) for name in names])
    axes.invert_yaxis()
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    with name_the_extra("the figure"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def _label(name: str) -> str:
    """A name of the data as it stands: between dollars matplotlib would read formulas."""
    return visible(name).replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Its font lacks most scripts: their letters are boxes in the picture, and the tables have them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(content, format="png", dpi=140, metadata={"Software": None})
    return content.getvalue()


def _styles(report: SuiteReport) -> dict[str, dict[str, Any]]:
    """Colour and marker of each model; baselines are grey."""
    models = [name for name in report.results if name not in BASELINES]
    styles = {name: {"colour": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]} for i, name in enumerate(models)}
    return styles | {name: {"colour": _GREYS[i], "marker": "<>"[i]} for i, name in enumerate(BASELINES)}


def _rows(axes: Axes, scores: Mapping[str, Mapping[str, Interval]], names: list[str], styles: Mapping[str, dict[str, Any]]) -> None:
    """A row a name, in it a point with its interval for each model, one above the other."""
    step = 0.7 / max(1, len(scores) - 1)
    for index, (model, found) in enumerate(scores.items()):
        for row, name in enumerate(names):
            label = _label(model) if row == 0 else None
            _interval(axes, found[name], row - 0.35 + step * index, label=label, scale=100.0, **styles[model])
    for row in range(len(names) - 1):
        axes.axhline(row + 0.5, color="#eeeeee", linewidth=0.8, zorder=0)
    axes.axvline(50, color="#bbbbbb", linewidth=1, zorder=0)
    axes.set_yticks(range(len(names)), [_label(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    # Room for the markers at the ends.
    axes.set_xlim(-3, 103)


def _interval(axes: Axes, found: Interval, y: float, *, colour: str, marker: str, label: str | None, scale: float) -> None:
    if math.isnan(found.estimate):
        return
    axes.plot([scale * found.low, scale * found.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
    axes.plot([scale * found.estimate], [y], marker, color=colour, markersize=5.5, linestyle="none", label=label)


def _reliability(axes: Axes, report: SuiteReport, styles: Mapping[str, dict[str, Any]]) -> None:
    axes.plot([50, 100], [50, 100], color="#bbbbbb", linewidth=1, zorder=0)
    for name, result in report.results.items():
        if result.calibration is None:
            continue
        confidence = [100 * row["confidence"] for row in result.calibration.bins]
        accuracy = [100 * row["accuracy"] for row in result.calibration.bins]
        # Area like the number of pairs, so that a bin of three is not read like one of a thousand.
        total = sum(row["pairs"] for row in result.calibration.bins)
        area = [12 + 240 * row["pairs"] / total for row in result.calibration.bins]
        axes.plot(confidence, accuracy, color=styles[name]["colour"], linewidth=1.2, alpha=0.7)
        axes.scatter(confidence, accuracy, s=area, color=styles[name]["colour"], marker=styles[name]["marker"], alpha=0.8)
    axes.set(title="calibration of sigmoid(dR)", xlabel="confidence, per cent", ylabel="right, per cent", xlim=(48, 102), ylim=(-3, 103))
