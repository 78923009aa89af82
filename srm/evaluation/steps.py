"""Solutions in steps, some of them marked wrong: ProcessBench and PRMBench, and what a model says of each step.

ProcessBench (arXiv 2412.06559): github.com/QwenLM/ProcessBench, README.md and `code/run_eval.py`; `label` is the first wrong step, and what
follows it is not judged. PRMBench (arXiv 2501.03124): github.com/ssmisya/PRMBench, `docs/data_format.md` and
`mr_eval/tasks/prmtest_classified/task.py`; every step is judged, `error_steps` count from 1.

Steps are joined by a blank line and scored with the model's own sentences. A step gets the rewards of the sentences that end in it: their
sum, which is what the step changed in the model's value, whichever sentences it has.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from srm.data.boundary import RowCheck
from srm.data.messages import check_prompt, response_text
from srm.data.read import usable_rows
from srm.data.rows import row_id
from srm.data.schema import BadRow, Prompt, RawRow, RowProblem
from srm.data.sources import raw_rows
from srm.errors import UserError
from srm.evaluation.suites import SuiteRow, first_fields, spread_over
from srm.scoring.results import ScoredResponse, ScoredSentence

__all__ = ["STEP_SUITES", "StepRow", "StepSuite", "has_steps", "open_steps", "read_steps", "steps_of"]

StepRule = Literal["first_error", "every_step"]
# Name of the suite: data set on the hub, its splits, and its form.
STEP_SUITES: dict[str, tuple[str, str, StepRule]] = {
    "processbench": ("Qwen/ProcessBench", "gsm8k+math+olympiadbench+omnimath", "first_error"),
    "prmbench": ("hitsmy/PRMBench_Preview", "train", "every_step"),
}
_COLUMNS: dict[StepRule, tuple[str, ...]] = {
    "first_error": ("problem", "steps", "label"),
    "every_step": ("modified_question", "modified_process", "error_steps"),
}
_BETWEEN = "\n\n"


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """A solution in steps.

    Attributes:
        id: the row's.
        prompt: the problem.
        steps: without white space around them; one may be empty.
        wrong: whether each is wrong; None where nobody has judged it.
        group: ProcessBench's split or PRMBench's class.
        unit: what is drawn as a whole in resampling: the problem, in PRMBench before it was modified.
        where: file and row, for messages.
    """

    id: str
    prompt: Prompt
    steps: tuple[str, ...]
    wrong: tuple[bool | None, ...]
    group: str
    unit: str
    where: str = field(default="", compare=False)

    @property
    def response(self) -> str:
        """The whole solution, as it is scored."""
        return _BETWEEN.join(self.steps)

    @property
    def starts(self) -> list[int]:
        """Where each step begins in the response."""
        return list(accumulate((len(step) + len(_BETWEEN) for step in self.steps[:-1]), initial=0))

    @property
    def first_wrong(self) -> int:
        """The first wrong step, from 0; -1 where none is."""
        return next((index for index, wrong in enumerate(self.wrong) if wrong), -1)

    @property
    def errors(self) -> tuple[dict[str, Any], ...]:
        """The wrong steps as marked errors."""
        places = zip(self.starts, self.steps, self.wrong, strict=True)
        return tuple({"start": start, "end": start + len(step), "kind": self.group} for start, step, wrong in places if wrong and step)

    def to_suite_row(self) -> SuiteRow:
        """For `score_suite` and `write_responses`."""
        return SuiteRow(
            id=self.id,
            prompt=self.prompt,
            responses=(self.response,),
            num_correct=1,
            section=self.group,
            subset=self.group,
            unit=self.unit,
            where=self.where,
        )


@dataclass(frozen=True, kw_only=True)
class StepSuite:
    """Solutions, and what is asked of their steps.

    Attributes:
        name: for tables.
        rule: `first_error` (ProcessBench) or `every_step` (PRMBench).
        rows: in the order of the source.
    """

    name: str
    rule: StepRule
    rows: tuple[StepRow, ...]


def has_steps(source: str, *, split: str = "train") -> bool:
    """Whether `source` is one of the suites with steps, or its first row has their columns.

    Args:
        source: a suite's name, a file, a folder, or a name on the hub.
        split: which split of a folder or a hub data set.
    """
    return source in STEP_SUITES or _rule_of(first_fields(source, split=split)) is not None


def read_steps(
    source: str,
    *,
    split: str = "train",
    max_rows: int | None = None,
    skip_bad_rows: bool = False,
    check: RowCheck | None = None,
) -> StepSuite:
    """The solutions in `source`.

    Args:
        source: `processbench` or `prmbench`, from the hub; or a file, a folder or another hub data set with rows in the form of one.
        split: of a folder or another hub data set.
        max_rows: at most so many, spread evenly.
        skip_bad_rows: drop and list rows that cannot be used.
        check: raises what else is wrong with a row.

    Raises:
        UserError: nothing there, or a row that cannot be used.
    """
    name, split, rule = STEP_SUITES.get(source) or (source, split, _rule_of(first_fields(source, split=split)))
    if rule is None:
        forms = " or ".join(", ".join(f"`{column}`" for column in columns) for columns in _COLUMNS.values())
        raise UserError(f"{source}: its first row has no steps. ProcessBench and PRMBench have {forms}.")
    seen: set[str] = set()

    def parse(raw: RawRow) -> StepRow | None:
        try:
            row = _first_error_row(raw) if rule == "first_error" else _every_step_row(raw)
        except RowProblem as problem:
            raise BadRow(raw.where, problem) from None
        # PRMBench repeats some rows, and its own code counts the first of them.
        if rule == "every_step" and row.id in seen:
            return None
        seen.add(row.id)
        if check is not None:
            check(row.prompt, [row.response])
        return replace(row, where=raw.where)

    rows = [row for row in usable_rows(source, raw_rows(name, split=split), parse, skip_bad_rows) if row is not None]
    title = source if source in STEP_SUITES else Path(source).name.split(".")[0]
    return StepSuite(name=title, rule=rule, rows=tuple(spread_over(rows, max_rows)))


def steps_of(row: StepRow, scored: ScoredResponse, *, token_level: bool = False) -> ScoredResponse:
    """The response with its steps in place of its sentences.

    A step's reward is the sum of `r_i` over the sentences whose last character is in it; the differences telescope to what the step changed
    in the value. At token level it is the mean of the values over the step's tokens. A step in which no sentence ends gets 0.

    Args:
        row: the solution.
        scored: a model's score of `row.response`.
        token_level: whether the model is token-level, whose sentence rewards are means.

    Returns:
        A sentence a step, up to the last step that was read: what is behind a cut has no reward.
    """
    starts, parts = row.starts, _sentences_of(row, scored)
    steps = zip(starts, row.steps, parts, strict=False)
    sentences = tuple(_step(start, text, own, token_level) for start, text, own in steps)
    return ScoredResponse(reward=scored.reward, prompt_reward=scored.prompt_reward, prompt_weight=scored.prompt_weight, sentences=sentences)


def open_steps(row: StepRow, scored: ScoredResponse) -> int:
    """How many of the steps that were read have text and no sentence that ends in it.

    Args:
        row: the solution.
        scored: a model's score of `row.response`.
    """
    return sum(bool(text) and not own for text, own in zip(row.steps, _sentences_of(row, scored), strict=False))


def _sentences_of(row: StepRow, scored: ScoredResponse) -> list[list[ScoredSentence]]:
    """The sentences that end in each step, up to the last step that has one."""
    starts = row.starts
    parts: list[list[ScoredSentence]] = [[] for _ in row.steps]
    for sentence in scored.sentences:
        last = sentence.start + max(len(sentence.text.rstrip()), 1) - 1
        parts[bisect_right(starts, last) - 1].append(sentence)
    return parts[: max((index for index, own in enumerate(parts) if own), default=-1) + 1]


def _step(start: int, text: str, own: Sequence[ScoredSentence], token_level: bool) -> ScoredSentence:
    weight, weighted = sum(sentence.weight for sentence in own), sum(sentence.weighted_reward for sentence in own)
    # A sentence's weight at token level is its share of the tokens.
    reward = weighted / weight if token_level and own else sum(sentence.reward for sentence in own)
    return ScoredSentence(text=text, start=start, end=start + len(text), reward=reward, weight=weight, weighted_reward=weighted)


def _rule_of(fields: Mapping[str, Any]) -> StepRule | None:
    return next((rule for rule, columns in _COLUMNS.items() if all(name in fields for name in columns)), None)


def _first_error_row(raw: RawRow) -> StepRow:
    fields = _checked(raw, "first_error")
    steps, label, name = _texts(fields["steps"], "steps"), fields["label"], row_id(fields, raw.id)
    if type(label) is not int or not -1 <= label < len(steps):
        raise RowProblem(f"`label` must be -1 or the number of a step, 0 to {len(steps) - 1}, got {label!r}")
    wrong = [None if -1 < label < index else index == label for index in range(len(steps))]
    # An id is `gsm8k-0`: the split, and a number.
    split, dash, number = name.rpartition("-")
    group = split if dash and number.isdecimal() else "all"
    return _row(name, fields["problem"], steps, wrong, group, fields["problem"])


def _every_step_row(raw: RawRow) -> StepRow:
    fields = _checked(raw, "every_step")
    steps, marked = _texts(fields["modified_process"], "modified_process"), fields["error_steps"]
    if not isinstance(marked, (list, tuple)) or not all(type(number) is int for number in marked):
        raise RowProblem(f"`error_steps` must be a list of numbers of steps, from 1, got {marked!r}")
    group = str(fields.get("classification") or "all")
    # Numbers behind the last step are in the published rows, and its own code passes over them.
    wrong = [index + 1 in marked for index in range(len(steps))]
    name = f"{group}_{fields.get('idx') or raw.id}"
    return _row(name, fields["modified_question"], steps, wrong, group, fields.get("original_question") or fields["modified_question"])


def _checked(raw: RawRow, rule: StepRule) -> Mapping[str, Any]:
    missing = [name for name in _COLUMNS[rule] if name not in raw.fields]
    if missing:
        raise RowProblem(f"there is no `{missing[0]}` (columns found: {', '.join(raw.fields) or 'none'})")
    return raw.fields


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(text, str) for text in value):
        raise RowProblem(f"`{name}` must be a list of texts, one a step, got {value!r}")
    return tuple(text.strip() for text in value)


def _row(id: str, problem: Any, steps: tuple[str, ...], wrong: Sequence[bool | None], group: str, unit: Any) -> StepRow:
    row = StepRow(id=id, prompt=check_prompt(problem), steps=steps, wrong=tuple(wrong), group=group, unit=json.dumps(unit))
    response_text(row.response, "the steps")
    return row
