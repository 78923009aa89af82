"""research/claim/frozen.py on a tiny model and generated pairs: its heads say what a whole model with their weights says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from research.claim import frozen
from research.claim.features import Features
from research.claim.heads import Pooled, _balanced
from srm import SentenceRewardModel
from srm.evaluation.score_suite import read_scored, score_responses, write_responses
from srm.scoring.file import RowSettings


@pytest.fixture
def small_study(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, tiny_backbone_dir: Path) -> None:
    """The script, set to a tiny size and to files of generated pairs."""
    small = {
        "train_pairs": 12,
        "test_pairs": 8,
        "suite_pairs": 10,
        "span_responses": 8,
        "max_chars": 5000,
        "seeds": (0, 1),
        "score_max_length": 256,
    }
    monkeypatch.setattr(frozen, "SIZE", dataclasses.replace(frozen.SIZE, **small))
    folders = ["--data", data, "--output_dir", tmp_path / "work", "--json", tmp_path / "results" / "frozen.json"]
    monkeypatch.setattr("sys.argv", ["frozen.py", *map(str, folders), "--model_name_or_path", str(tiny_backbone_dir)])


@pytest.mark.usefixtures("small_study")
def test_every_head_is_tuned_repeated_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("sentence", "response", "gate to the last value")
    monkeypatch.setattr(frozen, "HEADS", {name: frozen.HEADS[name] for name in names})
    frozen.main()
    result = json.loads((tmp_path / "results" / "frozen.json").read_text())
    for name in names:
        assert len(result["rows"][name]["seeds"]["test"]) == 2
        assert (
            max(result["tuning"][name]["accuracy"].values())
            == result["tuning"][name]["accuracy"]["{rate:g}, {epochs} epochs".format(**result["tuning"][name]["chosen"])]
        )
    assert (tmp_path / "results" / "frozen.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small_study")
@pytest.mark.parametrize("name", ["sentence", "response", "token", "no differencing", "paper"])
def test_a_head_says_what_a_whole_model_with_its_weights_says(name: str, tiny_backbone_dir: Path, tmp_path: Path) -> None:
    study = frozen.Study(frozen._arguments())
    head = frozen.HEADS[name]
    trained = frozen.train(head, study.features["train"], study.scale, rate=0.1, epochs=2, seed=0)
    granularity = name if name in ("response", "token") else "sentence"
    own = {"no differencing": {"difference": False}, "paper": {"pooling": "attention"}}.get(name, {})
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir, dtype=torch.bfloat16, granularity=granularity, **own).eval()
    weights = {key.removeprefix("head."): value for key, value in trained.state_dict().items()}
    # Heads here see hidden states divided by the scale.
    model.head.load_state_dict({key: value / study.scale if key.endswith("weight") else value for key, value in weights.items()})
    rows, source, scored = study.suites["suite"].rows, tmp_path / "responses.jsonl", tmp_path / "scores.jsonl"
    write_responses(rows, source)
    settings = RowSettings(overlong="truncate_response", max_length=256, packing="shared", tokens_per_batch=2048)
    score_responses(model, source, scored, identity={}, settings=settings)
    whole = [response for row in read_scored(rows, scored) for response in row]
    lines = [json.loads(line) for line in study._lines(head, trained, "suite")]
    got, expected = torch.tensor([line["reward"] for line in lines]), torch.tensor([response.reward for response in whole])
    assert expected.std() > 0.01
    assert (got - expected).abs().max() < 0.02 * expected.std()
    for line, response in zip(lines, whole, strict=True):
        for a, b in zip(line["sentences"], response.sentences, strict=True):
            assert a["text"] == b.text
            assert a["weight"] == pytest.approx(b.weight, abs=1e-3)


def test_balanced_pairs_have_the_longer_one_chosen_in_half() -> None:
    # (chosen, rejected) as tokens of their sentences: longer, longer, equal, shorter, longer.
    responses = [[5, 5], [9], [2], [1], [4], [2, 2], [1], [1, 1], [8], [7]]
    boundaries = [[0, *of] for of in responses]
    made = Features(
        last=torch.zeros(0),
        mean=torch.zeros(0),
        tokens=torch.tensor([n for of in boundaries for n in of]),
        cu_boundaries=torch.tensor([0, *map(len, boundaries)]).cumsum(0),
        responses=[],
    )
    longer, shorter = _balanced(made).tolist()
    assert longer in (0, 1, 4)
    assert shorter == 3


def test_a_random_start_is_random_in_all_its_parts() -> None:
    torch.manual_seed(0)
    zero, random = Pooled(32), Pooled(32, random_start=True)
    assert not zero.head.value.weight.any()
    for part in ("value", "query", "key"):
        assert getattr(random.head, part).weight.std() > 2 * getattr(zero.head, part).weight.std()
        assert getattr(random.head, part).weight.any()
