"""examples/prompts.py: a JSONL file as verl and slime read it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.example_scripts import load


def test_the_first_of_ten_prompts_is_for_the_test(tmp_path: Path) -> None:
    prompts = [[{"role": "user", "content": f"Why {number}?"}] for number in range(12)]
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    load("prompts").main(["--dataset", str(source), "--output", str(tmp_path / "out")])
    read = {split: (tmp_path / "out" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines() for split in ("train", "test")}
    assert [json.loads(row)["prompt"] for row in read["test"]] == [prompts[0], prompts[10]]
    assert [json.loads(row)["metadata"]["prompt"] for row in read["train"]] == [*prompts[1:10], prompts[11]]


def test_text_becomes_a_message() -> None:
    assert load("prompts").row_of("Why?")["prompt"] == [{"role": "user", "content": "Why?"}]
