"""check_decoder() and probe() accept what is causal and what packs, refuse the rest with the reason, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from transformers import masking_utils
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral

from srm.errors import UserError
from srm.packing import UnsupportedBackboneError, check_decoder, enable, probe
from srm.packing.backbone import own_attention

WINDOW = {"sliding_window": 5}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN2_MOE = MOE | {"shared_expert_intermediate_size": 16}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 1}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@DTYPES
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("llama", {}), ("gpt2", GPT2), ("mamba", {}), ("qwen3_moe", MOE | {"head_dim": 8}), ("gemma3_text", WINDOW | {"head_dim": 8})],
)
def test_decoders(architecture: str, settings: dict[str, Any], dtype: torch.dtype, make_model: Callable[..., Any]) -> None:
    check_decoder(make_model(architecture, **settings).to(dtype))


@DTYPES
@pytest.mark.parametrize("check", [check_decoder, probe])
@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("t5", T5, "it is an encoder-decoder model"),
        ("bert", {}, "its attention is bidirectional"),
        # As weak as initial weights make it, and in layers that do not say so of themselves.
        ("bert", {"initializer_range": 0.02}, "its attention is bidirectional"),
        ("deberta-v2", {"initializer_range": 0.02}, "its attention is bidirectional"),
    ],
)
def test_encoders_are_refused_whatever_the_packing(
    architecture: str, settings: dict[str, Any], reason: str, check: Callable[..., None], dtype: torch.dtype, make_model: Callable[..., Any]
) -> None:
    model = make_model(architecture, **settings).to(dtype).train()
    with pytest.raises(UserError, match=rf"cannot be the backbone of a reward model: {reason}.*Use a causal decoder\.$") as caught:
        check(model)
    assert not isinstance(caught.value, UnsupportedBackboneError)
    assert "packing" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == "eager"
    assert all(module.training for module in model.modules())
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize(("follows", "refused"), [(False, False), (True, True)])
def test_rounding_that_depends_on_all_tokens_is_not_bidirectional(
    follows: bool, refused: bool, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a mixture of experts, where how many tokens an expert gets decides in which order it adds."""
    plain = modeling_llama.LlamaMLP.forward

    def rounding(self: Any, x: torch.Tensor) -> torch.Tensor:
        return plain(self, x) + 1e-3 * (x if follows else x.detach()).mean(1, keepdim=True)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", rounding)
    if refused:
        with pytest.raises(UserError, match="bidirectional"):
            check_decoder(make_model())
    else:
        check_decoder(make_model())


@DTYPES
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("mistral", WINDOW),
        ("gemma3_text", WINDOW | {"head_dim": 8}),
        ("qwen2_moe", QWEN2_MOE),
        ("gpt2", GPT2),
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ],
)
def test_accepts(architecture: str, settings: dict[str, Any], dtype: torch.dtype, make_model: Callable[..., Any]) -> None:
    probe(make_model(architecture, **settings).to(dtype))


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("gemma2", {"head_dim": 8}, r"caps the scores \(`softcap`\)"),
        ("deepseek_v4", {}, "attend to compressed keys.*heavily_compressed_attention"),
        ("mamba", {}, "takes no `position_ids`"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "a response changes when its neighbour does.*by convolution or recurrence"),
        ("bloom", {"n_head": 4, "n_layer": 1}, "takes no `position_ids`"),
        ("falcon", {}, "does not take its attention from transformers' AttentionInterface"),
        ("stablelm", {}, "drops keyword arguments"),
    ],
)
def test_refuses(architecture: str, settings: dict[str, Any], reason: str, make_model: Callable[..., Any]) -> None:
    model = make_model(architecture, **settings)
    with pytest.raises(UnsupportedBackboneError, match=f"cannot run packed: .*{reason}.*--packing none") as caught:
        probe(model)
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("size", [24, 64, 100, 4096])
@pytest.mark.parametrize(
    ("architecture", "settings", "name"),
    [
        ("llama4_text", {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2}, "attention_chunk_size"),
        ("qwen2_moe", QWEN2_MOE | {"use_sliding_window": True, "max_window_layers": 2}, "sliding_window"),
    ],
)
def test_refuses_masks_that_the_attention_is_not_told_of(
    architecture: str, settings: dict[str, Any], name: str, size: int, make_model: Callable[..., Any]
) -> None:
    """A few tokens alone would not show them."""
    with pytest.raises(UnsupportedBackboneError, match="its mask is not the causal attention that it asks"):
        probe(make_model(architecture, **settings, **{name: size}))


def chunks(config: Any, **arguments: Any) -> Any:
    config.attention_chunk_size = config.sliding_window
    return masking_utils.create_chunked_causal_mask(config=config, **arguments)


def also(seen: Callable[..., Any]) -> Callable[..., Any]:
    return partial(masking_utils.create_sliding_window_causal_mask, or_mask_function=lambda batch, head, row, column: seen(row, column))


def without(hidden: Callable[..., Any]) -> Callable[..., Any]:
    return partial(masking_utils.create_sliding_window_causal_mask, and_mask_function=lambda batch, head, row, column: ~hidden(row, column))


@pytest.mark.parametrize(
    ("window", "mask"),
    [
        # From the last row of a chunk it looks like a window; the rows looked at end chunks of 20, 26 and 148.
        *((size, chunks) for size in (20, 24, 26, 100, 148)),
        pytest.param(100, also(lambda row, column: column < 4), id="first tokens"),
        pytest.param(100, also(lambda row, column: row == column - 23), id="one ahead"),
        pytest.param(100, also(lambda row, column: (row - column) == 60_000), id="one far back"),
        pytest.param(100, without(lambda row, column: (row - column) == 37), id="one in between"),
        pytest.param(70_000, without(lambda row, column: (row - column) >= 69_999), id="a window one shorter"),
        pytest.param(70_000, also(lambda row, column: (row - column) == 70_000), id="a window one longer"),
    ],
)
def test_refuses_masks_that_are_not_the_window(
    window: int, mask: Callable[..., Any], make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("mistral", sliding_window=window)
    probe(model)
    monkeypatch.setattr(modeling_mistral, "create_sliding_window_causal_mask", mask)
    with pytest.raises(UnsupportedBackboneError, match=f"its mask is not the causal attention within {window} tokens that it asks"):
        probe(model)


def test_refuses_a_cap_that_no_argument_names(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modeling_llama.eager_attention_forward

    def capped(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **kwargs: Any) -> Any:
        key = key.repeat_interleave(module.num_key_value_groups, dim=1)
        value = value.repeat_interleave(module.num_key_value_groups, dim=1)
        scores = 50.0 * torch.tanh(query @ key.transpose(2, 3) * scaling / 50.0) + attention_mask
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    model = make_model(initializer_range=0.02)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", capped)
    with pytest.raises(UnsupportedBackboneError, match=r"differs from plain softmax attention by .*cap the scores"):
        probe(model)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", plain)
    probe(model)


def test_refuses_a_forward_that_takes_no_further_arguments(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, input_ids: torch.Tensor, attention_mask: Any = None, position_ids: Any = None, use_cache: bool = False) -> Any:
        raise AssertionError("never run")

    model = make_model()
    plain = type(model).forward
    monkeypatch.setattr("srm.packing.probing.check_decoder", lambda backbone: None)
    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(UnsupportedBackboneError, match="takes no further keyword arguments"):
        probe(model)
    monkeypatch.setattr(type(model), "forward", plain)
    probe(model)


def test_refuses_positions_that_ignore_position_ids(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = modeling_llama.LlamaRotaryEmbedding.forward

    def by_row(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return rotary(self, x, torch.arange(x.shape[1])[None])

    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", by_row)
    with pytest.raises(UnsupportedBackboneError, match="may not come from `position_ids`"):
        probe(make_model())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_finds_faint_mixing(dtype: torch.dtype, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modeling_llama.LlamaMLP.forward
    strength = {torch.float32: 1e-3, torch.bfloat16: 0.1}[dtype]

    def mixing(self: Any, x: torch.Tensor) -> torch.Tensor:
        return plain(self, x) + strength * x.cumsum(1)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", mixing)
    with pytest.raises(UnsupportedBackboneError, match="tokens mix outside attention"):
        probe(make_model().to(dtype))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("fails_at", "running"), [(None, None), (0, "eager"), (4, "srm_probe"), (6, "srm_packed"), (8, "srm_packed"), (10, "eager")]
)
def test_leaves_the_model_as_it_was(
    packed: bool, fails_at: int | None, running: str | None, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an error in any of its passes through the two layers."""
    model = make_model(attention_dropout=0.5).train()
    model.layers[0].eval()
    if packed:
        enable(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    plain, calls = modeling_llama.LlamaMLP.forward, []

    def break_down(self: Any, x: torch.Tensor) -> torch.Tensor:
        calls.append(self.config._attn_implementation)
        return 1 / 0 if len(calls) - 1 == fails_at else plain(self, x)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", break_down)
    with nullcontext() if fails_at is None else pytest.raises(ZeroDivisionError):
        probe(model)
    assert fails_at is None or calls[-1] == running
    assert model.config._attn_implementation == ("srm_packed" if packed else "eager")
    assert own_attention(model) == "eager"
    assert model.training
    assert not model.layers[0].training
    assert not model.layers[0].mlp.training
    assert model.layers[1].mlp.training
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_fp32_norms_in_a_half_precision_model(make_model: Callable[..., Any]) -> None:
    model = make_model(num_hidden_layers=4).to(torch.bfloat16)
    model.norm.float()
    probe(model)


def test_wrapped_models(make_model: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    probe(peft.get_peft_model(make_model(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)))
    probe(torch.compile(make_model(), backend="aot_eager"))
