"""What `srm-eval` makes of scores: tables on the screen, numbers in files, a figure, and a page a model."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.extras import way_to_install

if TYPE_CHECKING:
    from rich.console import Console

    from srm.evaluation.spans import SpanRow
    from srm.evaluation.steps import StepSuite
    from srm.evaluation.suites import Suite, SuiteRow
    from srm.evaluation.tables import TextTable

__all__ = ["file_name", "report_spans", "report_steps", "report_suite"]


def file_name(name: str) -> str:
    """What files of the model `name` are called."""
    return name.replace("/", "--").replace(":", "--")


def report_suite(suite: Suite, outputs: Mapping[str, Path], arguments: argparse.Namespace, console: Console) -> None:
    """Accuracy by section, length bias, calibration and comparisons.

    Args:
        suite: that was scored.
        outputs: by name of the model, its file of scores.
        arguments: of the command.
        console: for notes.
    """
    from srm.evaluation.compare import evaluate_suite
    from srm.evaluation.figure import suite_figure
    from srm.evaluation.score_suite import read_rewards, read_scored
    from srm.evaluation.tables import suite_csv, suite_tables

    rewards = {name: read_rewards(suite.rows, output) for name, output in outputs.items()}
    report = evaluate_suite(suite, rewards, draws=arguments.draws, seed=arguments.seed)
    tables = suite_tables(report, over_rows=arguments.section_mean == "rows")
    figure = suite_figure(report) if _has_matplotlib(console) else None
    total = sum(len(row.responses) for row in suite.rows)
    _write(arguments, outputs, report.to_dict(), suite_csv(report), tables, figure, console, total=total)
    if arguments.html:
        for name, output in outputs.items():
            scored = read_scored(suite.rows, output)
            _write_page(name, suite.rows, scored, [()] * len(scored), tables, figure, arguments)


def report_spans(
    spans: Sequence[SpanRow], rows: Sequence[SuiteRow], outputs: Mapping[str, Path], arguments: argparse.Namespace, console: Console
) -> None:
    """Credit of sentences on marked errors.

    Args:
        spans: that were scored.
        rows: the same as rows of a suite.
        outputs: by name of the model, its file of scores.
        arguments: of the command.
        console: for notes.
    """
    from srm.evaluation.figure import span_figure
    from srm.evaluation.score_suite import read_scored
    from srm.evaluation.spans import credit_differences, evaluate_spans
    from srm.evaluation.tables import span_csv, span_tables

    nested = {name: read_scored(rows, output) for name, output in outputs.items()}
    scored = {name: [responses[0] for responses in model] for name, model in nested.items()}
    results = evaluate_spans(spans, scored, measure=arguments.measure, draws=arguments.draws, seed=arguments.seed)
    tables = span_tables(results)
    figure = span_figure(results) if _has_matplotlib(console) else None
    numbers = {
        "suite": arguments.suite,
        "rule": "spans",
        "measure": arguments.measure,
        "rows": len(rows),
        "interval": {"level": 0.95, "unit": "prompt", "draws": arguments.draws, "seed": arguments.seed},
        "models": {name: result.to_dict() for name, result in results.items()},
        "comparisons": [{"first": a, "second": b, "auc": found.to_dict()} for a, b, found in credit_differences(results)],
    }
    _write(arguments, outputs, numbers, span_csv(results), tables, figure, console, total=len(rows))
    if arguments.html:
        for name, responses in nested.items():
            _write_page(name, rows, responses, [row.errors for row in spans], tables, figure, arguments)


def report_steps(
    suite: StepSuite,
    rows: Sequence[SuiteRow],
    outputs: Mapping[str, Path],
    token_level: Collection[str],
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    """The published scores of a suite with steps, and the credit of steps.

    Args:
        suite: that was scored.
        rows: the same as rows of a suite.
        outputs: by name of the model, its file of scores.
        token_level: names of the models that are token-level.
        arguments: of the command.
        console: for notes.
    """
    from srm.evaluation.figure import step_figure
    from srm.evaluation.score_suite import read_scored
    from srm.evaluation.step_scores import evaluate_steps
    from srm.evaluation.steps import steps_of
    from srm.evaluation.tables import step_csv, step_tables

    scored = {name: [responses[0] for responses in read_scored(rows, output)] for name, output in outputs.items()}
    results = evaluate_steps(
        suite,
        scored,
        token_level=token_level,
        measure=arguments.measure,
        threshold=arguments.threshold,
        draws=arguments.draws,
        seed=arguments.seed,
    )
    tables = step_tables(suite, results)
    figure = step_figure(suite, results) if _has_matplotlib(console) else None
    numbers = {
        "suite": suite.name,
        "rule": suite.rule,
        "measure": arguments.measure,
        "rows": len(rows),
        "interval": {"level": 0.95, "unit": "problem", "draws": arguments.draws, "seed": arguments.seed},
        "models": {name: result.to_dict() for name, result in results.items()},
    }
    _write(arguments, outputs, numbers, step_csv(results), tables, figure, console, total=len(rows))
    if arguments.html:
        for name, responses in scored.items():
            pairs = zip(suite.rows, responses, strict=True)
            steps = [[steps_of(row, response, token_level=name in token_level)] for row, response in pairs]
            _write_page(name, rows, steps, [row.errors for row in suite.rows], tables, figure, arguments)


def _write(
    arguments: argparse.Namespace,
    outputs: Mapping[str, Path],
    numbers: dict[str, Any],
    table: str,
    tables: Sequence[TextTable],
    figure: bytes | None,
    console: Console,
    *,
    total: int,
) -> None:
    from srm.cli.scoring import truncated_line
    from srm.cli.terminal import Terminal
    from srm.evaluation.tables import rich_table
    from srm.runs.folders import write_whole
    from srm.scoring.lines import count_truncated

    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    folder = arguments.output_dir
    cuts = arguments.overlong != "error"
    truncated = {name: count_truncated(output) if cuts else 0 for name, output in outputs.items()}
    write_whole(
        folder / "results.json",
        json.dumps(_without_nan({**numbers, "truncated": truncated, "settings": settings}), indent=2, ensure_ascii=False, allow_nan=False)
        + "\n",
    )
    write_whole(folder / "results.csv", table)
    if figure is not None:
        (folder / "results.png").write_bytes(figure)
    screen = Terminal()
    for each in tables:
        screen.print(rich_table(each))
    for name, count in truncated.items() if cuts else ():
        console.print(f"{name}: {truncated_line(count, total, arguments)}")
    console.print(f"results in {folder}")


def _write_page(
    name: str,
    rows: Sequence[SuiteRow],
    scored: Sequence[Sequence[Any]],
    marked: Sequence[Sequence[Mapping[str, Any]]],
    tables: Sequence[TextTable],
    figure: bytes | None,
    arguments: argparse.Namespace,
) -> None:
    """One page a model. Of several wrong responses the one with the highest reward is shown, of several right ones the lowest."""
    from srm.views.page import ReportPair, write_html

    pairs = []
    for row, responses, spans in zip(rows, scored, marked, strict=True):
        right = min(responses[: row.num_correct], key=lambda response: response.reward)
        wrong = max(responses[row.num_correct :], key=lambda response: response.reward, default=None)
        pairs.append(
            ReportPair(id=row.id, section=row.section, subset=row.subset, prompt=row.prompt, chosen=right, rejected=wrong, marked=spans)
        )
    plots = [] if figure is None else [("Results", "The tables on this page hold the same numbers.", figure, "image/png")]
    title = f"{name} on {Path(arguments.suite).name}"
    write_html(arguments.output_dir / f"{file_name(name)}.html", pairs, title=title, tables=tables, plots=plots)


def _has_matplotlib(console: Console) -> bool:
    there = importlib.util.find_spec("matplotlib") is not None
    if not there:
        console.print(f"no figure: {way_to_install('matplotlib')}")
    return there


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what has no rows is null."""
    if isinstance(value, dict):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
