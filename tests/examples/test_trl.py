"""examples/trl_grpo.py and trl_sentence_grpo.py on tiny random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the examples need TRL")

from safetensors.torch import load_file

from srm import SentenceRewardModel
from tests.example_scripts import load

TINY = [
    "--use_cpu",
    "--bf16",
    "false",
    "--max_steps",
    "2",
    "--max_completion_length",
    "12",
    "--learning_rate",
    "1e-3",
    "--report_to",
    "none",
]


@pytest.mark.parametrize("name", ["trl_grpo", "trl_sentence_grpo"])
def test_two_steps_on_a_file(
    name: str, awake_model: Callable[[], SentenceRewardModel], tiny_policy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    awake_model().save_pretrained(tmp_path / "reward")
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in ("Why is bread salty?", "Where does the cat sit?")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = {
        "reward_model": tmp_path / "reward",
        "model": tiny_policy_dir,
        "dataset": tmp_path / "prompts.jsonl",
        "output_dir": tmp_path / "out",
    }
    load(name).main([*(word for flag, value in given.items() for word in (f"--{flag}", str(value))), *TINY])
    log = [json.loads(line.replace("'", '"')) for line in capsys.readouterr().out.splitlines() if line.startswith("{'loss'")]
    assert len(log) == 2
    assert all(float(line["reward_std"]) > 0 for line in log)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_policy_dir, tmp_path / "out"))
    assert any(not before[weight].equal(after[weight]) for weight in before if weight in after)
