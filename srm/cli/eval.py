"""srm-eval: how often reward models rank preference pairs rightly, and whether their sentence rewards find marked errors.

srm-eval --model outputs/reward other/model --suite pairs_test.jsonl --output_dir outputs/eval
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.cli.common import run
from srm.cli.eval_models import add_rival_options, check_of_rows, check_rival_options, identity_of, load, models_of, short_names
from srm.cli.eval_report import file_name
from srm.cli.scoring import add_scoring_options, device_of, progress_columns
from srm.errors import UserError
from srm.runs.parser import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from srm.data import Prompt, Response
    from srm.evaluation.spans import SpanRow
    from srm.evaluation.steps import StepSuite
    from srm.evaluation.suites import Suite, SuiteRow

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
        help="rewardbench, rewardbench2, rmbench, judgebench, judgebench-claude, ppe-human, ppe-correctness, processbench or prmbench from "
        "the hub; a file or folder with rows in the form of one of them, or of RMB or RAGTruth; pairs in any form that srm-train reads, "
        "with `section` and `subset` where there are any; or rows with prompt, response and errors [{type, start, end}].",
    )
    needed.add_argument("--output_dir", required=True, type=Path, help="results.json, .csv and .png, and the scores of each model")
    add_rival_options(parser)
    results = parser.add_argument_group("results")
    results.add_argument("--max_pairs", type=int, help="evaluate at most so many rows, spread evenly over the suite [all]")
    results.add_argument("--draws", type=int, default=1000, help="of the bootstrap over prompts")
    results.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    results.add_argument(
        "--section_mean",
        choices=["official", "rows"],
        default="official",
        help="rows: also print each section as the mean over its rows, and their average beside the official one",
    )
    results.add_argument("--measure", choices=["reward", "weighted_reward"], help="what is judged on marked errors and steps [reward]")
    results.add_argument(
        "--threshold",
        type=float,
        help="reward above which a step is taken for right [processbench: the best on its rows of gsm8k; prmbench: for each half of the "
        "problems, the best on the other]",
    )
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
    from srm.data.sources import one_split
    from srm.evaluation.suites import SUITES
    from srm.runs.lock import hold

    device_of(arguments)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("runs as one process. Score with several by srm-score, or start one srm-eval a model, each with its --output_dir.")
    names = short_names(arguments.model)
    outputs = {name: arguments.output_dir / "scores" / f"{file_name(name)}.jsonl" for name in names}
    files = _check_places(arguments, outputs)
    # A suite of the hub has its own.
    arguments.split = arguments.split or "train" if arguments.suite in SUITES else one_split(arguments.suite, arguments.split)
    with hold(arguments.output_dir):
        _claim(arguments, files)
        _evaluate_suite(names, outputs, arguments, Terminal(stderr=True))


def _check_places(arguments: argparse.Namespace, outputs: Mapping[str, Path]) -> list[Path]:
    """The files that will be written, none of which may be one that is read."""
    from srm.runs.places import check_files, check_folder
    from srm.scoring.file import meta_path

    folder = arguments.output_dir
    pages = [folder / f"{file_name(name)}.html" for name in outputs] if arguments.html else []
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


def _evaluate_suite(names: Mapping[str, str], outputs: Mapping[str, Path], arguments: argparse.Namespace, console: Console) -> None:
    from srm.cli.eval_report import report_spans, report_steps, report_suite
    from srm.evaluation.published import check_published
    from srm.evaluation.score_suite import response_rows, write_responses
    from srm.evaluation.spans import has_spans, read_spans
    from srm.evaluation.step_scores import check_threshold
    from srm.evaluation.steps import has_steps, read_steps
    from srm.evaluation.suites import SUITES, read_suite

    check_published(arguments.suite)
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
    solutions: StepSuite | None = None
    spans: list[SpanRow] = []
    rows: Sequence[SuiteRow]
    if arguments.suite not in SUITES and has_steps(arguments.suite, split=arguments.split):
        solutions = read_steps(arguments.suite, **reading)
        check_threshold(solutions, arguments.threshold)
        rows = [row.to_suite_row() for row in solutions.rows]
    elif arguments.suite not in SUITES and has_spans(arguments.suite, split=arguments.split):
        spans = read_spans(arguments.suite, **reading)
        rows = [row.to_suite_row() for row in spans]
    else:
        suite = read_suite(arguments.suite, **reading)
        rows = suite.rows
    _check_options(arguments, ranks=suite is not None, steps=solutions is not None)
    responses = arguments.output_dir / "responses.jsonl"
    responses.parent.mkdir(parents=True, exist_ok=True)
    if arguments.overwrite:
        responses.unlink(missing_ok=True)
    write_responses(rows, responses)
    places = [row.where for row in response_rows(rows)]
    token_level = {name for name, model in names.items() if _score(model, name, responses, outputs[name], places, arguments, console)}
    if suite is not None:
        report_suite(suite, outputs, arguments, console)
    elif solutions is not None:
        report_steps(solutions, rows, outputs, token_level, arguments, console)
    else:
        report_spans(spans, rows, outputs, arguments, console)


def _check_options(arguments: argparse.Namespace, *, ranks: bool, steps: bool) -> None:
    """Refuse an option that means nothing for the suite, rather than leave it out without a word; fill in what was not given."""
    if arguments.section_mean == "rows" and not ranks:
        raise UserError("--section_mean: this suite judges sentences and has no sections to average. Leave the flag out.")
    if arguments.threshold is not None and not steps:
        raise UserError("--threshold: only suites with steps (ProcessBench, PRMBench) have one. Leave the flag out.")
    if arguments.measure is not None and ranks:
        raise UserError("--measure: this suite ranks responses and judges no sentences. Leave the flag out.")
    arguments.measure = arguments.measure or "reward"


def _score(
    model_name: str, name: str, responses: Path, output: Path, places: Sequence[str], arguments: argparse.Namespace, console: Console
) -> bool:
    """Write the scores of a model, and say whether it is token-level, so that a sentence's reward is a mean."""
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
        task = progress.add_task("", total=len(places))
        score_responses(
            model,
            responses,
            output,
            identity=identity,
            settings=settings,
            overwrite=arguments.overwrite,
            places=places,
            on_scored=lambda count: progress.advance(task, count),
        )
    return getattr(getattr(model, "config", None), "granularity", None) == "token"


if __name__ == "__main__":
    sys.exit(main())
