"""Rewards of a suite in memory: the same accuracy however the responses are batched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from srm import SentenceRewardModel
from srm.data import Conversation, read_responses
from srm.evaluation.classifier import ClassifierModel
from srm.evaluation.compare import evaluate_suite
from srm.evaluation.score_suite import baseline_rewards, read_rewards, read_scored, score_responses, score_suite, write_responses
from srm.evaluation.suites import Suite, SuiteRow, read_suite
from srm.scoring.file import RowSettings

WORDS = ["It was warm there.", "Bread needs flour.", "No, it is wrong!", "Is this right?", "The cat sat on the mat.", "Water and salt."]


def suite(count: int) -> Suite:
    rows = tuple(
        SuiteRow(
            id=str(i),
            prompt=f"Question {i % 4}?",
            responses=(" ".join(WORDS[(i + j) % 6] for j in range(1 + i % 4)), " ".join(WORDS[(i + j + 2) % 6] for j in range(1 + i % 3))),
            num_correct=1,
            section="all",
            subset=("one", "two")[i % 2],
            unit=str(i % 4),
        )
        for i in range(count)
    )
    return Suite(name="suite", rule="pairs", rows=rows, weights={"all": {"one": count / 2, "two": count / 2}})


def classifier(path: Path, folder: Path) -> ClassifierModel:
    tokenizer = AutoTokenizer.from_pretrained(path)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.2, **sizes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return ClassifierModel(str(folder))


@pytest.mark.parametrize("kind", ["sentence", "response", "token", "classifier"])
def test_every_batch_size_and_packing_gives_the_same_accuracy(
    awake_model: Callable[..., SentenceRewardModel], tiny_backbone_dir: Path, tmp_path: Path, kind: str
) -> None:
    rows = suite(12)
    ways: list[dict[str, Any]] = [{"tokens_per_batch": tokens} for tokens in (8192, 150, 1)]
    if kind == "classifier":
        model: SentenceRewardModel | ClassifierModel = classifier(tiny_backbone_dir, tmp_path)
    else:
        model = awake_model(granularity=kind)
        packings = ("shared", "packed", "none")
        ways = [{"packing": packing} for packing in packings] + [{**way, "packing": packing} for way in ways[1:] for packing in packings]
    rewards = {str(way): [[r.reward for r in row] for row in score_suite(model, rows, **way)] for way in ways}
    report = evaluate_suite(rows, rewards, draws=20).to_dict()["models"]
    first = report[str(ways[0])]
    for way in ways[1:]:
        assert {name: report[str(way)][name] for name in ("average", "sections", "subsets")} == {
            name: first[name] for name in ("average", "sections", "subsets")
        }
    assert 0 < first["average"]["estimate"] < 1, "all won or all lost would be the same for any rewards"


def test_baselines() -> None:
    rows = suite(2)
    lengths = [[len(text) for text in row.responses] for row in rows.rows]
    assert baseline_rewards(rows, "longer") == lengths
    assert baseline_rewards(rows, "shorter") == [[-length for length in row] for row in lengths]
    with pytest.raises(ValueError, match="longer is the name of a baseline"):
        evaluate_suite(rows, {"longer": lengths})


def test_tools_of_a_suite_are_scored(tmp_path: Path) -> None:
    """Rows go through a file on their way to the model."""
    tools = [{"type": "function", "function": {"name": "weather"}}]
    prompt = Conversation([{"role": "user", "content": "Is it warm?"}], tools=tools, enable_thinking=False)
    row = SuiteRow(id="1", prompt=prompt, responses=("Yes.", "No."), num_correct=1, section="all", subset="all", unit="1")
    assert write_responses([row], tmp_path / "rows.jsonl") == 2
    assert [read.prompt for read in read_responses(str(tmp_path / "rows.jsonl"))] == [prompt, prompt]


U, U2 = ({"role": "user", "content": text} for text in ("Is it warm?", "And now?"))
A, B = ({"role": "assistant", "content": text} for text in ("It was warm there. Yes.", "No, it is wrong!"))
BEGUN = {"role": "assistant", "content": "It was"}
ROWS = [
    {"id": "several turns", "chosen": [U, A, U2, B], "rejected": [U, B, U2, A]},
    {"id": "two lengths", "prompt": [U], "chosen": [A, U2, B], "rejected": "No."},
    {"id": "two questions", "chosen": [U, A], "rejected": [U2, B, U, A]},
    {"id": "begun", "prompt": [U, BEGUN], "chosen": " warm there.", "rejected": [{**A, "content": " wrong!"}, U2, B]},
    {"id": "begun, with settings", "prompt": [U, BEGUN], "chosen": " warm.", "rejected": " cold.", "chat_template_kwargs": {"loud": True}},
]
# What each row's responses answer, and the responses.
SAID = [
    (([U], [A, U2, B]), ([U], [B, U2, A])),
    (([U], [A, U2, B]), ([U], "No.")),
    (([U], A["content"]), ([U2], [B, U, A])),
    (([U, BEGUN], " warm there."), ([U, BEGUN], [{**A, "content": " wrong!"}, U2, B])),
    (([U, BEGUN], " warm."), ([U, BEGUN], " cold.")),
]


@pytest.mark.parametrize("kind", ["sentence", "classifier"])
def test_every_form_of_a_response(
    kind: str, awake_model: Callable[..., SentenceRewardModel], tiny_backbone_dir: Path, tmp_path: Path
) -> None:
    """In memory and through files, a response is scored as what follows its own prompt."""
    model = classifier(tiny_backbone_dir, tmp_path / "classifier") if kind == "classifier" else awake_model()
    source, rows, output = (tmp_path / name for name in ("suite.jsonl", "rows.jsonl", "scores.jsonl"))
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    read = read_suite(str(source))
    scores = [[model.score([prompt], [response])[0] for prompt, response in row] for row in SAID]
    want = [pytest.approx([getattr(score, "reward", score) for score in row], abs=1e-5) for row in scores]
    assert [[one.reward for one in row] for row in score_suite(model, read)] == want

    assert write_responses(read.rows, rows) == 2 * len(ROWS)
    score_responses(
        model, rows, output, identity={}, settings=RowSettings(overlong="error", max_length=None, packing=None, tokens_per_batch=512)
    )
    assert read_rewards(read.rows, output) == want
    words = [[sentence.text for sentence in scored.sentences] for scored in read_scored(read.rows, output)[0]]
    assert ["".join(texts).replace("\n", "") for texts in words] == [
        "It was warm there. Yes.No, it is wrong!",
        "No, it is wrong!It was warm there. Yes.",
    ]
    # The longer response is the one with more of the assistant's words.
    assert baseline_rewards(read, "longer")[1] == [len("It was warm there. Yes.\n\nNo, it is wrong!"), len("No.")]
