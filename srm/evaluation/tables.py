"""Reports as tables: a title, the names of the columns, and rows of text. The terminal, the HTML page and the CSV show the same numbers."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from srm.evaluation.compare import SuiteReport
from srm.evaluation.intervals import Interval, interval
from srm.evaluation.position import PlaceCredit
from srm.evaluation.spans import SpanResult, credit_differences
from srm.evaluation.step_scores import OVERALL, WITHIN, StepResult
from srm.evaluation.steps import StepSuite
from srm.views.visible import visible

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["TextTable", "rich_table", "span_csv", "span_tables", "step_csv", "step_tables", "suite_csv", "suite_tables"]

TextTable = tuple[str, list[str], list[list[str]]]
# What spreadsheets take for a formula, behind white space too; the last four are the same signs in full width.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
_CSV_COLUMNS = ("model", "level", "name", "score", "low", "high")


def suite_tables(report: SuiteReport, *, over_rows: bool = False) -> list[TextTable]:
    """Sections, subsets where they say more, RM-Bench's styles, length, calibration, and the comparisons.

    Args:
        report: of the suite.
        over_rows: also the sections as plain means over rows, beside the official average.
    """
    tables = [_sections(report), *([_row_sections(report)] if over_rows else [])]
    if any(set(subsets) != {section} for section, subsets in report.suite.weights.items()):
        tables.append(_subsets(report))
    if report.suite.rule == "styles":
        tables += _styles(report)
    return [*tables, _lengths(report), _calibration(report), _comparisons(report)]


def span_tables(results: Mapping[str, SpanResult]) -> list[TextTable]:
    """The measures of credit, whether each is above 0.5 given position, and each model's AUC by type of error."""
    # Broken, so that all intervals fit into eighty characters.
    columns = ["", "AUC", "average\nprecision", "lowest\nis bad", "AUC given\nposition"]
    rows = [[name, *(_number(getattr(r, metric), 3) for metric in ("auc", "average_precision"))] for name, r in results.items()]
    rows = [[*row, _percent(results[row[0]].hit_rate), _given_position(results[row[0]].at_place)] for row in rows]
    first = next(iter(results.values()))
    title = f"Sentence credit, {first.num_responses} responses; given position, {_compared(first.at_place)}"
    models = {name: result.by_kind for name, result in results.items() if result.by_kind is not None}
    kinds = sorted({kind for by_kind in models.values() for kind in by_kind})
    by_kind = [
        [kind, *(f"{found[kind].auc:.3f} ({found[kind].num_bad})" if kind in found else "" for found in models.values())] for kind in kinds
    ]
    differences = [[f"{a} - {b}", f"{d.estimate:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"] for a, b, d in credit_differences(results)]
    tables: list[TextTable] = [(title, columns, rows), ("AUC by type of error (bad sentences)", ["", *models], by_kind)]
    return [*tables, ("Differences in AUC, paired", ["", "AUC"], differences)] if differences else tables


def suite_csv(report: SuiteReport) -> str:
    """A line a score: model, level, name, score and its interval, as fractions.

    Levels are suite, section, subset and style, and `suite over rows` and `section over rows`, which are plain means over rows.
    """
    return _csv(_suite_lines(report))


def span_csv(results: Mapping[str, SpanResult]) -> str:
    """A line a measure, as `suite_csv`."""
    names = ("auc", "average_precision", "hit_rate")
    measures = {
        model: [*((name, getattr(r, name)) for name in names), ("auc_given_position", r.at_place.auc)] for model, r in results.items()
    }
    return _csv((model, "spans", name, found) for model, pairs in measures.items() for name, found in pairs)


def step_tables(suite: StepSuite, results: Mapping[str, StepResult]) -> list[TextTable]:
    """The published score with the credit of steps and the thresholds, and the score's parts.

    Args:
        suite: from `read_steps`.
        results: by name of the model or baseline, from `evaluate_steps`.
    """
    first = next(iter(results.values()))
    overall, within = OVERALL[suite.rule], [WITHIN] if WITHIN in first.scores else []
    rows = [
        [
            name,
            _percent(r.intervals[overall]),
            *(_number(r.intervals[each], 3) for each in within),
            _given_position(r.at_place),
            "\n".join(f"{threshold:.4g}" for threshold in r.thresholds),
        ]
        for name, r in results.items()
    ]
    title = f"{suite.name}: {len(suite.rows):,} solutions, {overall} in per cent; AUC given position, {_compared(first.at_place)}"
    columns = ["", overall, *(["AUC within\nsolutions"] if within else []), "AUC given\nposition", "threshold"]
    counts = Counter(row.group for row in suite.rows)
    counts += Counter(f"{row.group}: {'wrong' if row.first_wrong >= 0 else 'right'}" for row in suite.rows)
    names = [name for name in first.scores if name not in (overall, WITHIN)]
    parts = [[name, str(counts.get(name, "")), *(_share(r.intervals[name].estimate) for r in results.values())] for name in names]
    if suite.rule == "first_error":
        said = "Solutions whose first wrong step is found, and right ones in which none is; their F1, per cent"
    else:
        said = "PRMScore by class and dimension, per cent"
    return [(title, columns, rows), (said, ["", "rows", *results], parts)]


def step_csv(results: Mapping[str, StepResult]) -> str:
    """A line a score, as `suite_csv`."""
    lines = [(model, "steps", name, found) for model, result in results.items() for name, found in result.intervals.items()]
    return _csv([*lines, *((model, "steps", "auc_given_position", result.at_place.auc) for model, result in results.items())])


def rich_table(table: TextTable) -> RichTable:
    """For the terminal: the first column to the left, numbers to the right."""
    from rich import box
    from rich.table import Table as RichTable

    title, columns, rows = table
    # Without lines between columns five intervals fit into eighty characters.
    view = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, name in enumerate(columns):
        view.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        view.add_row(*row)
    return view


def _sections(report: SuiteReport) -> TextTable:
    sections = list(report.suite.weights)
    several = len(sections) > 1
    rows = []
    for name, result in report.results.items():
        scores = result.scores.intervals
        rows.append([name, *(_percent(scores[section]) for section in sections), *([_percent(scores["average"])] if several else [])])
    ties = f" ({report.suite.num_ties:,} ties left out)" if report.suite.num_ties else ""
    titled = f"{report.suite.name}: {len(report.suite.rows):,} rows{ties}, per cent right with 95 % intervals over prompts"
    average = "average" if report.suite.overall == "sections" else "all rows"
    return titled, ["", *sections, *([average] if several else [])], rows


def _row_sections(report: SuiteReport) -> TextTable:
    sections = list(report.suite.weights)
    rows = []
    for name, result in report.results.items():
        means = [*(result.scores.row_sections[section] for section in sections), result.scores.row_average, result.scores.average]
        rows.append([name, *(_percent(interval(trace)) for trace in means)])
    return "Sections as means over rows, each row alike; their average, and the official one", ["", *sections, "average", "official"], rows


def _subsets(report: SuiteReport) -> TextTable:
    counts: dict[tuple[str, str], int] = {}
    for row in report.suite.rows:
        counts[row.section, row.subset] = counts.get((row.section, row.subset), 0) + 1
    rows = [
        [subset, section, str(counts[section, subset]), *(_share(r.scores.subsets[section, subset][0]) for r in report.results.values())]
        for section, subsets in report.suite.weights.items()
        for subset in subsets
    ]
    return "Subsets, per cent right", ["", "section", "rows", *report.results], rows


def _styles(report: SuiteReport) -> list[TextTable]:
    columns = ["easy", "normal", "hard"]
    by_style = [[name, *(_percent(interval(r.scores.styles[style])) for style in columns)] for name, r in report.results.items()]
    tables: list[TextTable] = [("Styles: the right response is fancier (easy), alike, plainer (hard)", ["", *columns], by_style)]
    names = ["concise", "detailed", "detailed with Markdown"]
    for name, result in report.results.items():
        if result.calibration is not None and result.scores.matrix is not None:
            rows = [
                [f"right: {style}", *(_share(value) for value in line)] for style, line in zip(names, result.scores.matrix, strict=True)
            ]
            tables.append((f"Style matrix of {name}, per cent right", ["", *(f"wrong: {style}" for style in names)], rows))
    return tables


def _lengths(report: SuiteReport) -> TextTable:
    lengths = {name: result.length for name, result in report.results.items()}
    strata = next(iter(lengths.values())).strata
    rows = [
        [f"{stratum} ({count:,} pairs)", *(_percent(length.strata[stratum][0]) for length in lengths.values())]
        for stratum, (_, count) in strata.items()
    ]
    rows.append(["balanced: longer and shorter alike", *(_percent(length.balanced) for length in lengths.values())])
    rows.append(["prefers the longer response", *(_percent(length.prefers_longer) for length in lengths.values())])
    rows.append(["rank correlation of reward and length", *(_signed(length.spearman) for length in lengths.values())])
    return "By length of the right response beside the wrong one, per cent right", ["", *lengths], rows


def _calibration(report: SuiteReport) -> TextTable:
    measured = {name: result.calibration for name, result in report.results.items() if result.calibration is not None}
    rows = [[name, f"{found.error:.3f}", f"{found.log_loss:.3f}"] for name, found in measured.items()]
    return "Calibration of sigmoid(dR); without any knowledge the log loss is 0.693", ["", "calibration error", "log loss"], rows


def _comparisons(report: SuiteReport) -> TextTable:
    rows = [
        [
            f"{found.first} - {found.second}",
            _points(found.average),
            f"{found.only_first} : {found.only_second}",
            "< 0.0001" if found.p < 1e-4 else f"{found.p:.4f}",
        ]
        for found in report.comparisons
    ]
    return "Differences, in points with paired 95 % intervals; rows that only one got right", ["", "average", "rows", "McNemar p"], rows


def _suite_lines(report: SuiteReport) -> Iterator[tuple[str, str, str, Interval]]:
    for model, result in report.results.items():
        yield model, "suite", report.suite.name, interval(result.scores.average)
        yield model, "suite over rows", report.suite.name, interval(result.scores.row_average)
        yield from ((model, "section over rows", name, interval(trace)) for name, trace in result.scores.row_sections.items())
        subsets = {f"{section}/{subset}": trace for (section, subset), trace in result.scores.subsets.items()}
        for level, traces in (("section", result.scores.sections), ("subset", subsets), ("style", result.scores.styles)):
            yield from ((model, level, name, interval(trace)) for name, trace in traces.items())


def _csv(lines: Iterator[tuple[str, str, str, Interval]] | Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for model, level, name, found in lines:
        writer.writerow([_cell(model), level, _cell(name), *("" if math.isnan(value) else f"{value:.6f}" for value in _ends(found))])
    return text.getvalue()


def _cell(text: str) -> str:
    """A name from the data that no spreadsheet takes for a formula."""
    text = visible(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) or text.startswith("\t") else text


def _ends(found: Interval) -> Sequence[float]:
    return found.estimate, found.low, found.high


def _percent(found: Interval) -> str:
    if math.isnan(found.estimate):
        return "-"
    # A baseline on pairs that its own rule sorts has no spread.
    spread = "" if found.low == found.high else f"\n[{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"{100 * found.estimate:.1f}{spread}"


def _points(found: Interval) -> str:
    return f"{100 * found.estimate:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _compared(found: PlaceCredit) -> str:
    return f"{found.num_compared:,} of {found.num_bad:,} bad ones"


def _given_position(found: PlaceCredit) -> str:
    """With a word where the whole interval is on one side of 0.5."""
    estimate, newline, spread = _number(found.auc, 3).partition("\n")
    return estimate + {"above": " > 0.5", "below": " < 0.5", "open": ""}[found.verdict] + newline + spread


def _number(found: Interval, digits: int) -> str:
    if math.isnan(found.estimate):
        return "-"
    return f"{found.estimate:.{digits}f}\n[{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"
