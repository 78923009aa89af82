"""Rows of ProcessBench and PRMBench, written by hand in their published forms, and what a step's reward is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from srm.errors import UserError
from srm.evaluation.steps import StepRow, has_steps, open_steps, read_steps, steps_of
from srm.scoring.results import ScoredResponse, ScoredSentence


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def process_row(number: int, *steps: str, label: int, split: str = "gsm8k") -> dict[str, Any]:
    shared = {"generator": "m", "problem": f"Problem {number}?", "final_answer_correct": label < 0}
    return {"id": f"{split}-{number}", "steps": list(steps), "label": label, **shared}


def prm_row(number: int, *steps: str, wrong: list[int], kind: str = "circular") -> dict[str, Any]:
    original = {"original_question": f"Problem {number}?", "original_process": list(steps), "modified_steps": wrong}
    modified = {"modified_question": f"Problem {number}, changed?", "modified_process": list(steps), "error_steps": wrong}
    return {**original, **modified, "idx": f"p_{number}", "question": "", "reason": "", "classification": kind}


def scored(*sentences: tuple[str, float, float]) -> ScoredResponse:
    """Sentences as (text, reward, weight)."""
    ends = list(itertools.accumulate(len(text) for text, _, _ in sentences))
    parts = tuple(
        ScoredSentence(text=text, start=end - len(text), end=end, reward=reward, weight=weight, weighted_reward=reward * weight)
        for (text, reward, weight), end in zip(sentences, ends, strict=True)
    )
    return ScoredResponse(reward=0.0, prompt_reward=0.0, prompt_weight=1.0, sentences=parts)


def row(*steps: str) -> StepRow:
    return StepRow(id="a", prompt="Why?", steps=steps, wrong=(False,) * len(steps), group="all", unit="Why?")


def test_process_bench(tmp_path: Path) -> None:
    rows = [process_row(0, "One.", " Two.\n", "Three.", label=1), process_row(7, "One.", label=-1, split="omnimath")]
    source = write(tmp_path / "rows.jsonl", *rows)
    assert has_steps(source)
    suite = read_steps(source)
    assert (suite.name, suite.rule) == ("rows", "first_error")
    first, second = suite.rows
    assert (first.group, first.response, first.starts) == ("gsm8k", "One.\n\nTwo.\n\nThree.", [0, 6, 12])
    # What follows the first wrong step is not judged.
    assert (first.wrong, first.first_wrong) == ((False, True, None), 1)
    assert first.errors == ({"start": 6, "end": 10, "kind": "gsm8k"},)
    assert (second.group, second.wrong, second.first_wrong) == ("omnimath", (False,), -1)


def test_prm_bench(tmp_path: Path) -> None:
    rows = [
        prm_row(0, "1. One.", "2. Two.", "3. Three.", wrong=[1, 3, 9]),
        prm_row(0, "1. One.", "2. Two.", "3. Three.", wrong=[2]),
        prm_row(0, "1. One.", wrong=[], kind="multi_solutions"),
    ]
    suite = read_steps(write(tmp_path / "rows.jsonl", *rows))
    assert suite.rule == "every_step"
    # Steps count from 1, there is no ninth, and of two rows of one class and name the first counts, as in the published code.
    assert [(each.group, each.wrong) for each in suite.rows] == [("circular", (True, False, True)), ("multi_solutions", (False,))]
    assert suite.rows[0].prompt == "Problem 0, changed?"
    # All classes of a problem are drawn together.
    assert suite.rows[0].unit == suite.rows[1].unit


def test_other_rows_have_no_steps(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", {"prompt": "Hi", "chosen": "a", "rejected": "b"})
    assert not has_steps(source)
    with pytest.raises(UserError, match=r"its first row has no steps\. ProcessBench and PRMBench have `problem`, `steps`, `label` or"):
        read_steps(source)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({**process_row(0, "One.", label=0), "label": 1}, "`label` must be -1 or the number of a step, 0 to 0, got 1"),
        ({**process_row(0, "One.", label=0), "label": True}, "`label` must be -1 or the number of a step"),
        ({**process_row(0, label=-1), "steps": []}, "`steps` must be a list of texts"),
        ({**process_row(0, label=-1), "steps": [" ", ""]}, "`the steps` is empty"),
        ({**prm_row(0, "One.", wrong=[]), "error_steps": ["1"]}, "`error_steps` must be a list of numbers of steps, from 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_steps(write(tmp_path / "rows.jsonl", bad))
    assert "rows.jsonl line 1" in str(error.value)


def test_a_step_is_the_sum_of_the_sentences_that_end_in_it() -> None:
    """The sums telescope: together they are what the response changed in the value."""
    solution = row("One. Two.", "Three.", "Four.")
    whole = scored(("One. ", 1.0, 0.1), ("Two.\n\n", -3.0, 0.2), ("Three.\n\n", 0.5, 0.3), ("Four.", 2.0, 0.4))
    steps = steps_of(solution, whole)
    assert [step.reward for step in steps.sentences] == [-2.0, 0.5, 2.0]
    assert [step.text for step in steps.sentences] == ["One. Two.", "Three.", "Four."]
    assert [step.weighted_reward for step in steps.sentences] == pytest.approx([0.1 - 0.6, 0.15, 0.8])
    assert open_steps(solution, whole) == 0


def test_a_step_of_a_token_level_model_is_the_mean_over_its_tokens() -> None:
    """Two tokens of 1 and six of -3: their mean is -2, and the weights are shares of twelve tokens."""
    whole = scored(("One. ", 1.0, 2 / 12), ("Two.\n\n", -3.0, 6 / 12), ("Three.", 0.5, 4 / 12))
    steps = steps_of(row("One. Two.", "Three."), whole, token_level=True)
    assert [step.reward for step in steps.sentences] == pytest.approx([-2.0, 0.5])


def test_a_step_without_a_sentence_end_changes_nothing_and_is_counted() -> None:
    """The model took "3 + 4" and "= 7." for one sentence, so that only the sum of both steps is known. An empty step has none to miss."""
    solution = row("3 + 4", "= 7.", "", "Good.")
    whole = scored(("3 + 4\n\n= 7.\n\n\n\n", -1.0, 0.5), ("Good.", 2.0, 0.5))
    assert [step.reward for step in steps_of(solution, whole).sentences] == [0.0, -1.0, 0.0, 2.0]
    assert open_steps(solution, whole) == 1


def test_steps_behind_a_cut_have_no_reward() -> None:
    solution = row("One.", "Two is cut here.", "Three.")
    whole = scored(("One.\n\n", 1.0, 0.5), ("Two is", -1.0, 0.5))
    assert [step.reward for step in steps_of(solution, whole).sentences] == [1.0, -1.0]
    assert steps_of(solution, scored()).sentences == ()
