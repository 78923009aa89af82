"""Suites of preference data: rows whose first responses are right and whose others are wrong, in sections with subsets.

`read_suite` takes a pairs file (with or without `section` and `subset`), one of the hub's suites by name, or a file in the form of one of
them. The form of the rows decides the rule of scoring:

- `pairs`: `chosen` and `rejected`, in any form of docs/data.md. A pair is won if chosen > rejected, strictly.
- `best_of`: RewardBench 2, lists of strings in `chosen` and `rejected`, with `num_correct`.
- `styles`: RM-Bench, three strings in `chosen` and three in `rejected`, the same three styles.

JudgeBench, PPE and RMB are pairs, or one right response and several wrong ones, in forms of their own (`srm.evaluation.published`).
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from srm.data.boundary import RowCheck
from srm.data.messages import check_prompt, response_text
from srm.data.read import usable_rows
from srm.data.responses import own_prompt
from srm.data.rows import parse_parts, row_id
from srm.data.schema import BadRow, Prompt, RawRow, Response, RowProblem
from srm.data.settings import with_settings
from srm.data.sources import raw_rows
from srm.errors import UserError
from srm.evaluation.published import PUBLISHED, Ranked, check_published, form_of, ranked
from srm.evaluation.rewardbench import HUB_SUITES, REWARD_BENCH_SECTIONS

logger = logging.getLogger(__name__)

__all__ = ["SUITES", "TIES", "Rule", "Suite", "SuiteRow", "first_fields", "read_suite", "spread_over"]

# Name of the suite: its data sets on the hub, each with its split.
SUITES: dict[str, tuple[tuple[str, str], ...]] = {**{name: (place,) for name, place in HUB_SUITES.items()}, **PUBLISHED}
Rule = Literal["pairs", "best_of", "styles"]
# The subset of RewardBench 2 whose questions have several right answers.
TIES = "Ties"
# What a suite without sections calls its only one.
WHOLE = "all"


@dataclass(frozen=True, kw_only=True)
class SuiteRow:
    """One prompt with its responses.

    Attributes:
        id: the row's.
        prompt: text or chat messages; as in `srm.data.Comparison`, no message where the responses share none.
        responses: the right ones first.
        num_correct: how many of them are right.
        section: what its subset belongs to.
        subset: what it is counted under.
        unit: what is drawn as a whole in resampling: the prompt, or a question of the Ties subset in all its forms.
        where: file and row, for messages.
    """

    id: str
    prompt: Prompt
    responses: tuple[Response, ...]
    num_correct: int
    section: str
    subset: str
    unit: str
    where: str = field(default="", compare=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the responses, as in the ids of `srm-score`."""
        if len(self.responses) == 2:
            return ("chosen", "rejected")
        return tuple(
            f"chosen-{i + 1}" if i < self.num_correct else f"rejected-{i + 1 - self.num_correct}" for i in range(len(self.responses))
        )


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Rows and how they add up.

    Attributes:
        name: for tables.
        rule: when a row is won.
        rows: in the order of the source.
        weights: section, its subsets, and the weight of each in the section's mean.
        overall: what the suite's score is, the plain mean of its sections, or the mean over its rows.
        num_ties: rows of the source that have no right response and are left out.
    """

    name: str
    rule: Rule
    rows: tuple[SuiteRow, ...]
    weights: dict[str, dict[str, float]]
    overall: Literal["sections", "rows"] = "sections"
    num_ties: int = 0

    @property
    def texts(self) -> tuple[list[Prompt], list[list[Response]]]:
        """Prompts and responses, as `SentenceRewardModel.score` takes them."""
        return [row.prompt for row in self.rows], [list(row.responses) for row in self.rows]


def read_suite(
    source: str,
    *,
    split: str = "train",
    max_rows: int | None = None,
    skip_bad_rows: bool = False,
    check: RowCheck | None = None,
) -> Suite:
    """The suite that `source` names.

    Args:
        source: one of `SUITES`, from the hub; or what `srm.data.read_comparisons` reads, or rows in the form of one of them.
        split: of a folder or another hub data set.
        max_rows: at most so many rows, spread evenly over the suite, so that no section is missed.
        skip_bad_rows: drop and list rows that cannot be used.
        check: raises what else is wrong with a row, as in `srm.data.read.first_pass`.

    Raises:
        UserError: nothing there, a row that cannot be used, or rows of several forms.
    """
    check_published(source)

    def parse(raw: RawRow) -> list[_Parsed]:
        parsed = [replace(one, row=replace(one.row, where=raw.where)) for one in _parse(raw)]
        if check is not None:
            for one in parsed:
                check(one.row.prompt, one.row.responses)
        return parsed

    places = SUITES.get(source, ((source, split),))
    raw = chain.from_iterable(raw_rows(name, split=part) for name, part in places)
    found = list(usable_rows(source, raw, parse, skip_bad_rows))
    num_ties = sum(not comparisons for comparisons in found)
    if num_ties:
        logger.warning("%s: %d of %d rows are ties, which have no right response, and are left out.", source, num_ties, len(found))
    # The text is needed to score, but of a long file not all of it.
    parsed = spread_over(list(chain.from_iterable(found)), max_rows)
    if not parsed:
        raise UserError(f"{source}: all {num_ties} rows are ties, so there is nothing to rank. Give other rows.")
    rules = sorted({one.rule for one in parsed})
    if len(rules) > 1:
        raise UserError(f"{source}: has rows of several forms ({', '.join(rules)}), which are scored differently. Split the file.")
    _check_forms([one.row for one in parsed if one.rule == "best_of"], source)
    # JudgeBench's overall number counts each pair once.
    overall: Literal["sections", "rows"] = "rows" if all(one.form == "judgebench" for one in parsed) else "sections"
    rows = tuple(one.row for one in parsed)
    suite = Suite(name=_title(source), rule=rules[0], rows=rows, weights={}, overall=overall, num_ties=num_ties)
    return _in_published_sections(suite) if source == "rewardbench" else replace(suite, weights=_counted(suite.rows))


def first_fields(source: str, *, split: str = "train") -> Mapping[str, Any]:
    """The columns of the first row of `source`, which say what form its rows have; none where that row cannot be read.

    Args:
        source: a file, a folder, or a name on the hub.
        split: which split of a folder or a hub data set.

    Raises:
        UserError: there is no such source, or it is empty.
    """
    first = next(iter(raw_rows(source, split=split)))
    return first.fields if isinstance(first, RawRow) else {}


def spread_over(rows: Sequence[Any], count: int | None) -> list[Any]:
    """Rows in order, evenly spread.

    Args:
        rows: to choose from.
        count: how many; all of them where None or where there are no more.
    """
    if count is None or count >= len(rows):
        return list(rows)
    if count < 1:
        raise UserError(f"--max_pairs must be at least 1, got {count}.")
    return [rows[index] for index in np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _check_forms(rows: Sequence[SuiteRow], source: str) -> None:
    """The Ties subset looks the forms of a question up by id: of two of one id, one would not be counted."""
    seen = Counter(row.id for row in rows if row.subset == TIES)
    twice = [id for id, count in seen.items() if count > 1]
    if twice:
        raise UserError(f"{source}: two rows of the Ties subset have the id {twice[0]!r}, which must be unique. Delete one of them.")


def _title(source: str) -> str:
    return source if source in SUITES else Path(source).name.split(".")[0]


@dataclass(frozen=True, kw_only=True)
class _Parsed:
    """A comparison, how it is scored, and the published form it was in, where it has one of its own."""

    rule: Rule
    row: SuiteRow
    form: str | None = None


def _parse(row: RawRow) -> list[_Parsed]:
    fields = row.fields
    try:
        if (form := form_of(fields)) is not None:
            return [_Parsed(rule="pairs", row=_ranked_row(one), form=form) for one in ranked(form, row)]
        if _is_texts(fields.get("chosen")) and _is_texts(fields.get("rejected")):
            return [_Parsed(rule="best_of" if "num_correct" in fields else "styles", row=_parse_lists(row))]
    except RowProblem as problem:
        raise BadRow(row.where, problem) from None
    # Not `parse_row`, which is for training: a pair of identical responses cannot be won, but it counts.
    own_id, labels, prompt, responses, _ = parse_parts(row)
    if list(labels) != ["chosen", "rejected"]:
        raise BadRow(row.where, RowProblem("a suite needs `chosen` and `rejected`", "Turn rankings into pairs"))
    return [_Parsed(rule="pairs", row=_row(own_id, prompt, responses, 1, fields))]


def _ranked_row(one: Ranked) -> SuiteRow:
    return _row(one.id, one.prompt, (one.right, *one.wrong), 1, {"section": one.section, "subset": one.subset})


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(text, str) for text in value)


def _parse_lists(row: RawRow) -> SuiteRow:
    fields = row.fields
    chosen, rejected = ([response_text(text, f"{side}[{i}]") for i, text in enumerate(fields[side])] for side in ("chosen", "rejected"))
    prompt, name = with_settings(check_prompt(fields.get("prompt")), fields), row_id(fields, row.id)
    responses = tuple(chosen + rejected)
    if "num_correct" in fields:
        if fields["num_correct"] != len(chosen):
            raise RowProblem(f"`num_correct` is {fields['num_correct']!r}, and `chosen` has {len(chosen)}")
        if fields.get("subset") == TIES and not re.fullmatch("(ref|tied):[^:]+", name):
            raise RowProblem(f"a row of the Ties subset must have an id `ref:N` or `tied:N`, got {name!r}")
        return _row(name, prompt, responses, len(chosen), fields)
    if (len(chosen), len(rejected)) != (3, 3):
        raise RowProblem(
            f"`chosen` and `rejected` are lists of {len(chosen)} and {len(rejected)} texts; RM-Bench has three and three, RewardBench 2 "
            "has `num_correct`"
        )
    return _row(name, prompt, responses, 3, {"section": _domain(fields), "subset": fields.get("domain"), **fields})


def _domain(fields: Any) -> str:
    """RM-Bench counts safety-refuse and safety-response as one domain."""
    return str(fields.get("domain") or WHOLE).split("-")[0]


def _row(id: str, prompt: Prompt, responses: tuple[Response, ...], num_correct: int, fields: Any) -> SuiteRow:
    subset = str(fields.get("subset") or WHOLE)
    # RewardBench 2 has no sections: its six subsets stand for themselves.
    section = str(fields.get("section") or (subset if "num_correct" in fields else WHOLE))
    unit = (
        f"{TIES} {id.split(':')[1]}"
        if subset == TIES and "num_correct" in fields
        else json.dumps(_asked(prompt, responses), sort_keys=True)
    )
    return SuiteRow(id=id, prompt=prompt, responses=responses, num_correct=num_correct, section=section, subset=subset, unit=unit)


def _asked(prompt: Prompt, responses: Sequence[Response]) -> Any:
    """What a row asks: its prompt, or where its responses answer different messages, what the first one answers."""
    return prompt if len(prompt) else own_prompt(prompt, responses[0])[0]


def _counted(rows: Sequence[SuiteRow]) -> dict[str, dict[str, float]]:
    """Each subset weighs its rows, so that a section is the plain mean over them."""
    weights: dict[str, dict[str, float]] = {}
    for (section, subset), count in Counter((row.section, row.subset) for row in rows).items():
        weights.setdefault(section, {})[subset] = count
    return weights


def _in_published_sections(suite: Suite) -> Suite:
    section_of = {subset: section for section, subsets in REWARD_BENCH_SECTIONS.items() for subset in subsets}
    unknown = sorted({row.subset for row in suite.rows} - section_of.keys())
    if unknown:
        raise UserError(f"rewardbench: the data have subsets that RewardBench does not know: {', '.join(unknown)}. Give them as a file.")
    rows = tuple(replace(row, section=section_of[row.subset]) for row in suite.rows)
    present = {row.subset for row in rows}
    weights = {
        section: {subset: weight for subset, weight in subsets.items() if subset in present}
        for section, subsets in REWARD_BENCH_SECTIONS.items()
    }
    return replace(suite, rows=rows, weights={section: subsets for section, subsets in weights.items() if subsets})
