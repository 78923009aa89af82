"""research/credit_health.py: real answers with one sentence of another answer, and the two accuracies beside credit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from research import credit_health
from srm_kernels import SentenceRewardHeadOutput


@pytest.fixture
def source(tmp_path: Path) -> str:
    answers = [[f"Answer {i} says thing {j}." for j in range(length)] for i, length in enumerate([5, 3, 4, 13, 12])]
    rows = [{"id": str(i), "prompt": "Say things.", "chosen": " ".join(answer), "rejected": "No."} for i, answer in enumerate(answers)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_one_sentence_is_swapped_for_one_of_the_next_answer(source: str) -> None:
    pairs = credit_health.swapped_pairs(source, 2, seed=3)
    assert pairs == credit_health.swapped_pairs(source, 2, seed=3)
    assert len(pairs) == 2
    for pair in pairs:
        assert len(pair.chosen_sentences) in (4, 5, 12), "answers of 3 and 13 sentences do not fit"
        (damage,) = pair.damaged
        changed = [i for i, (a, b) in enumerate(zip(pair.chosen_sentences, pair.rejected_sentences, strict=True)) if a != b]
        assert changed == [damage.sentence]
        assert not pair.rejected_sentences[damage.sentence].startswith(f"Answer {pair.id} ")


def test_too_few_answers_are_told(source: str) -> None:
    with pytest.raises(SystemExit, match="3 fitting answers, and 4 are needed"):
        credit_health.swapped_pairs(source, 3, seed=0)


def test_both_accuracies_and_credit_of_every_start_and_kind(
    source: str, tiny_backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"model": tiny_backbone_dir, "input": source, "num_seeds": 1, "num_pairs": 1, "num_eval_pairs": 1}
    monkeypatch.setattr(credit_health, "KINDS", ("rudeness",))
    monkeypatch.setattr(credit_health, "EPOCHS", 1)
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(
        "sys.argv", ["credit_health.py", *words, "--features", str(tmp_path / "f"), "--json", str(tmp_path / "result.json")]
    )
    credit_health.main()
    runs = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert [(run["task"], run["start"]) for run in runs] == [
        (task, start) for task in ("rudeness", "swapped") for start in credit_health.STARTS
    ]


def test_credit_and_the_mean_value_are_read_off_the_values(
    tiny_backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = shutil.copytree(tiny_backbone_dir, tmp_path / "long")
    config = json.loads((long / "config.json").read_text())
    (long / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    arguments = credit_health._arguments(["--model", str(long), "--features", str(tmp_path)])
    pairs = credit_health.generate_pairs(6, kinds=("rudeness",), multi_share=0.0)
    features = credit_health._features("rudeness", {"test": pairs}, arguments)["test"]
    # A head that knows: values fall by one at the bad sentence and stay there, but its rewards prefer the rejected answers.
    values = []
    for pair in pairs:
        bad = pair.damaged[0].sentence
        values += [0.0] * (1 + len(pair.chosen_sentences)) + [-float(index > bad) for index in range(1 + len(pair.rejected_sentences))]
    value = torch.tensor(values)
    first = torch.zeros(len(value), dtype=torch.bool).index_fill(0, features.cu_boundaries[:-1], True)
    rewards = torch.where(first, value, value - value.roll(1))
    answer = SentenceRewardHeadOutput(torch.tensor([0.0, 1.0] * 6), rewards, torch.ones(len(value)), value)
    monkeypatch.setattr(credit_health, "outputs", lambda *_: answer)
    found = credit_health._judged(None, None, features, 1.0, pairs)
    assert found == {"accuracy": 0.0, "mean_value_accuracy": 1.0, "auc": 1.0, "hit_rate": 1.0, "would_warn": False}


def test_runs_that_rank_well_are_summed_up_by_the_warning() -> None:
    runs = [
        {"accuracy": accuracy, "auc": auc, "would_warn": warn}
        for accuracy, auc, warn in ((0.9, 0.3, True), (0.9, 0.6, True), (1.0, 0.9, False), (0.7, 0.1, False))
    ]
    summary = credit_health._summary(runs)
    assert summary["accuracy of 0.8 or more"] == 3
    assert summary["warned"] == {"runs": 2, "inverted (AUC below 0.5)": 1, "AUC, least": 0.3, "AUC, median": 0.6, "AUC, most": 0.6}
    assert summary["not warned"]["runs"] == 1
