"""A new head's start: the score of a plain reward model, to the last digit that float32 has, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from srm import SentenceRewardModel
from srm.errors import UserError

PROMPTS = ["Is it warm?", [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Bread?"}], "Why?"]
RESPONSES = ["It was warm there.", "Bread needs flour, water, salt and time. Bread needs time! Does it?", "No."]
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen3": lambda **fields: Qwen3Config(**fields, head_dim=8, num_key_value_heads=2),
    "gemma": lambda **fields: GemmaConfig(**fields, head_dim=8, num_key_value_heads=1),
    "gpt_neox": GPTNeoXConfig,
}

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path, tiny_tokenizer_dir: Path) -> Build:
    """build("llama", num_labels=1, ...): the folder of a random classifier with the tiny tokenizer."""

    def make(kind: str, **fields: Any) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
        common = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "num_labels": 1, **SHAPE, **fields}
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(CONFIGS[kind](**common)).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return make


def with_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", CONFIGS)
def test_at_step_0_every_value_is_the_classifier_s_score(build: Build, kind: str) -> None:
    """The classifier reads the very tokens, cut behind each boundary, so that its last token is the boundary."""
    folder = build(kind)
    model = SentenceRewardModel.from_backbone(folder, head_init="score").eval()
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    # It would look for its score before an end of turn at the end of the prompt, which is its pad token.
    classifier.config.pad_token_id = None
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        prompt_ids, encoded = model.encoder.encode_prompt(prompt), model.encoder.encode_response(prompt, response)
        ids = torch.tensor([[*prompt_ids, *encoded.ids.tolist()]])
        with torch.no_grad():
            expected = [classifier(ids[:, : len(prompt_ids) + end + 1]).logits.item() for end in (-1, *encoded.sentence_ends.tolist())]
        scored = model.score([prompt], [response])[0]
        values = list(accumulate((sentence.reward for sentence in scored.sentences), initial=scored.prompt_reward))
        assert values == pytest.approx(expected, abs=1e-5)
        # Attention starts near uniform: the reward is the mean of the values.
        assert scored.reward == pytest.approx(sum(expected) / len(expected), abs=1e-3)


def test_with_the_last_pooling_the_reward_is_the_score(build: Build) -> None:
    folder = build("llama")
    last = SentenceRewardModel.from_backbone(folder, head_init="score", pooling="last", difference=False).eval()
    response_level = SentenceRewardModel.from_backbone(folder, head_init="score", granularity="response").eval()
    values = SentenceRewardModel.from_backbone(folder, head_init="score").eval()
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        scored = values.score([prompt], [response])[0]
        score = scored.prompt_reward + sum(sentence.reward for sentence in scored.sentences)
        assert last.score([prompt], [response])[0].reward == pytest.approx(score, abs=1e-5)
        assert response_level.score([prompt], [response])[0].reward == pytest.approx(score, abs=1e-5)


def test_it_is_saved_and_loaded_as_any_model(build: Build, tmp_path: Path) -> None:
    model = SentenceRewardModel.from_backbone(build("qwen3"), head_init="score", dtype="bfloat16").eval()
    model.save_pretrained(tmp_path / "saved")
    again = SentenceRewardModel.from_pretrained(tmp_path / "saved", dtype="bfloat16")
    assert torch.equal(again.head.value.weight, load_file(tmp_path / "qwen3" / "model.safetensors")["score.weight"])
    assert [row.reward for row in again.score(PROMPTS, RESPONSES)] == [row.reward for row in model.score(PROMPTS, RESPONSES)]


def test_a_bias_and_shards_are_read(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build("llama")
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    classifier.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    model = SentenceRewardModel.from_backbone(folder, head_init="score")
    assert torch.equal(model.head.value.weight, classifier.score.weight)
    assert model.head.value.bias.item() == 0


def test_an_output_layer_of_another_name_and_with_a_bias(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    """Its backbone is no decoder, which is refused where the model runs; the layer is read as any."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1, **SHAPE)
    classifier = AutoModelForSequenceClassification.from_config(config)
    nn.init.normal_(classifier.classifier.bias)
    classifier.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = SentenceRewardModel.from_backbone(tmp_path, head_init="score")
    assert torch.equal(model.head.value.weight, classifier.classifier.weight)
    assert torch.equal(model.head.value.bias, classifier.classifier.bias)
    with pytest.raises(UserError, match="causal"):
        model.score(PROMPTS[:1], RESPONSES[:1])


def test_what_has_no_such_score_is_refused(build: Build, tiny_backbone_dir: Path, awake_model: Any, tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            SentenceRewardModel.from_backbone(folder, head_init="score")
        assert "\n" not in str(error.value)

    refused(build("gpt_neox", num_labels=2), r"has 2 outputs, and a reward model has one \(num_labels=1\)")
    refused(tiny_backbone_dir, r"is no sequence classifier \(LlamaModel\), so it has no score to start from\. Start from a reward model")
    awake_model().save_pretrained(tmp_path / "ours")
    AutoTokenizer.from_pretrained(tiny_backbone_dir).save_pretrained(tmp_path / "ours")
    refused(tmp_path / "ours", r"is a sentence reward model already\. Go on training it with --model_name_or_path")

    folder = build("llama")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, r"is a LoRA adapter\. Merge it")
    (folder / "adapter_config.json").unlink()
    with_weights(folder, lambda weights: weights.update({"score.weight": torch.full((1, 32), torch.nan)}))
    refused(folder, r"score\.weight holds NaN or infinity")
    with_weights(folder, lambda weights: weights.update({"score.weight": torch.zeros(1, 64)}))
    refused(folder, r"score\.weight is \[1, 64\], and config\.json says \[1, 32\]")
    # transformers would start the layer at random, and say so in a table.
    with_weights(folder, lambda weights: weights.pop("score.weight"))
    refused(folder, r"the files hold no score\.weight, so there is no score to start from\. Start from a reward model")

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForSequenceClassification": "code.Classifier"}}))
    refused(folder, r"is a classifier with code of its own")


def test_a_score_of_two_layers_is_refused(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_layers=1, n_heads=2, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is not one linear layer on the last hidden state \(pre_classifier: Linear, classifier: Linear\)"):
        SentenceRewardModel.from_backbone(tmp_path, head_init="score")


def test_the_start_of_linear_layers_is_torch_s(tiny_backbone_dir: Path) -> None:
    torch.manual_seed(3)
    head = SentenceRewardModel.from_backbone(tiny_backbone_dir, head_init="linear", attention_size=64).head
    bound = 32**-0.5
    for name in ("value", "query", "key"):
        for weight in head.get_submodule(name).parameters():
            assert 0 < weight.abs().max() <= bound
    # Uniform, not normal: the spread is that of the bound.
    assert head.query.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    torch.manual_seed(3)
    assert torch.equal(
        SentenceRewardModel.from_backbone(tiny_backbone_dir, head_init="linear", attention_size=64).head.key.bias, head.key.bias
    )
    assert not SentenceRewardModel.from_backbone(tiny_backbone_dir).head.value.weight.any()
    with pytest.raises(ValueError, match="head_init must be one of zero, linear, score, got 'random'"):
        SentenceRewardModel.from_backbone(tiny_backbone_dir, head_init="random")  # type: ignore[arg-type]  # what a user may type


def test_the_configuration_is_the_backbone_s(build: Build) -> None:
    folder = build("gemma")
    model = SentenceRewardModel.from_backbone(folder, head_init="score")
    assert model.config.backbone_config is not None
    assert model.config.backbone_config.model_type == AutoConfig.from_pretrained(folder).model_type == "gemma"
