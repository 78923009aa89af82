"""srm-eval: how often reward models rank preference pairs rightly, and whether their sentence rewards find marked errors.

srm-eval --model outputs/reward other/model --suite pairs_test.jsonl --output_dir outputs/eval
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.cli.common import run
from srm.cli.eval_models import add_rival_options, check_of_rows, check_rival_options, identity_of, load, models_of, short_names
from srm.cli.scoring import add_scoring_options, device_of, progress_columns
from srm.errors import UserError
from srm.extras import way_to_install
from srm.runs.parser import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from srm.data import Prompt, Response
    from srm.evaluation.spans import SpanRow
    from srm.evaluation.suites import Suite, SuiteRow
    from srm.evaluation.tables import TextTable

__all__ = ["main"]

# Says that the results in a folder are ours, so that the next run may replace them.
_RECORD = "srm_eval.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `srm-eval`."""
    return run(_evaluate, argv)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="srm-eval",
        description="Evaluate reward models on preference pairs, beside the baselines `longer` and `shorter`, or on responses with marked "
        "errors. Interrupted? Run the same command again: it goes on where it stopped.",
    )
    needed = parser.add_argument_group("what is evaluated")
    needed.add_argument(
        "--model",
        required=True,
        nargs="+",
        help="folders or hub names: sentence reward models, or sequence classifiers with one output; and rivals: leave_one_out:MODEL and "
        "shapley:MODEL reward the sentences of either by cutting them out, dpo:POLICY has DPO's implicit rewards",
    )
    needed.add_argument(
        "--suite",
        required=True,
        help="rewardbench, rewardbench2 or rmbench from the hub; or pairs in any form that srm-train reads, with `section` and `subset` "
        "where there are any; or rows with prompt, response and errors [{type, start, end}].",
    )
    needed.add_argument("--output_dir", required=True, type=Path, help="results.json, .csv and .png, and the scores of each model")
    add_rival_options(parser)
    results = parser.add_argument_group("results")
    results.add_argument("--max_pairs", type=int, help="evaluate at most so many rows, spread evenly over the suite [all]")
    results.add_argument("--draws", type=int, default=1000, help="of the bootstrap over prompts")
    results.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    results.add_argument("--measure", choices=["reward", "weighted_reward"], default="reward", help="what is judged on marked errors")
    results.add_argument("--html", action="store_true", help="write a page a model with every scored pair")
    results.add_argument("--overwrite", action="store_true", help="replace existing results instead of going on with them")
    add_scoring_options(parser)
    arguments = parser.parse_args(argv)
    check_rival_options(arguments)
    return arguments


def _evaluate(argv: Sequence[str]) -> None:
    arguments = _parse(argv)
    # First, because without the stack it says so in one line, and torch alone has more to say.
    from srm.cli.terminal import Terminal
    from srm.runs.lock import hold

    device_of(arguments)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("runs as one process. Score with several by srm-score, or start one srm-eval a model, each with its --output_dir.")
    names = short_names(arguments.model)
    outputs = {name: arguments.output_dir / "scores" / f"{_file_name(name)}.jsonl" for name in names}
    files = _check_places(arguments, outputs)
    with hold(arguments.output_dir):
        _claim(arguments, files)
        _evaluate_suite(names, outputs, arguments, Terminal(stderr=True))


def _check_places(arguments: argparse.Namespace, outputs: Mapping[str, Path]) -> list[Path]:
    """The files that will be written, none of which may be one that is read."""
    from srm.runs.places import check_files, check_folder
    from srm.scoring.file import meta_path

    folder = arguments.output_dir
    pages = [folder / f"{_file_name(name)}.html" for name in outputs] if arguments.html else []
    results = [folder / name for name in ("responses.jsonl", "results.json", "results.csv", "results.png")]
    files = [*results, *pages, *outputs.values(), *map(meta_path, outputs.values())]
    read = {"data": {"--suite": arguments.suite}, "models": models_of(arguments)}
    check_folder("--output_dir", folder, **read, whole=False)
    check_files({f"--output_dir: {path.relative_to(folder)}": path for path in [*files, folder / _RECORD]}, **read)
    return files


def _claim(arguments: argparse.Namespace, files: Sequence[Path]) -> None:
    """Leave a record in the folder, which says that these files are ours, and so may be written anew."""
    from srm.runs.folders import write_whole

    record = arguments.output_dir / _RECORD
    foreign = [path for path in files if path.exists()]
    if foreign and not record.exists() and not arguments.overwrite:
        raise UserError(f"{foreign[0]}: exists and was not written by srm-eval. Choose another --output_dir, or pass --overwrite.")
    write_whole(record, json.dumps({"suite": arguments.suite, "models": arguments.model}, indent=2) + "\n")


def _file_name(name: str) -> str:
    return name.replace("/", "--").replace(":", "--")


def _evaluate_suite(names: Mapping[str, str], outputs: Mapping[str, Path], arguments: argparse.Namespace, console: Console) -> None:
    from srm.evaluation.score_suite import write_responses
    from srm.evaluation.spans import has_spans, read_spans
    from srm.evaluation.suites import HUB_SUITES, read_suite

    checks = [check_of_rows(model, arguments) for model in arguments.model]

    def check(prompt: Prompt, responses: Sequence[Response]) -> None:
        # All models score the same rows.
        for one in checks:
            one(prompt, responses)

    reading: dict[str, Any] = {
        "split": arguments.split,
        "max_rows": arguments.max_pairs,
        "skip_bad_rows": arguments.skip_bad_rows,
        "check": check,
    }
    suite: Suite | None = None
    spans: list[SpanRow] = []
    if arguments.suite not in HUB_SUITES and has_spans(arguments.suite, split=arguments.split):
        spans = read_spans(arguments.suite, **reading)
        rows: Sequence[SuiteRow] = [row.to_suite_row() for row in spans]
    else:
        suite = read_suite(arguments.suite, **reading)
        rows = suite.rows
    responses = arguments.output_dir / "responses.jsonl"
    responses.parent.mkdir(parents=True, exist_ok=True)
    if arguments.overwrite:
        responses.unlink(missing_ok=True)
    total = write_responses(rows, responses)
    for name, model in names.items():
        _score(model, name, responses, outputs[name], total, arguments, console)
    if suite is not None:
        _report_suite(suite, outputs, arguments, console)
    else:
        _report_spans(spans, rows, outputs, arguments, console)


def _score(model_name: str, name: str, responses: Path, output: Path, total: int, arguments: argparse.Namespace, console: Console) -> None:
    from rich.progress import Progress

    from srm.evaluation.score_suite import score_responses
    from srm.scoring.file import RowSettings, check_output

    digest = hashlib.sha256(responses.read_bytes()).hexdigest()
    identity = identity_of(model_name, f"sha256:{digest}", arguments)
    settings = RowSettings(
        overlong=arguments.overlong,
        max_length=arguments.max_length,
        packing=arguments.packing,
        tokens_per_batch=arguments.tokens_per_batch,
    )
    if not arguments.overwrite:
        check_output(output, identity | settings.decisive())
    model = load(model_name, arguments)
    with Progress(*progress_columns(f"Scoring {name}"), console=console) as progress:
        task = progress.add_task("", total=total)
        score_responses(
            model,
            responses,
            output,
            identity=identity,
            settings=settings,
            overwrite=arguments.overwrite,
            on_scored=lambda count: progress.advance(task, count),
        )


def _report_suite(suite: Suite, outputs: Mapping[str, Path], arguments: argparse.Namespace, console: Console) -> None:
    from srm.evaluation.compare import evaluate_suite
    from srm.evaluation.figure import suite_figure
    from srm.evaluation.score_suite import read_rewards, read_scored
    from srm.evaluation.tables import suite_csv, suite_tables

    rewards = {name: read_rewards(suite.rows, output) for name, output in outputs.items()}
    report = evaluate_suite(suite, rewards, draws=arguments.draws, seed=arguments.seed)
    tables = suite_tables(report)
    figure = suite_figure(report) if _has_matplotlib(console) else None
    _write(arguments, report.to_dict(), suite_csv(report), tables, figure, console)
    if arguments.html:
        for name, output in outputs.items():
            scored = read_scored(suite.rows, output)
            _write_page(name, suite.rows, scored, [()] * len(scored), tables, figure, arguments)


def _report_spans(
    spans: Sequence[SpanRow], rows: Sequence[SuiteRow], outputs: Mapping[str, Path], arguments: argparse.Namespace, console: Console
) -> None:
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
    _write(arguments, numbers, span_csv(results), tables, figure, console)
    if arguments.html:
        for name, responses in nested.items():
            _write_page(name, rows, responses, [row.errors for row in spans], tables, figure, arguments)


def _write(
    arguments: argparse.Namespace,
    numbers: dict[str, Any],
    table: str,
    tables: Sequence[TextTable],
    figure: bytes | None,
    console: Console,
) -> None:
    from srm.cli.terminal import Terminal
    from srm.evaluation.tables import rich_table
    from srm.runs.folders import write_whole

    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    folder = arguments.output_dir
    write_whole(
        folder / "results.json",
        json.dumps(_without_nan({**numbers, "settings": settings}), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    )
    write_whole(folder / "results.csv", table)
    if figure is not None:
        (folder / "results.png").write_bytes(figure)
    screen = Terminal()
    for each in tables:
        screen.print(rich_table(each))
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
    write_html(arguments.output_dir / f"{_file_name(name)}.html", pairs, title=title, tables=tables, plots=plots)


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


if __name__ == "__main__":
    sys.exit(main())
