"""What becomes of the rows of a suite, from files and from a hub on this machine that has a few rows of the same fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srm.errors import UserError
from srm.evaluation.suites import read_suite, spread_over

Hub = Callable[..., None]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_pairs_with_sections(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "section": "Chat", "subset": "one", "prompt": "Hi", "chosen": "Yes.", "rejected": "No."},
        {"id": "b", "section": "Chat", "subset": "two", "prompt": "Hi", "chosen": "Yes.", "rejected": "Never."},
        {
            "id": "c",
            "section": "Code",
            "subset": "three",
            "prompt": [{"role": "user", "content": "Hi"}],
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": "No.",
        },
    ]
    suite = read_suite(write(tmp_path / "suite.jsonl", rows))
    assert (suite.name, suite.rule) == ("suite", "pairs")
    assert suite.weights == {"Chat": {"one": 1, "two": 1}, "Code": {"three": 1}}
    assert [(row.id, row.responses, row.num_correct) for row in suite.rows] == [
        ("a", ("Yes.", "No."), 1),
        ("b", ("Yes.", "Never."), 1),
        ("c", ("Yes.", "No."), 1),
    ]
    units = [row.unit for row in suite.rows]
    assert units[0] == units[1]
    assert units[0] != units[2]


def test_identical_responses_count(tmp_path: Path) -> None:
    """A benchmark may have such a pair; it can only be lost."""
    rows = [{"prompt": "Hi", "chosen": "Yes.", "rejected": "Yes."}]
    assert read_suite(write(tmp_path / "pairs.jsonl", rows)).rows[0].responses == ("Yes.", "Yes.")


def test_pairs_without_sections_are_one(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}]
    assert read_suite(write(tmp_path / "pairs.jsonl", rows)).weights == {"all": {"all": 1}}


def test_rewardbench_has_its_published_sections(data_hub: Hub) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_model": "m", "rejected_model": "m", "subset": subset, "id": number}
        for number, subset in enumerate(["math-prm", "hep-go", "alpacaeval-easy"])
    ]
    data_hub("allenai/reward-bench", "filtered", rows)
    suite = read_suite("rewardbench")
    assert suite.weights == {"Chat": {"alpacaeval-easy": 100}, "Reasoning": {"math-prm": 984, "hep-go": 164}}
    assert [row.section for row in suite.rows] == ["Reasoning", "Reasoning", "Chat"]
    assert suite.rule == "pairs"


def test_rewardbench_with_a_subset_it_does_not_know(data_hub: Hub) -> None:
    data_hub("allenai/reward-bench", "filtered", [{"prompt": "p", "chosen": "a", "rejected": "b", "subset": "new", "id": 0}])
    with pytest.raises(UserError, match="subsets that RewardBench does not know: new"):
        read_suite("rewardbench")


def rewardbench2_row(id: str, subset: str, chosen: list[str], rejected: list[str]) -> dict[str, Any]:
    total = len(chosen) + len(rejected)
    return {
        "id": id,
        "prompt": f"question {id}",
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": total,
        "models": ["m"] * total,
        "subset": subset,
    }


def test_rewardbench2(data_hub: Hub) -> None:
    rows = [
        rewardbench2_row("7", "Math", ["r"], ["x", "y", "z"]),
        rewardbench2_row("ref:3", "Ties", ["r"], ["x", "y"]),
        rewardbench2_row("tied:3", "Ties", ["r", "s"], ["x", "y"]),
    ]
    data_hub("allenai/reward-bench-2", "test", rows)
    suite = read_suite("rewardbench2")
    assert suite.rule == "best_of"
    assert suite.weights == {"Math": {"Math": 1}, "Ties": {"Ties": 2}}
    assert [row.num_correct for row in suite.rows] == [1, 1, 2]
    assert suite.rows[1].unit == suite.rows[2].unit == "Ties 3"
    assert suite.rows[2].labels == ("chosen-1", "chosen-2", "rejected-1", "rejected-2")


def test_rm_bench(data_hub: Hub) -> None:
    rows = [
        {"id": f"r{i}", "prompt": "p", "chosen": ["a", "ab", "abc"], "rejected": ["b", "bc", "bcd"], "domain": domain}
        for i, domain in enumerate(["chat", "safety-refuse", "safety-response"])
    ]
    data_hub("THU-KEG/RM-Bench", "train", rows)
    suite = read_suite("rmbench")
    assert suite.rule == "styles"
    assert suite.weights == {"chat": {"chat": 1}, "safety": {"safety-refuse": 1, "safety-response": 1}}
    assert suite.rows[0].responses == ("a", "ab", "abc", "b", "bc", "bcd")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "responses": ["a", "b"]}, "a suite needs `chosen` and `rejected`"),
        ({"prompt": "p", "chosen": ["a", "b"], "rejected": ["c", "d"]}, "are lists of 2 and 2 texts"),
        ({"prompt": "p", "chosen": ["a"], "rejected": ["b"], "num_correct": 2}, "`num_correct` is 2, and `chosen` has 1"),
        (
            {"prompt": "p", "chosen": ["a"], "rejected": ["b"], "num_correct": 1, "subset": "Ties", "id": "4"},
            "`ref:N` or `tied:N`, got '4'",
        ),
        ({"prompt": "", "chosen": ["a"], "rejected": ["b"], "num_correct": 1}, "`prompt` is empty"),
        ({"prompt": "p", "chosen": ["a"], "rejected": [""], "num_correct": 1}, r"`rejected\[0\]` is empty"),
        ({"prompt": "p"}, "there is no|there are no responses"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    good = {"prompt": "p", "chosen": ["a"], "rejected": ["b"], "num_correct": 1}
    source = write(tmp_path / "suite.jsonl", [good, row])
    with pytest.raises(UserError, match=message) as error:
        read_suite(source)
    assert "suite.jsonl line 2" in str(error.value)
    assert len(read_suite(source, skip_bad_rows=True).rows) == 1


def test_mixed_forms_are_refused(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c"], "num_correct": 1},
    ]
    with pytest.raises(UserError, match=r"rows of several forms \(best_of, pairs\)"):
        read_suite(write(tmp_path / "suite.jsonl", rows))


def test_fewer_rows_are_spread() -> None:
    assert spread_over(range(10), 4) == [0, 3, 6, 9]
    assert spread_over(range(3), 5) == spread_over(range(3), None) == [0, 1, 2]
    with pytest.raises(UserError, match="--max_pairs must be at least 1, got 0"):
        spread_over(range(3), 0)


@pytest.mark.parametrize("ids", [("tied:1", "tied:1"), ("ref:1:2", "tied:1"), ("ref:", "tied:1"), ([1], "ref:1")])
def test_ids_of_the_ties_subset(ids: tuple[Any, Any], tmp_path: Path) -> None:
    row = {"subset": "Ties", "prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "num_correct": 2}
    path = tmp_path / "ties.jsonl"
    path.write_text("".join(json.dumps({**row, "id": id}) + "\n" for id in ids))
    with pytest.raises(UserError, match=r"must be unique|must have an id `ref:N` or `tied:N`|`id` must be a string"):
        read_suite(str(path))
