from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from srm import SentenceRewardConfig, SentenceRewardModel


def test_round_trip(tmp_path: Path) -> None:
    config = SentenceRewardConfig(
        backbone_config=LlamaConfig(hidden_size=64), pooling="mean", rope_theta=None, boundary_token="<END>", segmenter={"name": "newline"}
    )
    config.save_pretrained(tmp_path)
    loaded = SentenceRewardConfig.from_pretrained(tmp_path)
    assert loaded.own_fields() == config.own_fields()
    assert loaded.hidden_size == 64
    assert loaded.backbone_config.model_type == "llama"
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "sentence_reward"
    assert saved["rope_theta"] is None


@pytest.mark.parametrize(
    ("granularity", "pooling", "difference", "include_prompt"),
    [("sentence", "value_attention", True, True), ("response", "sum", True, True), ("token", "mean", False, False)],
)
def test_granularity_decides_the_pooling(granularity: str, pooling: str, difference: bool, include_prompt: bool) -> None:
    head = SentenceRewardConfig(granularity=granularity).head_arguments()
    assert (head["pooling"], head["difference"], head["include_prompt"]) == (pooling, difference, include_prompt)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"granularity": "word"}, "`granularity` must be one of sentence, response, token, got 'word'"),
        ({"pooling": "max"}, "`pooling` must be one of attention, value_attention, mean, sum, last, got 'max'"),
        ({"packing": "yes"}, "`packing` must be one of shared, packed, none, got 'yes'"),
        ({"granularity": "response", "pooling": "mean"}, "fixes how values are pooled, but pooling was set"),
        ({"granularity": "token", "difference": False}, "but difference was set"),
        ({"attention_size": 7}, "must be even and at least 2 .* got 7"),
        ({"rope_theta": -1.0}, "`rope_theta` must be a positive number or None, got -1.0"),
    ],
)
def test_bad_values_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SentenceRewardConfig(**fields)


@pytest.mark.parametrize(
    ("segmenter", "message"),
    [
        ("newline", r'`segmenter` must be a dict such as \{"name": "newline"\}, got \'newline\'\.'),
        ({"name": "punkt", "max_char": 5}, "`segmenter` has no setting 'max_char'; did you mean max_chars"),
        ({"name": "punkt", "max_chars": 5}, "`max_chars` must be an integer of at least 8, got 5"),
        ({"name": "punk"}, "unknown name 'punk'"),
    ],
)
def test_a_segmenter_is_checked_at_once(segmenter: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SentenceRewardConfig(segmenter=segmenter)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("granularty", "no field 'granularty'; did you mean granularity"),
        ("poling", "no field 'poling'; did you mean pooling"),
        ("zzz", "Choose"),
    ],
)
def test_misspelt_fields_are_refused_before_anything_loads(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SentenceRewardModel.from_backbone("/no/such/folder", **{name: "token"})


def test_hidden_size_needs_a_backbone() -> None:
    with pytest.raises(AttributeError, match="no `backbone_config`"):
        _ = SentenceRewardConfig().hidden_size
