"""bench/credit_health.py: real answers with one sentence of another answer."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def credit_health(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("credit_health")


@pytest.fixture
def source(tmp_path: Path) -> str:
    answers = [[f"Answer {i} says thing {j}." for j in range(length)] for i, length in enumerate([5, 3, 4, 13, 12])]
    rows = [{"id": str(i), "prompt": "Say things.", "chosen": " ".join(answer), "rejected": "No."} for i, answer in enumerate(answers)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_one_sentence_is_swapped_for_one_of_the_next_answer(credit_health: Any, source: str) -> None:
    pairs = credit_health.swapped_pairs(source, 2, seed=3)
    assert pairs == credit_health.swapped_pairs(source, 2, seed=3)
    assert len(pairs) == 2
    for pair in pairs:
        assert len(pair.chosen_sentences) in (4, 5, 12), "answers of 3 and 13 sentences do not fit"
        (damage,) = pair.damaged
        changed = [i for i, (a, b) in enumerate(zip(pair.chosen_sentences, pair.rejected_sentences, strict=True)) if a != b]
        assert changed == [damage.sentence]
        assert not pair.rejected_sentences[damage.sentence].startswith(f"Answer {pair.id} ")


def test_too_few_answers_are_told(credit_health: Any, source: str) -> None:
    with pytest.raises(SystemExit, match="3 fitting answers, and 4 are needed"):
        credit_health.swapped_pairs(source, 3, seed=0)
