"""What the proof of the last layer finds out, says, and leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

from srm.packing import LastLayer, enable, pack, prove_last_layer, report
from tests.srm.packing.last_layer_runs import proved


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_mix_behind_the_last_attention(
    dtype: torch.dtype, packed: bool, make_model: Callable[..., Any], make_groups: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However faintly: less than half precision can tell apart."""
    plain = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: plain(self, x) + 1e-5 * x.cumsum(1))
    found = prove_last_layer(make_model().to(dtype), packed=packed)
    assert found == LastLayer(rows="all", reason="its rows mix behind the last attention")


def test_mixing_without_a_gradient_shows_in_the_states(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: plain(self, x) + 0.1 * x.detach().mean(1, keepdim=True))
    found = prove_last_layer(make_model(), packed=True)
    assert found.rows == "all"
    assert "its states would differ by" in found.reason


def test_queries_that_are_more_than_queries(
    make_model: Callable[..., Any], make_groups: Callable[..., Any], assert_same_as_all_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where attention's output needs all queries, only what follows it runs on fewer rows."""
    plain = modeling_llama.LlamaAttention.forward

    def centred(self: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
        return plain(self, hidden_states, **kwargs)[0] + 0.5 * self.q_proj(hidden_states).cumsum(1), None

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", centred)
    model = make_model(num_key_value_heads=4)
    found = prove_last_layer(model, packed=False)
    assert found.rows == "boundaries"
    assert found.inside == ()
    assert str(found).startswith("last layer on boundary rows: MLP and norm (")
    assert found.reason.startswith("attention on all rows: its states would differ by")
    assert_same_as_all_rows(model, pack(make_groups(), mode="none", pad_token_id=0))


@pytest.mark.parametrize("learned", [False, True])
def test_a_bias_of_the_keys_is_made_on_all_rows(
    learned: bool, make_model: Callable[..., Any], make_groups: Callable[..., Any], assert_same_as_all_rows: Any
) -> None:
    """Doge's mask is made by a product of its own, and starts at zero: nothing differs before it is trained, but its gradient does."""
    model = make_model("doge", keep_window_size=4)
    attention = model.layers[-1].self_attn
    torch.nn.init.zeros_(attention.A)
    assert proved(model, "none").inside == ("queries", "attention output")
    if learned:
        torch.nn.init.normal_(attention.A)
    assert_same_as_all_rows(model, pack(make_groups(), mode="none", pad_token_id=0))


def test_the_report_and_the_log_say_what_runs(make_model: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    assert report(model).last_layer == "last layer on all rows (nothing else was proved)"
    with caplog.at_level(logging.INFO, logger="srm.packing.last_layer_proof"):
        for _ in range(2):
            prove_last_layer(model, packed=True)
    line = "last layer on boundary rows: queries, attention output, MLP and norm"
    assert [record.message for record in caplog.records if record.name.startswith("srm")] == [f"LlamaModel, packed batches: {line}"]
    assert report(model).last_layer == "last layer on all rows (nothing else was proved)", "padded is another proof"
    enable(model)
    assert f"; {line}; float32 on cpu" in str(report(model))


def test_the_proof_leaves_the_model_as_it_was(make_model: Callable[..., Any]) -> None:
    model = make_model(attention_dropout=0.5).train()
    model.layers[0].eval()
    model.requires_grad_(False)
    state = torch.get_rng_state()
    with torch.inference_mode():
        proved(model, "shared")
        proved(model, "none")
    assert model.config._attn_implementation == "eager"
    assert model.training
    assert not model.layers[0].mlp.training
    assert model.layers[1].mlp.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.get_input_embeddings()._forward_hooks
