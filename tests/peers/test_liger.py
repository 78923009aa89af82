"""Liger's kernels in a backbone. They are Triton's, and need a GPU: here they are put in, and not run."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXModel

from srm.errors import UserError
from srm.modeling import SentenceRewardModel
from srm.training import RewardConfig, SentenceRewardTrainer


def trainer(model: SentenceRewardModel, tmp_path: Path, **more: object) -> SentenceRewardTrainer:
    return SentenceRewardTrainer(model, RewardConfig(output_dir=str(tmp_path / "out"), use_cpu=True, use_liger_kernel=True, **more))


def test_the_backbone_gets_them(tiny_backbone_dir, tmp_path):
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir)
    forward = model.backbone.forward
    trainer(model, tmp_path, liger_kernel_config={"rope": False})
    assert "liger" in model.backbone.norm.forward.__func__.__module__
    assert "liger" in model.backbone.layers[0].mlp.forward.__func__.__module__
    # Not the language model's forward pass, which ends in a loss.
    assert model.backbone.forward == forward


def test_a_backbone_without_any_is_refused(tiny_tokenizer_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    GPTNeoXModel(GPTNeoXConfig(**sizes, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "neox")
    tokenizer.save_pretrained(tmp_path / "neox")
    with pytest.raises(UserError, match="--use_liger_kernel: Liger has no kernels for a gpt_neox backbone"):
        trainer(SentenceRewardModel.from_backbone(tmp_path / "neox"), tmp_path)
