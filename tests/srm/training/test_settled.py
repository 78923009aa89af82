"""What Trainer and accelerate would do to a reward model, and is settled before they do it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from srm.training.accelerate_setup import place_model
from srm.training.dropout import disable_dropout


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        # A module, a number that functions read from a module, one that they read from the configuration.
        ("gpt2", {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "n_embd": 16, "n_layer": 1, "n_head": 2}),
        ("opt", {"dropout": 0.5, "ffn_dim": 16, "word_embed_proj_dim": 16}),
        ("starcoder2", {"residual_dropout": 0.5, "embedding_dropout": 0.5, "num_key_value_heads": 2}),
        ("falcon", {"hidden_dropout": 0.5}),
    ],
)
def test_every_dropout_is_off(architecture: str, settings: dict[str, Any]) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
    model = AutoModel.from_config(CONFIG_MAPPING[architecture](**(size | settings))).train()
    ids = torch.arange(3, 19)[None]

    def differ() -> bool:
        return not torch.equal(model(input_ids=ids).last_hidden_state, model(input_ids=ids).last_hidden_state)

    assert differ()
    disable_dropout(model)
    assert not differ()


@pytest.mark.parametrize("flag", ["bf16_full_eval", "include_num_input_tokens_seen"])
def test_what_trainer_would_do_wrong_is_off_and_said(flag, new_model, rows, make_trainer, caplog):
    """Trainer rounds the model in place for an evaluation, and would save it so; and it counts no tokens of a packed batch."""
    trainer = make_trainer(new_model(), rows, eval_dataset=rows[:4], max_steps=1, **{flag: True})
    trainer.train()
    trainer.evaluate()
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    assert not any("num_input_tokens_seen" in line for line in trainer.state.log_history)
    assert f"--{flag} has no effect: " in caplog.text


def test_a_model_is_put_on_its_device_where_it_is_whole(new_model, monkeypatch):
    """Before the proofs of what it can run packed, which depends on the device."""
    model, args = new_model(), SimpleNamespace(fsdp=None, deepspeed=None, device=torch.device("meta"))
    for sharded in ({"fsdp": "full_shard"}, {"deepspeed": "file.json"}):
        place_model(model, SimpleNamespace(**{**vars(args), **sharded}))
    with monkeypatch.context() as launched:
        launched.setenv("ACCELERATE_USE_FSDP", "true")
        place_model(model, args)
    assert model.device.type == "cpu"
    place_model(model, args)
    assert model.device.type == "meta"
