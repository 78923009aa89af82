"""The authors' recipe from pairs to a policy, on a tiny random model, through TRL's own command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from srm import SentenceRewardModel
from srm.data import read_comparisons
from srm.data.synthetic import generate_pairs
from tests.example_scripts import EXAMPLES, load

ROOT = EXAMPLES.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """run("bash", "examples/paper.sh", ..., BASE=...): in the root of the repository, with the commands of this checkout on the PATH."""
    folder = tmp_path_factory.mktemp("bin")
    programs = {"python": "", "trl": "-c 'import sys; from trl.cli import main; sys.exit(main())'"}
    for name, words in {**programs, "srm-train": "-m srm.cli.train", "srm-rl": "-m srm.cli.rl"}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)

    def start(*words: str, **variables: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{folder}:{os.environ['PATH']}", **variables}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return start


@pytest.fixture(scope="module")
def recipe(run: Callable[..., None], tiny_policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that examples/paper.sh has filled."""
    pytest.importorskip("trl", reason="the first step is TRL's")
    folder = tmp_path_factory.mktemp("paper")
    rows = [{"prompt": "Is it warm?", "chosen": "It was warm there. Bread needs salt.", "rejected": "No. It is wrong!"}] * 3
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run(
        *("bash", "examples/paper.sh", str(folder / "pairs.jsonl"), "--use_cpu", "true", "--bf16", "false"),
        BASE=str(tiny_policy_dir),
        OUTPUT=str(folder),
    )
    return folder


def test_the_backbone_is_fine_tuned_on_the_chosen_answers_first(recipe: Path, tiny_policy_dir: Path) -> None:
    settings = torch.load(recipe / "sft" / "training_args.bin", weights_only=False)
    assert (settings.learning_rate, settings.weight_decay, settings.num_train_epochs) == (3e-6, 0.2, 1)
    assert settings.per_device_train_batch_size * settings.gradient_accumulation_steps == 256
    assert settings.lr_scheduler_type == "cosine"
    assert not settings.warmup_steps
    tuned, base = (load_file(folder / "model.safetensors") for folder in (recipe / "sft", tiny_policy_dir))
    assert 0 < (tuned["model.norm.weight"] - base["model.norm.weight"]).abs().max() < 1e-5


def test_the_reward_model_is_the_authors(recipe: Path) -> None:
    settings = torch.load(recipe / "reward" / "training_args.bin", weights_only=False)
    rates = {settings.learning_rate, settings.head_learning_rate, settings.attention_learning_rate}
    assert (rates, settings.weight_decay, settings.seed) == ({3e-6}, 0.1, 1234)
    assert settings.per_device_train_batch_size * settings.gradient_accumulation_steps == 256
    model = SentenceRewardModel.from_pretrained(recipe / "reward")
    assert (model.config.pooling, model.config.boundary_token, model.config.attention_size) == ("attention", "<END>", 256)
    # As torch starts a linear layer: uniform up to one over the root of the width, and hardly trained since.
    bound = model.config.hidden_size**-0.5
    for layer in (model.head.value, model.head.query, model.head.key):
        assert 0.8 * bound < layer.weight.abs().max() < bound + 1e-5
    assert model.tokenizer is not None
    ids = model.encoder.encode_prompt("Is it warm?")
    bos = model.tokenizer.bos_token
    assert model.tokenizer.decode(ids) == f"{bos}\n\nHuman: Is it warm?\n\nAssistant: <END>"
    answer = model.encoder.encode_response("Is it warm?", "It was warm there. Bread needs salt.")
    # A blank that is a token of its own, as in this tiny tokenizer, ends its sentence.
    assert model.tokenizer.decode(answer.ids) == "It was warm there. <END>Bread needs salt.<END>"


def test_its_policy_is_trained_without_the_prompt_s_reward(recipe: Path, run: Callable[..., None]) -> None:
    short = "--max_steps 1 --max_completion_length 8 --num_generations 2 --per_device_train_batch_size 2"
    folders = {"model_name_or_path": "sft", "reward_model_path": "reward", "dataset_name": "pairs.jsonl", "output_dir": "policy"}
    words = [word for name, folder in folders.items() for word in (f"--{name}", str(recipe / folder))]
    run("srm-rl", "--config", "examples/rl/paper.yaml", *words, *short.split())
    assert (recipe / "policy" / "log.jsonl").read_text(encoding="utf-8")


def test_the_chosen_answers_of_every_kind_of_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask: dict[str, Any] = {"role": "user", "content": "Why?"}
    good, bad = ({"role": "assistant", "content": text} for text in ("Because.", "No."))
    rows: list[dict[str, Any]] = [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": [ask], "chosen": [good], "rejected": [bad]},
        {"chosen": [ask, good], "rejected": [ask, bad]},
        # The answer goes on from what the prompt has of it.
        {"prompt": [ask, {"role": "assistant", "content": "Be"}], "chosen": "cause.", "rejected": "low."},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    program = load("chosen_answers")
    program.main([str(tmp_path / "pairs.jsonl"), str(tmp_path / "new" / "train.jsonl")])
    assert "3 chosen answers; 1 that their prompt begins left out" in capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "new" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written == [{"prompt": [ask], "completion": [good]}] * 3
    ranked = tmp_path / "ranked.jsonl"
    ranked.write_text(json.dumps({"prompt": "Why?", "responses": ["No.", "Because.", "Hm."], "scores": [1, 3, 2]}) + "\n", encoding="utf-8")
    assert [row["completion"] for row in program.chosen_answers(list(read_comparisons(str(ranked))))] == [[good]]


def test_generated_pairs_are_taken_too(tmp_path: Path) -> None:
    pairs = generate_pairs(3)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair.to_row()) + "\n" for pair in pairs), encoding="utf-8")
    rows = list(load("chosen_answers").chosen_answers(list(read_comparisons(str(tmp_path / "pairs.jsonl")))))
    assert [row["completion"][0]["content"] for row in rows] == [pair.chosen for pair in pairs]
