"""QLoRA on bitsandbytes itself, on a CPU: gradients of the rounded backbone, the same model when it is loaded again, and a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from srm.cli.train import main
from srm.data import encode_comparisons, read_comparisons
from srm.modeling import SentenceRewardModel
from srm.training import ModelArguments, RewardConfig, SentenceRewardTrainer, parse_arguments
from srm.training.build import build_model
from srm.training.lora import add_adapters

WAYS = {
    "nf4": ["--load_in_4bit"],
    "fp4 nested": ["--load_in_4bit", "--bnb_4bit_quant_type", "fp4", "--use_bnb_nested_quant", "--gradient_checkpointing"],
    "8 bit": ["--load_in_8bit"],
}
TEXTS = (["Is this right?", "Is bread warm?"], ["It is warm. No, it is wrong!", "The bread is warm. It was warm there. Yes."])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = (
        {"prompt": "Is it?" + " So?" * (i % 3), "chosen": "It is warm. " * (1 + i % 4), "rejected": "No! It is wrong."} for i in range(16)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def flags(tiny_backbone_dir: Path, pairs: Path, tmp_path: Path) -> list[str]:
    words = f"--model_name_or_path {tiny_backbone_dir} --dataset_name {pairs} --output_dir {tmp_path / 'out'} --use_peft --lora_r 4"
    words += " --lora_dropout 0 --attention_size 8 --learning_rate 1e-2 --max_steps 4 --save_steps 2 --disable_tqdm true --use_cpu true"
    return words.split()


def settings(flags: list[str], *more: str) -> tuple[ModelArguments, RewardConfig]:
    model, _, config = parse_arguments([*flags, *more])
    return model, config


@pytest.mark.parametrize("way", WAYS)
def test_a_run_its_resume_and_its_folder(flags, tmp_path, way, capsys):
    assert main([*flags, *WAYS[way]]) == 0
    assert ("packing none" in capsys.readouterr().out) == (way == "8 bit")
    out = tmp_path / "out"
    saved = load_file(out / "adapter_model.safetensors")
    assert all("lora_" in name or "head" in name for name in saved)
    loaded = SentenceRewardModel.from_pretrained(out)
    # Whole numbers again, and nothing of bitsandbytes in what is saved from here.
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    loaded.save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()
    rewards = [result.reward for result in loaded.score(*TEXTS)]
    assert [result.reward for result in SentenceRewardModel.from_pretrained(tmp_path / "merged").score(*TEXTS)] == pytest.approx(rewards)
    assert 0 not in rewards
    assert main([*flags, *WAYS[way], "--resume_from_checkpoint", str(out / "checkpoint-2")]) == 0
    again = load_file(out / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], again[name]) for name in saved)


@pytest.mark.parametrize(("way", "tolerance"), [("nf4", 1e-5), ("fp4 nested", 1e-5), ("8 bit", 0.1)])
def test_the_loaded_model_is_the_trained_one(flags, pairs, tmp_path, way, tolerance):
    """The adapter is merged into the rounded weights: into the whole ones it would be another model."""
    model, config = settings(flags, *WAYS[way])
    adapted = build_model(model, config)
    rows, _ = encode_comparisons(read_comparisons(str(pairs)), adapted.get_base_model().encoder, max_length=200, progress=False)
    trainer = SentenceRewardTrainer(adapted, config, rows)
    trainer.train()
    trainer.save_model()
    want = [result.reward for result in adapted.get_base_model().eval().score(*TEXTS)]
    got = [result.reward for result in SentenceRewardModel.from_pretrained(tmp_path / "out").score(*TEXTS)]
    assert got == pytest.approx(want, rel=tolerance, abs=tolerance)


def gradients(adapted: PeftModel, config: RewardConfig, pairs: Path) -> dict[str, torch.Tensor]:
    """Of all that is trained, from the same start, behind a pass in eval mode, after which bitsandbytes has none on some CPUs."""
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in sorted(trained.items()):
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    rows, _ = encode_comparisons(read_comparisons(str(pairs)), adapted.get_base_model().encoder, max_length=200, progress=False)
    (inputs,) = SentenceRewardTrainer(adapted, config, rows)._collator([[(row, True) for row in rows]])
    adapted.eval()(batch=inputs["batch"])
    adapted.train()(batch=inputs["batch"]).reward.square().sum().backward()
    return {name: weight.grad for name, weight in trained.items()}


@pytest.mark.parametrize("way", ["nf4", "fp4 nested"])
def test_gradients_are_those_of_the_rounded_weights(flags, pairs, way):
    model, config = settings(flags, *WAYS[way])
    adapted = build_model(model, config)
    kwargs = {"quantization_config": adapted.get_base_model().backbone.config.quantization_config}
    whole = SentenceRewardModel.from_backbone(model.model_name_or_path, attention_size=8, model_kwargs=kwargs)
    whole.backbone.dequantize(dtype=torch.float32)
    got, expected = (gradients(one, config, pairs) for one in (adapted, add_adapters(whole, model)))
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert any(gradient.abs().max() > 1e-3 for name, gradient in got.items() if "lora_A" in name)


def test_weights_that_are_rounded_already_take_adapters_alone(flags, tiny_backbone_dir, tmp_path, capsys):
    from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig

    rounded = AutoModel.from_pretrained(tiny_backbone_dir, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    rounded.save_pretrained(tmp_path / "rounded")
    AutoTokenizer.from_pretrained(tiny_backbone_dir).save_pretrained(tmp_path / "rounded")
    words = [*flags, "--model_name_or_path", str(tmp_path / "rounded")]
    assert main([*words, "--use_peft", "false"]) == 1
    assert "these weights are quantised, so that only adapters can be trained. Add --use_peft." in capsys.readouterr().err
    assert main(words) == 0
    assert SentenceRewardModel.from_pretrained(tmp_path / "out").score(*TEXTS)


def test_a_trained_model_is_not_rounded(flags, tmp_path, capsys):
    assert main([*flags, "--output_dir", str(tmp_path / "first")]) == 0
    assert main([*flags, "--model_name_or_path", str(tmp_path / "first"), "--load_in_4bit"]) == 1
    assert "is a trained reward model, and only a plain backbone is loaded in 4 or 8 bits" in capsys.readouterr().err
