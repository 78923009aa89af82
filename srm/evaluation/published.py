"""Ranking suites in the form that their authors publish: JudgeBench, PPE and RMB. A row gives any number of comparisons.

JudgeBench (arXiv 2410.12784): github.com/ScalerLab/JudgeBench, README.md, `run_judge.py` and `utils/metrics.py`. PPE (arXiv 2410.14872):
the cards of its data sets on the hub, and `BaseBenchmark.get_conflict_pair_iter` of its code, where pairs count responses from 0. RMB
(arXiv 2410.09893): github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark, `RMB_dataset/` and `eval/scripts/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srm.data.messages import check_prompt, response_text, whole_text
from srm.data.schema import Prompt, RawRow, RowProblem
from srm.errors import UserError

__all__ = ["PUBLISHED", "Ranked", "check_published", "form_of", "ranked"]

_PPE = "lmarena-ai/PPE-"
# Name of the suite: its data sets on the hub, each with its split.
PUBLISHED: dict[str, tuple[tuple[str, str], ...]] = {
    "judgebench": (("ScalerLab/JudgeBench", "gpt"),),
    "judgebench-claude": (("ScalerLab/JudgeBench", "claude"),),
    "ppe-human": ((f"{_PPE}Human-Preference-V1", "test"),),
    "ppe-correctness": tuple((f"{_PPE}{name}-Best-of-K", "train") for name in ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")),
}
_REPOSITORIES = {
    "rmb": ("github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark", "RMB_dataset"),
    "ragtruth": ("github.com/ParticleMedia/RAGTruth", "dataset"),
}
# The groups of JudgeBench's report, by how their sources begin.
_JUDGE_SECTIONS = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A prompt with a right response and wrong ones.

    Attributes:
        id: of the comparison.
        prompt: text or chat messages.
        right: the right response.
        wrong: at least one wrong one.
        section: what is reported.
        subset: a part of it.
    """

    id: str
    prompt: Prompt
    right: str
    wrong: tuple[str, ...]
    section: str
    subset: str


def check_published(source: str) -> None:
    """Refuse the name of a suite that its authors publish as a repository, not on the hub.

    Args:
        source: what the user calls a suite.

    Raises:
        UserError: it is such a name, and no file or folder here has it.
    """
    if source in _REPOSITORIES and not Path(source).exists():
        repository, folder = _REPOSITORIES[source]
        raise UserError(f"{source}: is not on the hub. Clone https://{repository} and give the path of its folder {folder}.")


def form_of(fields: Mapping[str, Any]) -> str | None:
    """The published form that a row's columns state, or None; a row with `chosen` and `rejected` is a pair, whatever else it has.

    Args:
        fields: the row's columns.
    """
    if "chosen" in fields and "rejected" in fields:
        return None
    return next((form for form, (columns, _) in _FORMS.items() if all(name in fields for name in columns)), None)


def ranked(form: str, raw: RawRow) -> list[Ranked]:
    """The comparisons of a row; none where it is a tie.

    Args:
        form: from `form_of`.
        raw: the row.

    Raises:
        RowProblem: a value that the form does not have.
    """
    return list(_FORMS[form][1](raw))


def _judgebench(raw: RawRow) -> Iterator[Ranked]:
    fields, labels = raw.fields, {"A>B": ("response_A", "response_B"), "B>A": ("response_B", "response_A")}
    if fields["label"] not in labels:
        raise RowProblem(f"`label` must be 'A>B' or 'B>A', got {fields['label']!r}")
    source = str(fields.get("source") or "all")
    section = next((name for name in _JUDGE_SECTIONS if source.startswith(name)), source)
    yield _ranked(_name(fields, "pair_id", raw), fields["question"], fields, labels[fields["label"]], section, source)


def _ppe_human(raw: RawRow) -> Iterator[Ranked]:
    fields, winner = raw.fields, str(raw.fields["winner"])
    winners = {"model_a": ("response_1", "response_2"), "model_b": ("response_2", "response_1")}
    if winner not in winners:
        if not winner.startswith("tie"):
            raise RowProblem(f"`winner` must be 'model_a', 'model_b' or a tie, got {winner!r}")
        return
    yield _ranked(_name(fields, "question_id", raw), fields["prompt"], fields, winners[winner], "human preference", "human preference")


def _ppe_correctness(raw: RawRow) -> Iterator[Ranked]:
    fields, scores = raw.fields, raw.fields["scores"]
    # The five benchmarks have the same columns, so their data sets tell them apart, or the names of files.
    section = raw.id.rpartition("-")[0].removeprefix("PPE-").removesuffix("-Best-of-K")
    for number, pair in enumerate(_pairs(fields["sampled_conflict_pairs"], scores)):
        first, second = sorted(pair, key=lambda index: -scores[index])
        if scores[first] == scores[second]:
            raise RowProblem(f"`sampled_conflict_pairs`: {list(pair)} are both {'right' if scores[first] else 'wrong'} in `scores`")
        names = (f"response_{first + 1}", f"response_{second + 1}")
        yield _ranked(f"{_name(fields, 'question_id', raw)}+{number}", fields["prompt"], fields, names, section, section)


def _pairs(pairs: Any, scores: Any) -> list[Sequence[int]]:
    if not isinstance(scores, (list, tuple)):
        raise RowProblem(f"`scores` must be a list, got {type(scores).__name__}")
    for pair in pairs:
        if len(pair) != 2 or not all(type(index) is int and 0 <= index < len(scores) for index in pair):
            raise RowProblem(f"`sampled_conflict_pairs` must hold pairs of numbers from 0 to {len(scores) - 1}, got {list(pair)!r}")
    return list(pairs)


def _rmb_pair(raw: RawRow) -> Iterator[Ranked]:
    yield _rmb(raw, "pair_uid", raw.fields["chosen"], [raw.fields["reject"]])


def _rmb_best_of(raw: RawRow) -> Iterator[Ranked]:
    yield _rmb(raw, "bon_uid", raw.fields["bon_best"], raw.fields["loser_list"])


def _rmb(raw: RawRow, id: str, right: Any, wrong: Any) -> Ranked:
    fields = raw.fields
    # `Pairwise_set/Helpfulness/Chat/Discussion`
    kind, *path = str(fields.get("category_path") or "all").split("/")
    section = " ".join([kind.removesuffix("_set"), *path[:1]])
    prompt = [{name: message[name] for name in ("role", "content")} for message in fields["conversation_input"]]
    answers = [response_text(answer["answer"], f"answer {number}") for number, answer in enumerate([right, *wrong], start=1)]
    return Ranked(
        id=f"{id.removesuffix('_uid')}-{_name(fields, id, raw)}",
        prompt=check_prompt(prompt),
        right=answers[0],
        wrong=tuple(answers[1:]),
        section=section,
        subset="/".join(path[1:]) or section,
    )


def _ranked(id: str, prompt: Any, fields: Mapping[str, Any], names: tuple[str, str], section: str, subset: str) -> Ranked:
    right, wrong = (response_text(fields.get(name), name) for name in names)
    return Ranked(id=id, prompt=check_prompt(prompt), right=right, wrong=(wrong,), section=section, subset=subset)


def _name(fields: Mapping[str, Any], column: str, raw: RawRow) -> str:
    return whole_text(str(fields.get(column) or raw.id), f"`{column}`")


# Name of the form: the columns by which it is known, and its reader.
_FORMS: dict[str, tuple[tuple[str, ...], Callable[[RawRow], Iterator[Ranked]]]] = {
    "judgebench": (("question", "response_A", "response_B", "label"), _judgebench),
    "ppe-correctness": (("prompt", "scores", "sampled_conflict_pairs"), _ppe_correctness),
    "ppe-human": (("prompt", "response_1", "response_2", "winner"), _ppe_human),
    "rmb-pair": (("conversation_input", "chosen", "reject"), _rmb_pair),
    "rmb-best-of": (("conversation_input", "bon_best", "loser_list"), _rmb_best_of),
}
