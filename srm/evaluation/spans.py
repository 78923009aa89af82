"""Sentence credit on responses whose bad spans people marked: do low sentence rewards find them?

`read_spans` reads rows `{"prompt", "response", "errors": [{"type", "start", "end"}]}`, `evaluate_spans` compares models with each other and
with `span_baselines`. A sentence is bad where it shares a printing character with an error. Numbers are means over responses that have
good and bad sentences, with intervals over prompts; a response-level model takes part with its values differenced at sentence ends, a
token-level one with its mean over each sentence, which is what their `score` returns. Credit given position (`srm.evaluation.position`) is
over the sentences of all responses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np

from srm.data.boundary import RowCheck
from srm.data.read import usable_rows
from srm.data.rows import parse_responses
from srm.data.schema import BadRow, Prompt, RawRow, RowProblem
from srm.data.sources import raw_rows
from srm.errors import UserError
from srm.evaluation.credit import CreditSummary, JudgedResponse, auc, credit_report, judge, lowest_is_bad
from srm.evaluation.intervals import Bootstrap, Interval, interval
from srm.evaluation.position import PlaceCredit, credit_given_position
from srm.evaluation.ragtruth import is_ragtruth, ragtruth_rows
from srm.evaluation.suites import SuiteRow, first_fields, spread_over
from srm.scoring.results import ScoredResponse

__all__ = [
    "SPAN_BASELINES",
    "SpanResult",
    "SpanRow",
    "average_precision",
    "credit_differences",
    "evaluate_spans",
    "has_spans",
    "read_spans",
    "span_baselines",
]

Measure = Literal["reward", "weighted_reward"]
_METRICS = ("auc", "average_precision", "hit_rate")


@dataclass(frozen=True, kw_only=True)
class SpanRow:
    """A response whose errors people marked.

    Attributes:
        id: the row's.
        prompt: text or chat messages.
        response: its text.
        errors: `{"start", "end", "kind"}` of each, in characters of the response.
        where: file and row, for messages.
    """

    id: str
    prompt: Prompt
    response: str
    errors: tuple[dict[str, Any], ...]
    where: str = field(default="", compare=False)

    def to_suite_row(self) -> SuiteRow:
        """For `score_suite` and `write_responses`."""
        return SuiteRow(
            id=self.id,
            prompt=self.prompt,
            responses=(self.response,),
            num_correct=1,
            section="all",
            subset="all",
            unit=self.unit,
            where=self.where,
        )

    @property
    def unit(self) -> str:
        """What is drawn as a whole in resampling: the prompt."""
        return json.dumps(self.prompt, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class SpanResult:
    """Sentence credit of one model or baseline. Of tied sentences each counts its part.

    Attributes:
        auc: chance that a bad sentence has a lower reward than a good one of the same response.
        average_precision: of bad sentences, lowest reward first, within responses.
        hit_rate: how often the lowest sentence is bad.
        at_place: AUC among sentences at the same place of other responses.
        num_responses: those with good and bad sentences.
        traces: of the three, for paired differences.
        pooled_auc: see `srm.evaluation.credit`; None for baselines.
        by_kind: see `srm.evaluation.credit`; None for baselines.
    """

    auc: Interval
    average_precision: Interval
    hit_rate: Interval
    at_place: PlaceCredit
    num_responses: int
    traces: dict[str, np.ndarray]
    pooled_auc: float | None = None
    by_kind: dict[str, CreditSummary] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        result: dict[str, Any] = {name: getattr(self, name).to_dict() for name in _METRICS}
        result |= {"given_position": self.at_place.to_dict(), "num_responses": self.num_responses}
        if self.by_kind is not None:
            result |= {"pooled_auc": self.pooled_auc, "by_kind": {kind: asdict(summary) for kind, summary in self.by_kind.items()}}
        return result


def has_spans(source: str, *, split: str = "train") -> bool:
    """Whether the first row of `source` has `response` and `errors`, or it is RAGTruth's folder.

    Args:
        source: a file, a folder, or a name on the hub.
        split: which split of a folder or a hub data set.

    Raises:
        UserError: there is no such source, or it is empty.
    """
    return is_ragtruth(source) or {"response", "errors"} <= first_fields(source, split=split).keys()


def read_spans(
    source: str,
    *,
    split: str = "train",
    max_rows: int | None = None,
    skip_bad_rows: bool = False,
    check: RowCheck | None = None,
) -> list[SpanRow]:
    """The marked responses in `source`.

    Args:
        source: a file, a folder, or a name on the hub.
        split: which split of a folder or a hub data set.
        max_rows: at most so many, spread evenly; all of them where None.
        skip_bad_rows: as in `srm.data.read_responses`.
        check: raises what else is wrong with a row, as in `srm.data.read.first_pass`.

    Raises:
        UserError: nothing there, or a row that cannot be used.
    """

    def parse(raw: RawRow) -> SpanRow:
        row = _parse(raw)
        if check is not None:
            check(row.prompt, [row.response])
        return row

    raw = ragtruth_rows(source) if is_ragtruth(source) else raw_rows(source, split=split)
    return spread_over(list(usable_rows(source, raw, parse, skip_bad_rows)), max_rows)


def _parse(row: RawRow) -> SpanRow:
    response, *others = parse_responses(row)
    if others:
        raise BadRow(row.where, RowProblem("marked errors belong to one `response`, and the row has several"))
    if not isinstance(response.response, str):
        raise BadRow(row.where, RowProblem("marked errors are places in a text, and `response` is several messages"))
    errors = row.fields.get("errors")
    if not isinstance(errors, (list, tuple)):
        raise BadRow(row.where, RowProblem(f"`errors` must be a list, got {type(errors).__name__}"))
    for number, error in enumerate(errors, start=1):
        whole = isinstance(error, dict) and "type" in error and all(type(error.get(name)) is int for name in ("start", "end"))
        if not whole or not 0 <= error["start"] < error["end"] <= len(response.response):
            raise BadRow(
                row.where,
                RowProblem(f'`errors`: number {number} must be {{"type", "start", "end"}} with characters of the response, got {error!r}'),
            )
    spans = tuple({"start": error["start"], "end": error["end"], "kind": str(error["type"])} for error in errors)
    return SpanRow(id=response.id, prompt=response.prompt, response=response.response, errors=spans, where=row.where)


def average_precision(response: JudgedResponse) -> float:
    """Precision at each bad sentence, lowest reward first, averaged over the bad ones: what a reader finds who checks them in that order.

    Sentences of equal reward are taken together, so each of them has the precision at the end of its group.
    """
    reward, bad = np.array(response.rewards), np.array([kind is not None for kind in response.kinds])
    found = [(bad[reward <= value].sum() / (reward <= value).sum()) for value in reward[bad]]
    return float(np.mean(found))


# The direction is part of the baseline: the other one has 1 - AUC.
SPAN_BASELINES: dict[str, Callable[[ScoredResponse], list[float]]] = {
    "first is bad": lambda scored: [float(index) for index in range(len(scored.sentences))],
    "last is bad": lambda scored: [-float(index) for index in range(len(scored.sentences))],
    "shortest is bad": lambda scored: [float(len(sentence.text.strip())) for sentence in scored.sentences],
    "longest is bad": lambda scored: [-float(len(sentence.text.strip())) for sentence in scored.sentences],
}


def evaluate_spans(
    rows: Sequence[SpanRow],
    scored: Mapping[str, Sequence[ScoredResponse]],
    *,
    measure: Measure = "reward",
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, SpanResult]:
    """Credit of each model, and of the baselines on the sentences of the first one.

    Args:
        rows: from `read_spans`.
        scored: by name of the model, its scores of `rows`, in order.
        measure: judge `r_i` or `w_i * r_i`.
        draws: of the bootstrap over prompts.
        seed: of the draws.

    Raises:
        UserError: a model that has no sentence rewards, or no response has good and bad sentences.
    """
    bootstrap = Bootstrap([row.unit for row in rows], draws=draws, seed=seed)
    results: dict[str, SpanResult] = {}
    for name, responses in scored.items():
        if all(len(response.sentences) < 2 for response in responses):
            raise UserError(f"{name}: gives one reward a response and none to sentences, so its credit cannot be measured. Leave it out.")
        judged = [judge(response, row.errors, measure=measure) for row, response in zip(rows, responses, strict=True)]
        if not any(response.good and response.bad for response in judged):
            raise UserError(f"{name}: no response has both good and bad sentences, so there is nothing to compare.")
        report = credit_report(judged)
        found = _result(judged, bootstrap)
        results[name] = SpanResult(**{**found, "pooled_auc": report.overall.pooled_auc, "by_kind": report.by_kind})
    first = next(iter(scored.values()))
    return results | span_baselines(rows, first, bootstrap)


def credit_differences(results: Mapping[str, SpanResult]) -> list[tuple[str, str, Interval]]:
    """Differences in AUC of every two models, first minus second, draw by draw. Baselines are left out."""
    models = {name: result for name, result in results.items() if result.by_kind is not None}
    return [(a, b, interval(models[a].traces["auc"] - models[b].traces["auc"])) for a, b in combinations(models, 2)]


def span_baselines(rows: Sequence[SpanRow], scored: Sequence[ScoredResponse], bootstrap: Bootstrap) -> dict[str, SpanResult]:
    """Random order (as expected of it, exactly), position and sentence length.

    Args:
        rows: from `read_spans`.
        scored: any model's scores of them, for their sentences.
        bootstrap: over the rows' prompts.
    """
    judged = [judge(response, row.errors) for row, response in zip(rows, scored, strict=True)]
    results = {"random": SpanResult(**_result(judged, bootstrap, at_random=True))}
    for name, rewards_of in SPAN_BASELINES.items():
        replaced = [
            JudgedResponse(rewards=tuple(rewards_of(whole)), kinds=response.kinds) for response, whole in zip(judged, scored, strict=True)
        ]
        results[name] = SpanResult(**_result(replaced, bootstrap))
    return results


def _at_random(response: JudgedResponse) -> np.ndarray:
    """What the three numbers are on average over all orders of the sentences."""
    if not response.good or not response.bad:
        return np.full(len(_METRICS), np.nan)
    num, num_bad = len(response.kinds), len(response.bad)
    # Where a bad sentence is k-th, each of the k - 1 before it is another bad one with probability (bad - 1) / (all - 1).
    precision = [(1 + (k - 1) * (num_bad - 1) / (num - 1)) / k for k in range(1, num + 1)]
    return np.array([0.5, np.mean(precision), num_bad / num])


def _measures(response: JudgedResponse) -> np.ndarray:
    """The three numbers of one response; NaN where it has nothing to compare."""
    if not response.good or not response.bad:
        return np.full(len(_METRICS), np.nan)
    return np.array([auc(response.good, response.bad), average_precision(response), lowest_is_bad(response)])


def _result(judged: Sequence[JudgedResponse], bootstrap: Bootstrap, *, at_random: bool = False) -> dict[str, Any]:
    values_RM = np.stack([_at_random(response) if at_random else _measures(response) for response in judged])
    traces = {name: bootstrap.mean(values_RM[:, index]) for index, name in enumerate(_METRICS)}
    rewards = [response.rewards for response in judged]
    bad = [[kind is not None for kind in response.kinds] for response in judged]
    at_place = credit_given_position(rewards, bad, bootstrap, at_random=at_random)
    usable = int((~np.isnan(values_RM[:, 0])).sum())
    return {**{name: interval(trace) for name, trace in traces.items()}, "at_place": at_place, "num_responses": usable, "traces": traces}
