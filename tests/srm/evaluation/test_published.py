"""JudgeBench, PPE and RMB, in rows written by hand in their published forms.

The readers and scores were also run on the published rows themselves: JudgeBench's 350 pairs of GPT-4o, where sections and the overall
number equal those of its `utils/metrics.py`, and the 18,329 comparisons that a copy of RMB's repository has.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srm.errors import UserError
from srm.evaluation.intervals import Bootstrap
from srm.evaluation.sections import suite_scores
from srm.evaluation.suites import SUITES, read_suite

Hub = Callable[..., None]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def judge_row(number: int, source: str, label: str) -> dict[str, Any]:
    answers = {"response_A": f"A{number}.", "response_B": f"B{number}."}
    return {"pair_id": f"pair-{number}", "original_id": "7", "source": source, "question": "Why?", "response_model": "m", **answers} | {
        "label": label
    }


def correctness_row(number: int, scores: list[bool], pairs: list[list[int]]) -> dict[str, Any]:
    responses = {f"response_{i + 1}": f"Answer {i} of {number}." for i in range(len(scores))}
    row = {"question_id": f"q{number}", "model_name": "m", "prompt": f"Question {number}?", "scores": scores, "mean_score": 0.5}
    return {**row, **responses, "conflict_pairs": pairs, "sampled_conflict_pairs": pairs}


def rmb_row(path: str, **answers: Any) -> dict[str, Any]:
    talk = [
        {"role": "user", "content": "Hi", "language": "English"},
        {"role": "assistant", "content": "Hello.", "language": "English"},
        {"role": "user", "content": "Why?", "language": "English"},
    ]
    return {"conversation_input": talk, "category_path": path, **answers}


def test_judge_bench(tmp_path: Path) -> None:
    """Two of mmlu-pro, one of livecodebench: sections 1/2 and 1, and 2/3 overall, which counts each pair once."""
    rows = [
        judge_row(0, "mmlu-pro-law", "A>B"),
        judge_row(1, "mmlu-pro-computer science", "B>A"),
        judge_row(2, "livecodebench", "B>A"),
    ]
    suite = read_suite(write(tmp_path / "judge.jsonl", *rows))
    assert (suite.rule, suite.overall) == ("pairs", "rows")
    assert [(row.id, row.responses) for row in suite.rows] == [
        ("pair-0", ("A0.", "B0.")),
        ("pair-1", ("B1.", "A1.")),
        ("pair-2", ("B2.", "A2.")),
    ]
    assert suite.weights == {"mmlu-pro": {"mmlu-pro-law": 1, "mmlu-pro-computer science": 1}, "livecodebench": {"livecodebench": 1}}
    # A tie is lost, as where JudgeBench asks in both orders.
    scores = suite_scores(suite, [[1.0, 0.0], [1.0, 1.0], [2.0, 1.0]], Bootstrap([row.unit for row in suite.rows], draws=5))
    assert {name: trace[0] for name, trace in scores.sections.items()} == {"mmlu-pro": 0.5, "livecodebench": 1.0}
    assert scores.average[0] == pytest.approx(2 / 3)
    assert scores.row_average[0] == 0.75


def test_judge_bench_from_the_hub(data_hub: Hub) -> None:
    data_hub("ScalerLab/JudgeBench", "claude", [judge_row(0, "livebench-math", "A>B")])
    suite = read_suite("judgebench-claude")
    assert (suite.name, list(suite.weights)) == ("judgebench-claude", ["livebench-math"])


def test_ppe_human_preference_leaves_ties_out(data_hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    winners = ["model_a", "model_b", "tie", "tie (bothbad)"]
    rows = [
        {
            "question_id": f"q{i}",
            "model_a": "m",
            "model_b": "n",
            "winner": winner,
            "prompt": "Why?",
            "response_1": "One.",
            "response_2": "Two.",
        }
        for i, winner in enumerate(winners)
    ]
    data_hub("lmarena-ai/PPE-Human-Preference-V1", "test", rows)
    with caplog.at_level(logging.WARNING):
        suite = read_suite("ppe-human")
    assert [row.responses for row in suite.rows] == [("One.", "Two."), ("Two.", "One.")]
    assert suite.num_ties == 2
    assert "ppe-human: 2 of 4 rows are ties, which have no right response, and are left out." in caplog.text


def test_only_ties(tmp_path: Path) -> None:
    row = {"winner": "tie", "prompt": "Why?", "response_1": "One.", "response_2": "Two."}
    with pytest.raises(UserError, match="all 1 rows are ties"):
        read_suite(write(tmp_path / "ties.jsonl", row))


def test_ppe_correctness_has_a_section_a_benchmark(tmp_path: Path) -> None:
    """Responses of a pair count from 0, and the right one is whichever `scores` says."""
    (tmp_path / "suite").mkdir()
    write(tmp_path / "suite" / "math.jsonl", correctness_row(0, [True, False, True], [[0, 1], [1, 2]]))
    write(tmp_path / "suite" / "gpqa.jsonl", correctness_row(1, [False, True], [[0, 1]]))
    suite = read_suite(str(tmp_path / "suite"))
    assert suite.weights == {"gpqa": {"gpqa": 1}, "math": {"math": 2}}
    assert [(row.id, row.responses) for row in suite.rows] == [
        ("q1+0", ("Answer 1 of 1.", "Answer 0 of 1.")),
        ("q0+0", ("Answer 0 of 0.", "Answer 1 of 0.")),
        ("q0+1", ("Answer 2 of 0.", "Answer 1 of 0.")),
    ]
    assert suite.overall == "sections"


def test_ppe_correctness_from_the_hub(data_hub: Hub) -> None:
    for number, (name, split) in enumerate(SUITES["ppe-correctness"]):
        data_hub(name, split, [correctness_row(number, [True, False], [[0, 1]])])
    assert list(read_suite("ppe-correctness").weights) == ["MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval"]


def test_rmb(tmp_path: Path) -> None:
    """Pairs and best-of-N sets, from files as its repository has them: a list in a folder a scenario."""
    answers = [{"llm_name": "m", "answer": text} for text in ("Best.", "Good.", "Bad.")]
    pair = rmb_row("Pairwise_set/Helpfulness/Chat/Discussion", pair_uid="7", chosen=answers[0], reject=answers[2])
    best = rmb_row("BoN_set/Harmlessness/S1", bon_uid="7", bon_best=answers[0], loser_list=answers[1:])
    for place, row in (("Pairwise_set/Helpfulness/Chat/Discussion.json", pair), ("BoN_set/Harmlessness/S1.json", best)):
        file = tmp_path / "RMB_dataset" / place
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps([row]))
    suite = read_suite(str(tmp_path / "RMB_dataset"))
    assert suite.weights == {"BoN Harmlessness": {"S1": 1}, "Pairwise Helpfulness": {"Chat/Discussion": 1}}
    bon, two = suite.rows
    assert (bon.id, bon.responses, bon.num_correct) == ("bon-7", ("Best.", "Good.", "Bad."), 1)
    assert (two.id, two.responses) == ("pair-7", ("Best.", "Bad."))
    assert two.prompt == [{key: message[key] for key in ("role", "content")} for message in pair["conversation_input"]]
    # The best must be above every loser.
    scores = suite_scores(suite, [[1.0, 0.0, 1.0], [1.0, 0.0]], Bootstrap([row.unit for row in suite.rows], draws=5))
    assert {name: trace[0] for name, trace in scores.sections.items()} == {"BoN Harmlessness": 0.0, "Pairwise Helpfulness": 1.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (judge_row(0, "mmlu-pro-law", "A=B"), "`label` must be 'A>B' or 'B>A', got 'A=B'"),
        (
            {"winner": "both", "prompt": "Why?", "response_1": "a", "response_2": "b"},
            "`winner` must be 'model_a', 'model_b' or a tie, got 'both'",
        ),
        (correctness_row(0, [True, False], [[0, 2]]), r"`sampled_conflict_pairs` must hold pairs of numbers from 0 to 1, got \[0, 2\]"),
        (correctness_row(0, [True, True], [[0, 1]]), r"`sampled_conflict_pairs`: \[0, 1\] are both right in `scores`"),
        (
            rmb_row("Pairwise_set/Harmlessness/S5", pair_uid="1", chosen={"answer": "a"}, reject={"answer": ""}),
            "`answer 2` is empty",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_suite(write(tmp_path / "rows.jsonl", row))
    assert "rows.jsonl line 1" in str(error.value)


def test_a_pair_is_a_pair_whatever_else_its_row_has(tmp_path: Path) -> None:
    row = {**judge_row(0, "mmlu-pro-law", "A>B"), "prompt": "Who?", "chosen": "Me.", "rejected": "You."}
    assert read_suite(write(tmp_path / "pairs.jsonl", row)).rows[0].responses == ("Me.", "You.")


def test_suites_that_are_not_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"rmb: is not on the hub\. Clone https://github\.com/Zhou-Zoey/RMB-Reward-Model-Benchmark and"):
        read_suite("rmb")
