"""run_backbone under checkpointing, peft, compile and autocast; switching attention on and off; the report."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, Gemma2Config, Gemma2ForCausalLM

from srm.packing import UnsupportedBackboneError, enable, pack, report, run_backbone, run_to_logits
from srm.packing.attention import check_arguments
from srm.packing.backbone import restore
from srm.packing.backends import VARIABLE
from srm.packing.plan import AttentionPlan


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("mode", ["shared", "none"])
def test_gradient_checkpointing_changes_nothing(
    mode: str,
    use_reentrant: bool,
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    token_rows: Callable[..., Any],
    gradients: Callable[..., Any],
    assert_gradients_close: Callable[..., None],
) -> None:
    model, groups = make_model(attn_implementation="sdpa").train(), make_groups()
    batch, other = pack(groups, mode=mode, pad_token_id=0), pack(groups, mode="none" if mode == "shared" else "shared", pad_token_id=0)

    def run(between: bool) -> Any:
        hidden = run_backbone(model, batch)
        if between:  # a batch of the other mode before the backward pass recomputes the layers
            with torch.no_grad():
                run_backbone(model, other)
        return gradients(model, [hidden[rows] for rows in token_rows(groups, batch)])

    expected = run(between=False)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_gradients_close(run(between=False), expected, 1e-6)
    assert_gradients_close(run(between=True), expected, 1e-6)


def test_lora(
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    token_rows: Callable[..., Any],
    one_by_one: Callable[..., Any],
    gradients: Callable[..., Any],
    assert_gradients_close: Callable[..., None],
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model, groups = peft.get_peft_model(make_model(), config).eval(), make_groups()
    expected = one_by_one(model, groups)
    expected_gradients = gradients(model, expected)
    assert all("lora" in name for name in expected_gradients)
    batch = pack(groups, pad_token_id=0)
    hidden = run_backbone(model, batch)
    actual = [hidden[rows] for rows in token_rows(groups, batch)]
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)
    assert_gradients_close(gradients(model, actual), expected_gradients)


def test_compiled_backbone_over_changing_layouts(
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    token_rows: Callable[..., Any],
    gradients: Callable[..., Any],
    assert_gradients_close: Callable[..., None],
) -> None:
    model = make_model("mistral", sliding_window=5, num_hidden_layers=1)
    compiled = torch.compile(model, backend="aot_eager")
    # The second layout makes the token count dynamic; from then on nothing compiles again.
    for seed, lengths in enumerate([((4, (3, 2)),), ((2, (5, 1, 4)), (6, (2,))), ((9, (1,)), (3, (3, 3)))]):
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        groups = make_groups(lengths, seed)
        batch = pack(groups, pad_token_id=0)
        rows = token_rows(groups, batch)
        eager = run_backbone(model, batch)
        traced = run_backbone(compiled, batch)
        torch.testing.assert_close(traced, eager, atol=1e-5, rtol=1e-5)
        expected = gradients(model, [eager[r] for r in rows])
        assert_gradients_close(gradients(model, [traced[r] for r in rows]), expected)
        compiled_now = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
        assert (compiled_now > 0) == (seed < 2)


@pytest.mark.parametrize("mode", ["shared", "packed"])
def test_autocast(mode: str, make_model: Callable[..., Any], make_groups: Callable[..., Any], token_rows: Callable[..., Any]) -> None:
    model, groups = make_model(attn_implementation="sdpa"), make_groups()
    packed, padded = pack(groups, mode=mode, pad_token_id=0), pack(groups, mode="none", pad_token_id=0)
    exact = run_backbone(model, padded)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = run_backbone(model, packed)
    hidden.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for rows, padded_rows in zip(token_rows(groups, packed), token_rows(groups, padded), strict=True):
        error = (hidden[rows] - exact[padded_rows]).norm(dim=1) / exact[padded_rows].norm(dim=1)
        assert error.max() < 0.1


def test_dropout_is_off_in_eval_and_on_in_training(make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model, batch = make_model(attention_dropout=0.5), pack(make_groups(), pad_token_id=0)
    with torch.no_grad():
        assert torch.equal(run_backbone(model, batch), run_backbone(model, batch))
        model.train()
        assert not torch.allclose(run_backbone(model, batch), run_backbone(model, batch), atol=1e-3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_switching_on_and_off(attention: str, make_model: Callable[..., Any]) -> None:
    model = make_model(attn_implementation=attention)
    for _ in range(2):
        enable(model)
        assert model.config._attn_implementation == "srm_packed"
    for _ in range(2):
        restore(model)
        assert model.config._attn_implementation == attention


def test_a_copy_remembers_its_own_attention(make_model: Callable[..., Any]) -> None:
    model = make_model(attn_implementation="eager")
    enable(model)
    twin = copy.deepcopy(model)
    restore(twin)
    assert (model.config._attn_implementation, twin.config._attn_implementation) == ("srm_packed", "eager")


def test_a_model_built_from_an_enabled_config_runs_in_every_mode(make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model = make_model(attn_implementation="eager")
    enable(model)
    twin = AutoModel.from_config(model.config).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for mode in ("shared", "none"):
            batch = pack(make_groups(), mode=mode, pad_token_id=0)
            torch.testing.assert_close(run_backbone(twin, batch), run_backbone(model, batch), atol=1e-5, rtol=1e-5)


def test_saved_config_does_not_know_about_packing(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model = make_model()
    enable(model)
    model.save_pretrained(tmp_path)
    assert "srm" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_packed_attention_without_a_plan_is_an_error(make_model: Callable[..., Any]) -> None:
    model = make_model()
    enable(model)
    with pytest.raises(UnsupportedBackboneError, match="no `srm_plan` reached its attention"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


def test_tokens_added_on_the_way_are_an_error(make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model = make_model()
    enable(model)
    plan = AttentionPlan.from_batch(pack(make_groups(), pad_token_id=0))
    with pytest.raises(UnsupportedBackboneError, match=r"expected one row of 71 tokens, got queries \[1, 4, 3, 8\]"):
        model(input_ids=torch.tensor([[1, 2, 3]]), srm_plan=plan)


def test_no_backend_is_an_error(make_model: Callable[..., Any], make_groups: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "varlen")
    model = make_model()
    enable(model)
    why = r"varlen: it runs on CUDA, not on cpu; SRM_PACKED_ATTENTION allows no other"
    told = rf"cannot run packed: no packed attention can run here \({why}\)\. Use --packing none"
    with pytest.raises(UnsupportedBackboneError, match=told):
        run_backbone(model, pack(make_groups(), pad_token_id=0))


def test_a_mask_of_its_own_is_an_error(make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model, batch = make_model(), pack(make_groups(), pad_token_id=0)
    enable(model)
    mask = torch.zeros(1, 1, batch.num_tokens, batch.num_tokens)
    with pytest.raises(UnsupportedBackboneError, match="builds an attention mask of its own"):
        model(input_ids=batch.input_ids, attention_mask=mask, srm_plan=AttentionPlan.from_batch(batch))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        *(({name: torch.zeros(1)}, rf"\(`{name}`\)") for name in ("sinks", "position_bias", "indices", "block_indices")),
        ({"is_causal": False}, "bidirectional"),
    ],
    ids=str,
)
def test_what_no_backend_computes_is_an_error(arguments: dict[str, Any], reason: str) -> None:
    layer = torch.nn.Module()
    check_arguments(layer, None, dict.fromkeys(arguments))
    with pytest.raises(UnsupportedBackboneError, match=reason):
        check_arguments(layer, None, arguments)


def test_a_model_without_the_attention_interface_is_not_switched(make_model: Callable[..., Any]) -> None:
    model = make_model("falcon")
    with pytest.raises(UnsupportedBackboneError, match="does not take its attention from transformers' AttentionInterface"):
        enable(model)
    assert model.config._attn_implementation == "eager"


def test_padded_batch_has_no_plan(make_groups: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="padded"):
        AttentionPlan.from_batch(pack(make_groups(), mode="none", pad_token_id=0))


def test_a_plan_is_read_back_where_the_host_has_no_copy(make_groups: Callable[..., Any]) -> None:
    batch = pack(make_groups(), pad_token_id=0)
    plans = [AttentionPlan.from_batch(each) for each in (batch, dataclasses.replace(batch, segments=None))]
    assert plans[0].lengths == plans[1].lengths == (9, 4, 1, 6, 1, 7, 1, 3, 2, 3, 1, 4, 1, 5, 2, 8, 2, 11)
    assert plans[0].parents == plans[1].parents == (-1, 0, 0, 0, -1, 4, 4, -1, *[7] * 8, -1, 16)


def test_not_a_transformers_model(make_groups: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"expected a transformers PreTrainedModel.*got Linear"):
        run_backbone(torch.nn.Linear(2, 2), pack(make_groups(), pad_token_id=0))


def test_report(make_model: Callable[..., Any]) -> None:
    model = make_model(attn_implementation="eager")
    assert str(report(model)).startswith("attention eager (padded); packed backend sdpa: one scaled_dot_product_attention call per segment")
    enable(model)
    found = report(model)
    assert (found.attention, found.own_attention, found.backend) == ("srm_packed", "eager", "sdpa")
    assert (found.device, found.dtype) == ("cpu", "float32")


@pytest.mark.parametrize("mode", ["shared", "packed", "none"])
def test_logits_of_named_rows(mode: str, make_groups: Callable[..., Any], token_rows: Callable[..., Any]) -> None:
    """By the model's own output layer, which caps them, as each response alone has them."""
    settings = {
        "vocab_size": 100,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    config = Gemma2Config(
        **settings, num_key_value_heads=1, initializer_range=0.5, final_logit_softcapping=2.0, attn_logit_softcapping=None
    )
    model, groups = Gemma2ForCausalLM(config).eval(), make_groups()
    batch = pack(groups, mode=mode, pad_token_id=0)
    # The last tokens come first, and one row is asked for twice.
    wanted = [rows[-2:][::-1] + rows[:1] for rows in token_rows(groups, batch)]
    with torch.no_grad():
        logits, _ = run_to_logits(model, batch, torch.tensor([row for rows in wanted for row in rows]))
        pairs = [(group, response) for group in groups for response in group.responses]
        for (group, response), found in zip(pairs, logits.split([len(rows) for rows in wanted]), strict=True):
            restore(model)
            alone = model(torch.tensor([[*group.prompt_ids, *response.ids]])).logits[0]
            assert alone.abs().max() <= 2.0
            rows = list(range(len(alone)))
            torch.testing.assert_close(found, alone[rows[-2:][::-1] + rows[:1]], atol=1e-5, rtol=1e-5)
