"""Reports as tables: a title, the names of the columns, and rows of text. The terminal, the HTML page and the CSV show the same numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from srm.evaluation.compare import SuiteReport
from srm.evaluation.intervals import Interval, interval
from srm.evaluation.spans import SpanResult, credit_differences
from srm.views.visible import visible

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["TextTable", "rich_table", "span_csv", "span_tables", "suite_csv", "suite_tables"]

TextTable = tuple[str, list[str], list[list[str]]]
# What spreadsheets take for a formula, behind white space too; the last four are the same signs in full width.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
_CSV_COLUMNS = ("model", "level", "name", "score", "low", "high")


def suite_tables(report: SuiteReport) -> list[TextTable]:
    """Sections, subsets where they say more, RM-Bench's styles, length, calibration, and the comparisons."""
    tables = [_sections(report)]
    if any(set(subsets) != {section} for section, subsets in report.suite.weights.items()):
        tables.append(_subsets(report))
    if report.suite.rule == "styles":
        tables += _styles(report)
    return [*tables, _lengths(report), _calibration(report), _comparisons(report)]


def span_tables(results: Mapping[str, SpanResult]) -> list[TextTable]:
    """The three measures of credit, and each model's AUC by type of error."""
    columns = ["", "AUC", "average precision", "lowest is bad"]
    rows = [[name, *(_number(getattr(r, metric), 3) for metric in ("auc", "average_precision"))] for name, r in results.items()]
    rows = [[*row, _percent(results[row[0]].hit_rate)] for row in rows]
    title = f"Sentence credit, {next(iter(results.values())).num_responses} responses"
    models = {name: result.by_kind for name, result in results.items() if result.by_kind is not None}
    kinds = sorted({kind for by_kind in models.values() for kind in by_kind})
    by_kind = [
        [kind, *(f"{found[kind].auc:.3f} ({found[kind].num_bad})" if kind in found else "" for found in models.values())] for kind in kinds
    ]
    differences = [[f"{a} - {b}", f"{d.estimate:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"] for a, b, d in credit_differences(results)]
    tables: list[TextTable] = [(title, columns, rows), ("AUC by type of error (bad sentences)", ["", *models], by_kind)]
    return [*tables, ("Differences in AUC, paired", ["", "AUC"], differences)] if differences else tables


def suite_csv(report: SuiteReport) -> str:
    """A line a score: model, level (suite, section, subset, style), name, score and its interval, as fractions."""
    return _csv(_suite_lines(report))


def span_csv(results: Mapping[str, SpanResult]) -> str:
    """A line a measure, as `suite_csv`."""
    names = ("auc", "average_precision", "hit_rate")
    return _csv((model, "spans", name, getattr(result, name)) for model, result in results.items() for name in names)


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
    titled = f"{report.suite.name}: {len(report.suite.rows):,} rows, per cent right with 95 % intervals over prompts"
    return titled, ["", *sections, *(["average"] if several else [])], rows


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


def _number(found: Interval, digits: int) -> str:
    return f"{found.estimate:.{digits}f}\n[{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"
