"""srm-score: a reward for every response in a file, and for every sentence in it, to use or to look at."""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.cli.common import run
from srm.cli.scoring import add_scoring_options, device_of, load_model, model_identity, progress_columns, row_check, truncated_line
from srm.errors import UserError
from srm.runs.parser import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from srm.cli.cluster import Workers
    from srm.data import Prompt, ResponseRow
    from srm.evaluation.pairs import SubsetAccuracy
    from srm.views.page import ReportPair

__all__ = ["main"]

_FORMATS = "JSONL, JSON, CSV (plain or .gz), Parquet, a folder of them, or a hub name; rows with prompt + response, or preference pairs"
# A page of more is hundreds of megabytes, which no browser opens with pleasure.
_MOST_ON_A_PAGE = 20_000


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `srm-score`."""
    return run(_score, argv)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="srm-score",
        description="Score responses and each of their sentences. Interrupted? Run the same command again: it goes on where it stopped. "
        "On several GPUs or machines: --engine ray. Without Ray, accelerate launch --multi_gpu --num_processes N -m srm.cli.score ..., or "
        "torchrun, on CPUs too.",
    )
    needed = parser.add_argument_group("what is scored")
    needed.add_argument("--model", required=True, help="folder or hub name of a trained sentence reward model")
    needed.add_argument("--input", required=True, help=_FORMATS)
    needed.add_argument("--output", required=True, type=Path, help="JSON lines, one a response, in the order of the input")
    views = parser.add_argument_group("what is shown")
    views.add_argument(
        "--show", type=int, nargs="?", const=3, default=0, metavar="N", help="show the first N rows in colour (%(const)s without a number)"
    )
    views.add_argument("--html", type=Path, help="also write a page to read, sort and search the scored responses: docs/report.md")
    views.add_argument("--overwrite", action="store_true", help="replace an existing output instead of going on with it")
    add_scoring_options(parser)
    engine = parser.add_argument_group("where it runs")
    engine.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="this process, or workers of a Ray cluster: docs/scale.md"
    )
    engine.add_argument("--address", help="of the cluster: HOST:PORT of its head, auto, or local for its own [RAY_ADDRESS, auto, local]")
    engine.add_argument("--num_workers", type=int, help="workers, each with a model [one a GPU; on CPUs one a machine]")
    return parser.parse_args(argv)


def _score(argv: Sequence[str]) -> None:
    arguments = _parse(argv)
    # First, because without the stack it says so in one line, and torch alone has more to say.
    from srm.cli.terminal import Terminal
    from srm.data.sources import one_split
    from srm.runs.lock import hold

    process, num_processes = _place()
    _check_engine(arguments, num_processes)
    _check_places(arguments)
    arguments.split = one_split(arguments.input, arguments.split)
    # From before the first look at what is there until the last one.
    with hold(arguments.output, rank=process, num_ranks=num_processes), _cluster(arguments) as workers:
        _score_input(arguments, process, num_processes, workers, Terminal(stderr=True))


def _check_engine(arguments: argparse.Namespace, num_processes: int) -> None:
    if arguments.engine == "local":
        for flag in ("address", "num_workers"):
            if getattr(arguments, flag) is not None:
                raise UserError(f"--{flag} is for --engine ray. Add that, or leave the flag out.")
        device_of(arguments)
        return
    from srm.scoring.parts import parts_folder

    if num_processes > 1:
        raise UserError("--engine ray starts its workers itself. Start it without accelerate launch or torchrun.")
    if arguments.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {arguments.device}: Ray gives each worker its GPU. Give cuda, cpu, or leave the flag out.")
    if (parts := parts_folder(arguments.output)).exists() and not arguments.overwrite:
        raise UserError(f"{parts}: several processes have begun {arguments.output}. Go on without --engine ray, or pass --overwrite.")


@contextmanager
def _cluster(arguments: argparse.Namespace) -> Iterator[Workers | None]:
    """The workers of a cluster for as long as the block runs, or None where this process scores."""
    if arguments.engine == "local":
        yield None
        return
    from srm.cli.cluster import connected, plan_workers

    with connected(arguments.address):
        yield plan_workers(arguments.device, arguments.num_workers)


def _score_input(arguments: argparse.Namespace, process: int, num_processes: int, workers: Workers | None, console: Console) -> None:
    from rich.progress import Progress

    from srm.cli.terminal import Terminal
    from srm.data.read import first_pass
    from srm.scoring.file import RowSettings, ScoreFileSummary, check_output, check_written_by_us, score_file
    from srm.scoring.lines import count_truncated
    from srm.scoring.parts import parts_folder, score_parts

    _check_overwrite(arguments, num_processes)
    settings = RowSettings(
        overlong=arguments.overlong,
        max_length=arguments.max_length,
        packing=arguments.packing,
        tokens_per_batch=arguments.tokens_per_batch,
    )
    if not arguments.overwrite:
        check_written_by_us(arguments.output)
    # Before the settings are compared: a model that is not there has none.
    check = row_check(arguments.model)
    identity = model_identity(arguments.model, arguments.input, arguments)
    if not arguments.overwrite:
        check_output(arguments.output, identity | settings.decisive())
    # A first pass finds bad rows before hours are spent, and tells the progress bar how long it is.
    found = first_pass(arguments.input, split=arguments.split, skip_bad_rows=arguments.skip_bad_rows, check=check)
    total, left_out = found.num_responses, found.left_out
    _check_views(arguments, total)
    common: dict[str, Any] = {
        "split": arguments.split,
        "identity": identity,
        "settings": settings,
        "left_out": left_out,
    }
    model = load_model(arguments.model, arguments) if workers is None else None
    with Progress(*progress_columns("Scoring"), console=console, disable=process > 0) as progress:
        # Of several processes the first shows its own share.
        task = progress.add_task("Scoring", total=total / num_processes)
        common["on_scored"] = lambda count: progress.advance(task, count)
        source, output = arguments.input, arguments.output
        summary: ScoreFileSummary | None
        if model is None:
            from srm.integrations import ray

            asked = {"dtype": arguments.dtype, "last_layer_rows": arguments.last_layer_rows, "overwrite": arguments.overwrite}
            summary = ray.score_file(arguments.model, source, output, num_rows=total, **vars(workers), **asked, **common)
        elif num_processes > 1 or parts_folder(output).exists():
            summary = score_parts(model, source, output, process=process, num_processes=num_processes, num_rows=total, **common)
        else:
            summary = score_file(model, source, output, overwrite=arguments.overwrite, **common)
    if summary is None:
        return
    resumed = f" ({summary.num_resumed} of them by an earlier run)" if summary.num_resumed and num_processes == 1 else ""
    console.print(f"{summary.num_scored + summary.num_resumed} responses scored{resumed}: {arguments.output}")
    if arguments.overlong != "error":
        console.print(truncated_line(count_truncated(arguments.output), total, arguments))
    _present(arguments, left_out, Terminal())


def _place() -> tuple[int, int]:
    """Which process this is, and of how many, as accelerate launch and torchrun tell."""
    rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise UserError(
            f"the environment says RANK={rank} of WORLD_SIZE={count}. Start it with accelerate launch or torchrun, or unset them."
        )
    return int(rank), int(count)


def _check_places(arguments: argparse.Namespace) -> None:
    from srm.runs.places import check_files
    from srm.scoring.file import meta_path
    from srm.views.page import is_page

    written = {"--output": arguments.output, "--html": arguments.html, "the record beside --output": meta_path(arguments.output)}
    check_files(written, data={"--input": arguments.input}, models={"--model": arguments.model})
    if arguments.html and arguments.html.exists() and not is_page(arguments.html) and not arguments.overwrite:
        raise UserError(f"--html {arguments.html}: exists and is no page of srm-score. Choose another, or pass --overwrite to replace it.")


def _check_views(arguments: argparse.Namespace, total: int) -> None:
    if arguments.html and total > _MOST_ON_A_PAGE:
        raise UserError(f"--html: {total} responses are too many for one page, the limit is {_MOST_ON_A_PAGE}. Score a part of the input.")


def _check_overwrite(arguments: argparse.Namespace, num_processes: int) -> None:
    from srm.scoring.parts import parts_folder

    parts = parts_folder(arguments.output)
    if not arguments.overwrite:
        return
    if num_processes == 1:
        shutil.rmtree(parts, ignore_errors=True)
    elif arguments.output.exists() or parts.exists():
        # A process that starts late would delete what the others have written.
        there = arguments.output if arguments.output.exists() else parts
        raise UserError(
            f"--overwrite: {there} exists, and several processes cannot agree on when to delete it. Delete it before the launch."
        )


def _present(arguments: argparse.Namespace, left_out: frozenset[int], console: Console) -> None:
    """What a reader wants of the finished file: accuracy, some rows in colour, the page."""
    from srm.evaluation.pairs import accuracy_by_subset, pair_outcomes

    accuracy = accuracy_by_subset(pair_outcomes(_scored_rows(arguments, left_out)))
    if accuracy:
        _print_accuracy(accuracy, console)
    _show(itertools.islice(_report_pairs(arguments, left_out), arguments.show), console)
    if arguments.html:
        _write_page(arguments, left_out, accuracy)
        console.print(f"To read in a browser: {arguments.html}")


_ACCURACY = ("Pairs ranked rightly", ("subset", "pairs", "model", "longer wins"))


def _accuracy_cells(row: SubsetAccuracy) -> tuple[str, str, str, str]:
    return row.subset, str(row.num_pairs), f"{row.accuracy:.1%}", f"{row.longer_wins:.1%}"


def _print_accuracy(accuracy: Sequence[SubsetAccuracy], console: Console) -> None:
    """For preference pairs: how many are ranked rightly, by subset, beside the longer-wins baseline."""
    from rich.table import Table

    title, (first, *others) = _ACCURACY
    table = Table(first, title=title)
    for name in others:
        table.add_column(name, justify="right")
    for row in accuracy:
        table.add_row(*_accuracy_cells(row), end_section=row is accuracy[-2:][0])
    console.print(table)


def _show(rows: Iterable[ReportPair], console: Console) -> None:
    """Pairs one by one, and other responses together with their neighbours to the same prompt."""
    from srm.views.terminal import render_pair, render_responses

    for (prompt, is_pair), group in itertools.groupby(rows, key=lambda row: (_plain(row.prompt), row.rejected is not None)):
        if is_pair:
            for row in group:
                assert row.rejected is not None
                console.print(render_pair(prompt, row.chosen, row.rejected, damaged=row.marked))
        else:
            console.print(render_responses(prompt, [(row.chosen, row.marked) for row in group]))


def _plain(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _write_page(arguments: argparse.Namespace, left_out: frozenset[int], accuracy: Sequence[SubsetAccuracy]) -> None:
    from srm.views.page import write_html

    tables = [(*_ACCURACY, [_accuracy_cells(row) for row in accuracy])] if accuracy else []
    title = f"{Path(arguments.input).name}, scored by {arguments.model}"
    write_html(arguments.html, _report_pairs(arguments, left_out), title=title, tables=tables)


def _scored_rows(arguments: argparse.Namespace, left_out: frozenset[int]) -> Iterator[list[tuple[ResponseRow, dict[str, Any]]]]:
    from srm.evaluation.pairs import scored_rows

    return scored_rows(arguments.input, arguments.output, split=arguments.split, left_out=left_out)


def _report_pairs(arguments: argparse.Namespace, left_out: frozenset[int]) -> Iterator[ReportPair]:
    """Preference pairs as pairs, every other response by itself."""
    for responses in _scored_rows(arguments, left_out):
        # A pair is shown under its prompt, so both must answer that one.
        is_pair = [row.label for row, _ in responses] == ["chosen", "rejected"] and responses[0][0].prompt == responses[1][0].prompt
        for group in [responses] if is_pair else [[response] for response in responses]:
            yield _report_pair(group)


def _report_pair(responses: list[tuple[ResponseRow, dict[str, Any]]]) -> ReportPair:
    from srm.scoring.results import ScoredResponse
    from srm.views.page import ReportPair

    row = responses[0][0]
    chosen, *others = (ScoredResponse.from_dict(score) for _, score in responses)
    return ReportPair(
        id=row.row_id if others else row.id,
        section=str(row.extra.get("section", "")),
        subset=str(row.extra.get("subset", "")),
        prompt=row.prompt,
        chosen=chosen,
        rejected=others[0] if others else None,
        # Of a list of responses nobody knows which one they belong to.
        marked=_marked(row) if row.label in ("chosen", "response") else (),
    )


def _marked(row: ResponseRow) -> list[dict[str, Any]]:
    """Known bad spans, where a column `damaged` or `errors` lists them; a column of that name may also be something else."""
    spans = [row.extra.get(name) for name in ("damaged", "errors")]
    return [
        {"start": span["start"], "end": span["end"], "kind": span.get("kind", span.get("type", "bad"))}
        for listed in spans
        if isinstance(listed, list)
        for span in listed
        if isinstance(span, dict) and isinstance(span.get("start"), int) and isinstance(span.get("end"), int)
    ]


if __name__ == "__main__":
    sys.exit(main())
