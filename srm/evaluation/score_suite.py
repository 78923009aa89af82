"""Rewards of a suite's responses: from files that any interruption leaves usable, or in memory; and the baselines that need no model.

`write_responses` puts what is to be scored into one file, `score_responses` scores it with one model into another (the format of
`srm-score`, resumed like it), `read_rewards` brings the rewards back into the suite's rows. `score_suite` does all of that in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from srm.data import ResponseRow, read_responses
from srm.data.responses import num_chars, own_prompt
from srm.data.settings import columns_of
from srm.errors import UserError
from srm.evaluation.models import RowScorer
from srm.evaluation.suites import Suite, SuiteRow
from srm.runs.folders import write_whole
from srm.runs.lock import hold
from srm.scoring.file import RowSettings, append_scored, append_scores, prepare_output
from srm.scoring.lines import read_scores_of
from srm.scoring.results import ScoredResponse

if TYPE_CHECKING:
    from srm.modeling.model import SentenceRewardModel

__all__ = [
    "BASELINES",
    "baseline_rewards",
    "read_rewards",
    "read_scored",
    "response_rows",
    "score_responses",
    "score_suite",
    "write_responses",
]

# The floor of every table: the longer response wins, the shorter one wins. Lengths are characters.
BASELINES = ("longer", "shorter")


def baseline_rewards(suite: Suite, name: str) -> list[list[float]]:
    """Rewards of a baseline: the length in characters, or its negative.

    Args:
        suite: from `read_suite`.
        name: `longer` or `shorter`.
    """
    sign = {"longer": 1.0, "shorter": -1.0}[name]
    return [[sign * num_chars(response) for response in row.responses] for row in suite.rows]


def score_suite(model: SentenceRewardModel | RowScorer, suite: Suite, **settings: Any) -> list[list[ScoredResponse]]:
    """Scores of each row's responses, in memory.

    Args:
        model: a reward model, a classifier, or a rival.
        suite: from `read_suite`.
        **settings: those of the model's `score`; of other scorers those of `RowSettings`.
    """
    if isinstance(model, RowScorer):
        whole = RowSettings(**{"overlong": "error", "max_length": None, "packing": None, "tokens_per_batch": 8192, **settings})
        scored = (response for some in model.score_rows(response_rows(suite.rows), whole) for _, response in some)
        return [list(islice(scored, len(row.responses))) for row in suite.rows]
    prompts, responses = suite.texts
    return cast("list[list[ScoredResponse]]", model.score(prompts, responses, **settings))


def write_responses(rows: Iterable[SuiteRow], path: Path) -> int:
    """Write every response to be scored, a line each, as rows that `srm-score` reads.

    Args:
        rows: of a suite.
        path: the JSONL file.

    Returns:
        How many there are.

    Raises:
        UserError: `path` holds something else, from a run with other rows.
    """
    lines = [
        json.dumps({"id": row.id, "prompt": row.prompt, "response": row.response, **columns_of(row.prompt)}, ensure_ascii=False)
        for row in response_rows(rows)
    ]
    text = "".join(line + "\n" for line in lines)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path}: holds other rows, of another suite or --max_pairs. Choose another --output_dir, or pass --overwrite.")
    write_whole(path, text)
    return len(lines)


def score_responses(
    model: SentenceRewardModel | RowScorer,
    source: Path,
    output: Path,
    *,
    identity: dict[str, Any],
    settings: RowSettings,
    overwrite: bool = False,
    places: Sequence[str] | None = None,
    on_scored: Callable[[int], None] = lambda count: None,
) -> None:
    """Score the file of `write_responses` into `output`, going on where an interrupted call stopped.

    Args:
        model: a reward model, a classifier, or a rival.
        source: the file of `write_responses`.
        output: the JSONL file, in the format of `srm-score`.
        identity: as in `srm.scoring.file.score_file`.
        settings: how rows are scored.
        overwrite: begin anew where `output` exists.
        places: what a message calls each row, in place of its line in `source`, which the user has not written.
        on_scored: called with the number of responses just written, the resumed ones first.

    Raises:
        UserError: as `srm.scoring.file.score_file`.
    """
    with hold(output):
        num_resumed = prepare_output(output, identity | settings.decisive(), overwrite=overwrite)
        rows = read_responses(str(source))
        if places is not None:
            rows = (replace(row, where=place) for row, place in zip(rows, places, strict=True))
        if isinstance(model, RowScorer):
            append_scored(lambda left: model.score_rows(left, settings), rows, output, num_resumed, on_scored)
        else:
            append_scores(model, rows, output, num_resumed, settings, on_scored)


def read_rewards(rows: Sequence[SuiteRow], output: Path) -> list[list[float]]:
    """The rewards of each row's responses.

    Args:
        rows: of a suite.
        output: from `score_responses`.

    Raises:
        UserError: the file does not hold the responses of these rows, once each and in order.
    """
    return [[line["reward"] for line in lines] for lines in _lines(rows, output)]


def read_scored(rows: Sequence[SuiteRow], output: Path) -> list[list[ScoredResponse]]:
    """As `read_rewards`, with the sentences.

    Args:
        rows: of a suite.
        output: from `score_responses`.

    Raises:
        UserError: as `read_rewards`.
    """
    return [[ScoredResponse.from_dict(line) for line in lines] for lines in _lines(rows, output)]


def response_rows(rows: Iterable[SuiteRow]) -> Iterator[ResponseRow]:
    """The responses of a suite's rows as `srm-score` reads them, in order."""
    for number, row in enumerate(rows, 1):
        where = row.where or f"row {number} of the suite"
        for label, response in zip(row.labels, row.responses, strict=True):
            own, answer = own_prompt(row.prompt, response)
            yield ResponseRow(id=f"{row.id}/{label}", row_id=row.id, row=number, label=label, prompt=own, response=answer, where=where)


def _lines(rows: Sequence[SuiteRow], output: Path) -> list[list[dict[str, Any]]]:
    scored = read_scores_of(output, response_rows(rows))
    lines = [[line for _, line in islice(scored, len(row.responses))] for row in rows]
    # One line more would be an error too.
    next(scored, None)
    return lines
