"""srm-eval on public suites of ranking and of credit, in rows written by hand: from their forms to the tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from srm import SentenceRewardModel
from srm.cli.eval import main
from srm.evaluation.steps import STEP_SUITES
from srm.scoring.results import ScoredSentence
from tests.hub import data_set

WORDS = ["It was warm there.", "Bread needs flour.", "No, it is wrong!", "Is this right?", "The cat sat on the mat.", "Water and salt."]
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def token(build: Build) -> Path:
    return build("token", granularity="token")


@pytest.fixture
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srm.cli.eval_report._has_matplotlib", lambda console: False)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def process_rows(split: str, count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{split}-{i}",
            "generator": "m",
            "problem": f"Problem {i} of {split}?",
            "steps": [f"{WORDS[(i + j) % 6]} {WORDS[(i + j + 1) % 6]}" for j in range(2 + i % 2)],
            "final_answer_correct": i % 3 == 0,
            "label": -1 if i % 3 == 0 else i % 2,
        }
        for i in range(count)
    ]


def total(sentences: Sequence[ScoredSentence]) -> float:
    return sum(sentence.reward for sentence in sentences)


def mean_over_tokens(sentences: Sequence[ScoredSentence]) -> float:
    """At token level weights are shares of the tokens."""
    return sum(sentence.weight * sentence.reward for sentence in sentences) / sum(sentence.weight for sentence in sentences)


def found_by_hand(
    model: SentenceRewardModel, rows: list[dict[str, Any]], threshold: float, reward_of: Callable[[Sequence[ScoredSentence]], float]
) -> tuple[float, float]:
    """The shares of solutions with a wrong step and without one that are judged rightly; each step is two sentences."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows:
        sentences = model.score([row["problem"]], ["\n\n".join(row["steps"])])[0].sentences
        assert len(sentences) == 2 * len(row["steps"])
        rewards = [reward_of(sentences[2 * step : 2 * step + 2]) for step in range(len(row["steps"]))]
        first = next((step for step, reward in enumerate(rewards) if reward <= threshold), -1)
        right[row["label"] >= 0].append(first == row["label"])
    return sum(right[True]) / len(right[True]), sum(right[False]) / len(right[False])


def prm_rows(count: int = 8) -> list[dict[str, Any]]:
    kinds = ("circular", "deception", "multi_solutions")
    return [
        {
            "original_question": f"Problem {i}?",
            "modified_question": f"Problem {i}, changed?",
            "original_process": WORDS[:3],
            "modified_process": [WORDS[(i + j) % 6] for j in range(3)],
            "modified_steps": [2],
            "error_steps": [] if i % 3 == 2 else [1 + i % 2],
            "reason": "",
            "idx": f"p_{i}",
            "question": f"Problem {i}?",
            "classification": kinds[i % 3],
        }
        for i in range(count)
    ]


def test_process_bench_from_the_hub(
    sentence: Path, token: Path, tmp_path: Path, data_hub: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """All four splits; the numbers are those of the library on the model's own scores."""
    name, splits, _ = STEP_SUITES["processbench"]
    first, *others = splits.split("+")
    more = {path: file for split in others for path, file in data_set(split, process_rows(split)).items() if path != "README.md"}
    data_hub(name, first, process_rows(first), files=more)
    out = tmp_path / "out"
    command = ["--model", str(sentence), str(token), "--suite", "processbench", "--output_dir", str(out), "--draws", "100", "--html"]
    assert main(command) == 0
    found, table = results(out), capsys.readouterr().out
    assert (found["rule"], found["rows"]) == ("first_error", 24)
    assert list(found["models"]) == ["sentence", "token", "first is bad", "last is bad", "shortest is bad", "longest is bad"]
    scores = found["models"]["sentence"]["scores"]
    assert list(scores)[:4] == ["average F1", "gsm8k: wrong", "gsm8k: right", "gsm8k: F1"]
    assert {name.split(":")[0] for name in list(scores)[1:]} == {"gsm8k", "math", "olympiadbench", "omnimath"}
    for name, path, reward_of in (("sentence", sentence, total), ("token", token, mean_over_tokens)):
        (threshold,) = found["models"][name]["thresholds"]
        for split in ("gsm8k", "math"):
            shares = found_by_hand(SentenceRewardModel.from_pretrained(path), process_rows(split), threshold, reward_of)
            scores = found["models"][name]["scores"]
            assert (scores[f"{split}: wrong"]["estimate"], scores[f"{split}: right"]["estimate"]) == pytest.approx(shares)
    assert found["models"]["token"]["given_position"]["verdict"] in ("above", "open", "below")
    assert found["models"]["first is bad"]["given_position"]["estimate"] == 0.5
    assert "processbench: 24 solutions" in table
    assert "AUC given" in table
    lines = list(csv.DictReader((out / "results.csv").open()))
    assert {line["name"] for line in lines} >= {"average F1", "omnimath: F1", "auc_given_position"}
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_figure")
def test_prm_bench_from_a_file(sentence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, out = write(tmp_path / "prm.jsonl", prm_rows()), tmp_path / "out"
    assert main(["--model", str(sentence), "--suite", suite, "--output_dir", str(out), "--draws", "100", "--html"]) == 0
    found = results(out)
    assert found["rule"] == "every_step"
    model = found["models"]["sentence"]
    assert list(model["scores"]) == [
        "PRMScore",
        *("circular", "deception", "multi_solutions"),
        *("simplicity", "sensitivity", "AUC within solutions"),
    ]
    assert len(model["thresholds"]) == 2
    assert model["steps_without_a_sentence_end"] == 0
    assert "prm: 8 solutions, PRMScore in per cent" in capsys.readouterr().out
    assert "circular_p_0" in (out / "sentence.html").read_text()
    # A threshold below all rewards calls every step right.
    assert main(["--model", str(sentence), "--suite", suite, "--output_dir", str(out), "--draws", "100", "--threshold=-1e5"]) == 0
    right = sum(3 - len(row["error_steps"]) for row in prm_rows())
    again = results(out)["models"]["sentence"]
    assert again["scores"]["PRMScore"]["estimate"] == pytest.approx((2 * right / (2 * right + 24 - right)) / 2)
    assert again["thresholds"] == [-1e5]


@pytest.mark.usefixtures("no_figure")
def test_ragtruth_from_its_folder(sentence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out, text = tmp_path / "dataset", tmp_path / "out", " ".join(WORDS[:3])
    folder.mkdir()
    label = {"start": 19, "end": 37, "text": WORDS[1], "label_type": "Evident Conflict"}
    shared = {"source_id": "s", "model": "m", "split": "test", "quality": "good", "response": text}
    write(folder / "response.jsonl", [{"id": str(i), "labels": [label] if i % 2 else [], **shared} for i in range(4)])
    write(folder / "source_info.jsonl", [{"source_id": "s", "task_type": "QA", "prompt": "What is it?"}])
    assert main(["--model", str(sentence), "--suite", str(folder), "--output_dir", str(out), "--draws", "100"]) == 0
    found = results(out)
    assert (found["rule"], found["rows"]) == ("spans", 4)
    # The bad sentence is the second of three, and two responses have a good one there.
    assert found["models"]["sentence"]["given_position"]["compared"] == 2
    assert found["models"]["last is bad"]["given_position"] == {
        **dict.fromkeys(("estimate", "low", "high"), 0.5),
        "verdict": "open",
        "bad_sentences": 2,
        "compared": 2,
    }
    assert "given position, 2 of 2 bad ones" in capsys.readouterr().out


@pytest.mark.usefixtures("no_figure")
def test_judge_bench_and_means_over_rows(sentence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ "longer" wins both of law, one of two in code: 3/4 over all rows, which is official, and 3/4 as the mean of sections."""
    answers = [("Yes. Yes.", "No."), ("Well, yes.", "No."), ("A longer one.", "No."), ("No.", "A longer one.")]
    rows = [
        {"pair_id": str(i), "source": source, "question": f"Question {i}?", "response_A": one, "response_B": two, "label": "A>B"}
        for i, (source, (one, two)) in enumerate(
            zip(("mmlu-pro-law", "mmlu-pro-law", "livecodebench", "livecodebench"), answers, strict=True)
        )
    ]
    suite, out = write(tmp_path / "judge.jsonl", [*rows, {**rows[0], "pair_id": "4", "question": "Another?"}]), tmp_path / "out"
    command = ["--model", str(sentence), "--suite", suite, "--output_dir", str(out), "--draws", "100", "--section_mean", "rows"]
    assert main(command) == 0
    longer = results(out)["models"]["longer"]
    assert longer["average"]["estimate"] == pytest.approx(4 / 5)
    assert longer["means_over_rows"]["average"]["estimate"] == pytest.approx((1 + 1 / 2) / 2)
    assert results(out)["average"] == "mean over the rows"
    table = capsys.readouterr().out
    assert "Sections as means over rows" in table
    assert "official" in table
    lines = {(line["model"], line["level"]): float(line["score"]) for line in csv.DictReader((out / "results.csv").open())}
    assert (lines["longer", "suite"], lines["longer", "suite over rows"]) == (pytest.approx(4 / 5), pytest.approx(3 / 4))


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (process_rows("math"), [], "has no rows of gsm8k (ids `gsm8k-0`), on which ProcessBench chooses the threshold"),
        (process_rows("gsm8k"), ["--section_mean", "rows"], "--section_mean: this suite judges sentences and has no sections"),
        ([{"prompt": "Hi", "chosen": "a", "rejected": "b"}], ["--threshold", "0"], "--threshold: only suites with steps"),
        ([{"prompt": "Hi", "chosen": "a", "rejected": "b"}], ["--measure", "reward"], "--measure: this suite ranks responses"),
        (process_rows("gsm8k"), ["--beta", "0.1"], "--beta: only dpo: models have one"),
        (process_rows("gsm8k"), ["--num_permutations", "16"], "--num_permutations: only shapley: models have one"),
        (process_rows("gsm8k"), ["--draws", "1"], "--draws must be"),
        (None, [], "ragtruth: is not on the hub. Clone https://github.com/ParticleMedia/RAGTruth and give the path of its folder dataset"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_scored(
    sentence: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]] | None,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SentenceRewardModel, "forward", lambda *_: pytest.fail("scored"))
    suite = "ragtruth" if rows is None else write(tmp_path / "rows.jsonl", rows)
    assert main(["--model", str(sentence), "--suite", suite, "--output_dir", str(tmp_path / "out"), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("srm-eval: ")
    assert error.count("\n") == 1
    assert message in error
