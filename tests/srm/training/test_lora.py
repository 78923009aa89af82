"""LoRA: only adapters and head are trained, and nothing of them is lost on disk."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralModel,
)

from srm.errors import UserError
from srm.modeling import SentenceRewardConfig, SentenceRewardModel
from srm.training import ModelArguments, parse_arguments
from srm.training.build import build_model
from srm.training.lora import add_adapters

pytest.importorskip("peft")


def arguments(**settings) -> ModelArguments:
    return ModelArguments(use_peft=True, lora_r=4, lora_dropout=0.0, **settings)


def rewards(model, rows, trainer) -> torch.Tensor:
    (inputs,) = trainer._collator([[(row, True) for row in rows]])
    with torch.no_grad():
        return model.eval()(batch=inputs["batch"]).reward


def test_only_adapters_and_head_are_trained(new_model):
    model = add_adapters(new_model(), arguments())
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert any("backbone.layers.0.self_attn.q_proj.lora_A" in name for name in trained)
    assert any("backbone.layers.1.mlp.down_proj.lora_B" in name for name in trained)
    assert {name.rsplit("default.", 1)[-1] for name in trained if ".head." in name} >= {"value.weight", "query.weight", "key.bias"}
    assert all("lora_" in name or ".head.modules_to_save." in name for name in trained)


@pytest.mark.parametrize("variant", [{}, {"boundary_token": "<END>"}, {"granularity": "response"}], ids=str)
def test_a_saved_adapter_loads_with_its_head(new_model, encode, pairs_file, make_trainer, tmp_path, variant):
    model = new_model(**variant)
    rows = encode(model, pairs_file)
    trainer = make_trainer(add_adapters(model, arguments()), rows, learning_rate=1e-2, max_steps=6, save_strategy="steps", save_steps=6)
    trainer.train()
    trainer.save_model()
    expected = rewards(trainer.model, rows[:4], trainer)
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-6"):
        loaded = SentenceRewardModel.from_pretrained(folder)
        assert isinstance(loaded.config, SentenceRewardConfig)
        torch.testing.assert_close(rewards(loaded, rows[:4], trainer), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            loaded.head.value.weight, trainer.reward_model.head.modules_to_save["default"].value.weight, rtol=0, atol=0
        )
        assert loaded.score(["Is this right?"], ["The bread is warm."])[0].reward != 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["model_type"], saved["boundary_token"]) == ("sentence_reward", variant.get("boundary_token"))
    assert (tmp_path / "run" / "tokenizer.json").is_file()
    # The frozen backbone is not written again.
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_an_adapter_of_a_reward_model_brings_its_own_template(awake_model, tiny_backbone_dir, tmp_path):
    """Whatever training changed beside the weights is that of the adapter's folder, and not of the model it was trained on."""
    trained, template = tmp_path / "trained", tmp_path / "template.jinja"
    awake_model(tiny_backbone_dir).save_pretrained(trained)
    template.write_text("{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}")
    flags = {"model_name_or_path": trained, "dataset_name": "rows.jsonl", "output_dir": tmp_path / "out", "chat_template_path": template}
    words = ["--use_peft", "--packing", "packed", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]
    model_arguments, _, config = parse_arguments(words)
    adapted = build_model(model_arguments, config)

    def reward(model):
        return model.eval().score(["Is this right?"], ["The bread is warm. It is."])[0].reward

    expected = reward(adapted.get_base_model())
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = SentenceRewardModel.from_pretrained(tmp_path / "adapter")
    assert reward(loaded) == pytest.approx(expected, abs=1e-5)
    assert abs(reward(SentenceRewardModel.from_pretrained(trained)) - expected) > 1e-3
    assert loaded.config.packing == "packed"


def test_a_resumed_adapter_run_ends_the_same(new_model, rows, make_trainer, tmp_path):
    settings = {"learning_rate": 1e-2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    dropout = ModelArguments(use_peft=True, lora_r=4, lora_dropout=0.2)
    whole = make_trainer(add_adapters(new_model(), dropout), rows, output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    resumed = make_trainer(add_adapters(new_model(), dropout), rows, output_dir=str(tmp_path / "whole"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    resumed.save_model(str(tmp_path / "resumed"))
    whole.save_model(str(tmp_path / "first"))
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "resumed"))
    assert first.keys() == second.keys()
    assert any("head" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_head_and_adapters_have_their_own_learning_rates(new_model, rows, make_trainer):
    trainer = make_trainer(
        add_adapters(new_model(), arguments()), rows, learning_rate=1e-4, head_learning_rate=2e-3, attention_learning_rate=7e-5
    )
    optimizer = trainer.create_optimizer()
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    rates = {names[id(weight)]: group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert {rate for name, rate in rates.items() if "lora_" in name} == {1e-4}
    head = {name: rate for name, rate in rates.items() if ".head." in name}
    assert {rate for name, rate in head.items() if ".value." in name} == {2e-3}
    assert {rate for name, rate in head.items() if ".value." not in name} == {7e-5}


def test_named_modules_are_the_only_ones_adapted(new_model):
    model = add_adapters(new_model(), arguments(lora_target_modules=["q_proj", "v_proj"]))
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {"q_proj", "v_proj"}


@pytest.mark.parametrize("expression", [r".*layers\.1\..*(q|v)_proj", r"model\.layers\.1\.self_attn\.[qv]_proj"])
def test_one_regular_expression_names_layers(new_model, expression):
    model = add_adapters(new_model(), arguments(lora_target_modules=[expression]))
    adapted = {name.split(".lora_")[0].split("backbone.")[1] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {"layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"}


@pytest.mark.parametrize("variant", [{}, {"boundary_token": "<END>"}], ids=str)
def test_other_modules_are_trained_whole_saved_and_loaded(new_model, encode, pairs_file, make_trainer, tmp_path, variant):
    model = new_model(**variant)
    embedding, norm = (weight.detach().clone() for weight in (model.backbone.embed_tokens.weight, model.backbone.norm.weight))
    rows = encode(model, pairs_file)
    # `score` is the name of trl's head.
    wanted = arguments(lora_modules_to_save=["embed_tokens", "model.norm", "layers.1.mlp", "score"])
    trainer = make_trainer(add_adapters(model, wanted), rows, learning_rate=1e-2, max_steps=4, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    expected = rewards(trainer.model, rows[:4], trainer)
    assert not any("layers.1.mlp" in name for name, _ in trainer.model.named_parameters() if ".lora_" in name)
    loaded = SentenceRewardModel.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(rewards(loaded, rows[:4], trainer), expected, rtol=1e-5, atol=5e-6)
    assert not torch.equal(loaded.backbone.embed_tokens.weight, embedding)
    assert not torch.equal(loaded.backbone.norm.weight, norm)
    # Named in full: peft would also take `input_layernorm` for a `norm`.
    first = new_model(**variant).backbone.layers[0]
    assert torch.equal(loaded.backbone.layers[0].input_layernorm.weight, first.input_layernorm.weight)
    # And a run goes on from its checkpoint to the same end.
    torch.manual_seed(0)
    again = make_trainer(
        add_adapters(new_model(**variant), wanted), rows, learning_rate=1e-2, max_steps=4, output_dir=str(tmp_path / "run")
    )
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    torch.testing.assert_close(rewards(again.model, rows[:4], again), expected, rtol=0, atol=0)


def test_weights_that_are_no_layer_get_adapters(tiny_tokenizer_dir, encode, pairs_file, make_trainer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(**sizes, vocab_size=len(tokenizer), num_local_experts=2, num_experts_per_tok=2, max_position_embeddings=256)
    MixtralModel(config).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    model = SentenceRewardModel.from_backbone(tmp_path / "experts", attention_size=8)
    rows = encode(model, pairs_file)
    with pytest.raises(UserError, match=r"no weight called 'experts\.up'. It has .*experts\.down_proj"):
        add_adapters(model, arguments(lora_target_parameters=["experts.up"]))
    adapted = add_adapters(model, arguments(lora_target_modules=["q_proj"], lora_target_parameters=["mlp.experts.down_proj"]))
    trainer = make_trainer(adapted, rows, learning_rate=1e-2, max_steps=3)
    trainer.train()
    trainer.save_model()
    assert any("experts" in name for name in load_file(tmp_path / "run" / "adapter_model.safetensors"))
    expected = rewards(trainer.model, rows[:4], trainer)
    torch.testing.assert_close(
        rewards(SentenceRewardModel.from_pretrained(tmp_path / "run"), rows[:4], trainer), expected, rtol=1e-4, atol=1e-5
    )


def test_what_peft_refuses_is_one_line(new_model):
    with pytest.raises(UserError, match=r"--use_peft: .*dropout"):
        add_adapters(new_model(), ModelArguments(use_peft=True, lora_target_parameters=["q_proj.weight"], lora_target_modules=["v_proj"]))


def test_unknown_modules_to_save_are_named(new_model):
    with pytest.raises(
        UserError, match=r"--lora_modules_to_save: the backbone has no module called 'lm_head'\. It has down_proj, embed_tokens"
    ):
        add_adapters(new_model(), arguments(lora_modules_to_save=["lm_head"]))


def test_an_adapter_knows_the_revision_of_its_backbone(new_model, adapter, monkeypatch):
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["revision"] == "main"
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "revision": "v2"}))
    asked = []
    load = SentenceRewardModel.from_backbone
    monkeypatch.setattr(
        SentenceRewardModel, "from_backbone", lambda *args, model_kwargs, **kwargs: asked.append(model_kwargs) or load(*args, **kwargs)
    )
    SentenceRewardModel.from_pretrained(adapter, revision="main")
    assert asked == [{"revision": "v2"}]


def test_unknown_modules_are_named(new_model):
    with pytest.raises(UserError, match=r"no linear layer called 'query'. It has down_proj, gate_proj, k_proj"):
        add_adapters(new_model(), arguments(lora_target_modules=["query"]))


@pytest.fixture
def adapter(new_model, rows, make_trainer, tmp_path):
    make_trainer(add_adapters(new_model(), arguments()), rows, max_steps=1).save_model()
    return tmp_path / "run"


def test_the_head_beside_an_adapter_is_saved_in_float32(new_model, tmp_path):
    model = add_adapters(new_model(), arguments())
    model.save_pretrained(tmp_path, state_dict={name: weight.bfloat16() for name, weight in model.state_dict().items()})
    dtypes = {("head" in name, weight.dtype) for name, weight in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def first_lora(name: str) -> bool:
    return name.endswith("layers.0.mlp.down_proj.lora_A.weight")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda saved: {n: w for n, w in saved.items() if not first_lora(n)}, r"1 weights missing \(.*down_proj.lora_A.weight"),
        (lambda saved: {n: w for n, w in saved.items() if "head" not in n}, r"the adapter could not be loaded"),
        (lambda saved: {**saved, "base_model.model.backbone.x.lora_A.weight": torch.ones(2)}, r"1 weights without a place in the model"),
        (lambda saved: {n: w[:1] if first_lora(n) else w for n, w in saved.items()}, r"the adapter could not be loaded"),
        (lambda saved: {n: w * torch.nan if first_lora(n) else w for n, w in saved.items()}, r"is not the one in the file, or is NaN"),
    ],
)
def test_an_adapter_that_is_not_whole_is_one_line(adapter, change, said):
    save_file(change(load_file(adapter / "adapter_model.safetensors")), adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=said):
        SentenceRewardModel.from_pretrained(adapter)


def test_an_adapter_is_a_sequence_classifier(adapter):
    # A head of one step is still at zero.
    saved = load_file(adapter / "adapter_model.safetensors")
    awake = {name: torch.linspace(-1, 1, weight.numel()).view_as(weight) if "head" in name else weight for name, weight in saved.items()}
    save_file(awake, adapter / "adapter_model.safetensors")
    classifier = AutoModelForSequenceClassification.from_pretrained(adapter, num_labels=1)
    want = SentenceRewardModel.from_pretrained(adapter).score(["Hi"], ["Yes. No."])[0].reward
    tokenizer = AutoTokenizer.from_pretrained(classifier.config.name_or_path)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes. No."}]
    logits = classifier(**tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt")).logits
    assert logits.item() == pytest.approx(want, abs=1e-6)
    assert want != 0
    assert classifier.config.pad_token_id is not None


def test_an_adapter_loads_through_automodel(adapter):
    loaded = AutoModel.from_pretrained(adapter, dtype=torch.bfloat16)
    assert isinstance(loaded, SentenceRewardModel)
    assert (loaded.backbone.dtype, loaded.head.value.weight.dtype) == (torch.bfloat16, torch.float32)
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"the adapter could not be loaded \(SafetensorError"):
        AutoModel.from_pretrained(adapter)


@pytest.fixture(scope="module")
def reads_images(tiny_tokenizer_dir, tmp_path_factory):
    """A model with a vision tower, whose attention has the same names as the language model's."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "model_type": "llama", "vocab_size": len(tokenizer)}
    vision = {**sizes, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
    path = tmp_path_factory.mktemp("reads_images")
    LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=3)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"]])
def test_a_vision_tower_gets_no_adapters(reads_images, targets):
    model = add_adapters(SentenceRewardModel.from_backbone(reads_images), arguments(lora_target_modules=targets))
    assert any("vision_tower" in name and "q_proj" in name for name, _ in model.named_modules())
    adapted = [name for name, _ in model.named_parameters() if ".lora_" in name]
    assert adapted
    assert all(".backbone.language_model." in name for name in adapted)


def test_a_layer_of_the_vision_tower_alone_is_no_target(reads_images):
    said = r"the part of the backbone that reads text \(backbone.language_model\) has no linear layer called 'fc1'. It has down_proj"
    with pytest.raises(UserError, match=said):
        add_adapters(SentenceRewardModel.from_backbone(reads_images), arguments(lora_target_modules=["q_proj", "fc1"]))
