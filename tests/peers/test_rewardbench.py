"""RewardBench's own command and pipeline on a saved reward model, from its wheel."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding

from srm import SentenceRewardModel

EXAMPLE = Path(__file__).parents[2] / "examples" / "run_rewardbench.py"
ROWS = [
    ([{"role": "user", "content": "Is this right?"}], "No, it is wrong! The cat sat on the mat.", "Yes."),
    (
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Salt."}, {"role": "user", "content": "And what else?"}],
        "Time. Water and flour.",
        "It was warm there. Is it? No.",
    ),
    ([{"role": "user", "content": "Where does the cat sit?"}], "On the mat.", "It sat there. It was warm. Bread needs salt."),
]


@pytest.fixture(scope="module")
def folder(awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewardbench") / "model"
    awake_model().save_pretrained(path)
    return path


def wanted(folder: Path, column: int) -> Any:
    model = SentenceRewardModel.from_pretrained(folder)
    return pytest.approx([one.reward for one in model.score([row[0] for row in ROWS], [row[column] for row in ROWS])], abs=1e-5)  # type: ignore[union-attr]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), "--model", folder.name, *arguments]
    # Without a GPU here, whatever the machine has: the other way is below.
    variables = {**os.environ, "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=folder.parent, env=variables, capture_output=True, text=True, check=False)


def test_the_command_gives_our_rewards(folder: Path) -> None:
    pairs = folder.parent / "pairs.jsonl"
    with pairs.open("w", encoding="utf-8") as file:
        for prompt, *answers in ROWS:
            conversations = [[*prompt, {"role": "assistant", "content": answer}] for answer in answers]
            file.write(json.dumps(dict(zip(("chosen", "rejected"), conversations, strict=True))) + "\n")
    done = run(folder, "--dataset", pairs.name, "--load_json", "--torch_dtype", "float32", "--batch_size", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (folder.parent / "results" / "model_outputs.jsonl").read_text(encoding="utf-8").splitlines()
    chosen, rejected = ([json.loads(line)[name] for line in lines] for name in ("scores_chosen", "scores_rejected"))
    assert chosen == wanted(folder, 1)
    assert rejected == wanted(folder, 2)
    accuracy = json.loads((folder.parent / "results" / "model.json").read_text(encoding="utf-8"))["accuracy"]
    assert accuracy == pytest.approx(sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(ROWS))


def test_its_pipeline_gives_our_rewards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline that it takes on a GPU. It asks for "cuda" by name; where there is none, that is the CPU here."""
    runpy.run_path(str(EXAMPLE))["give_names_back"]()
    from rewardbench.models.pipeline import RewardBenchPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    move = BatchEncoding.to
    monkeypatch.setattr(BatchEncoding, "to", lambda inputs, _: move(inputs, device))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, device_map=device)
    texts = [tokenizer.apply_chat_template([*row[0], {"role": "assistant", "content": row[1]}], tokenize=False) for row in ROWS]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        logits = RewardBenchPipeline("text-classification", model=model, tokenizer=tokenizer)(texts, padding=True, truncation=False)
        assert logits[:, 0].tolist() == wanted(folder, 1)
