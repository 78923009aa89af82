"""The last layer on boundary rows: the same states and gradients as on all rows, for every decoder for which that is proved."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from srm.errors import UserError
from srm.packing import LastLayer, pack, prove_last_layer, run_backbone, run_to_boundaries
from srm_kernels import SentenceLayout
from tests.srm.packing.architectures import ARCHITECTURES
from tests.srm.packing.last_layer_runs import boundary_states, proved

# One product makes queries, keys and values.
FUSED = {"phi3", "gpt_neox"}
# Packing refuses these on a CPU; padded, with attention of their own, their last layer may run on boundary rows all the same.
PADDED = {
    "gemma2": {"head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "phi": {},
    "cohere": {},
    "mixtral": {"num_local_experts": 2},
}
REFUSED = {
    "gpt2": (ARCHITECTURES["gpt2"], "its code takes no fewer"),
    "lfm2": ({"layer_types": ["full_attention", "conv"]}, "its rows mix behind the last attention"),
    "bloom": ({"n_head": 4, "n_layer": 1}, "does not take its attention from transformers' AttentionInterface"),
    "stablelm": ({}, "drops keyword arguments"),
    "mamba": ({}, "no attention call passes"),
}


@contextmanager
def counted(model: Any) -> Iterator[dict[str, list[int]]]:
    """The rows of each Linear's input, by the module's name, in this block."""
    seen: dict[str, list[int]] = {}
    handles = [
        module.register_forward_hook(
            lambda _, args, output, name=name: seen.setdefault(name, []).append(args[0].numel() // args[0].shape[-1])
        )
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("mode", ["shared", "packed", "none"])
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in REFUSED])
def test_states_and_gradients_are_those_of_all_rows(
    architecture: str, mode: str, make_model: Callable[..., Any], make_groups: Callable[..., Any], assert_same_as_all_rows: Any
) -> None:
    model = make_model(architecture, **ARCHITECTURES[architecture])
    inside = ("attention output",) if architecture in FUSED else ("queries", "attention output")
    assert proved(model, mode) == LastLayer(rows="boundaries", inside=inside)
    assert_same_as_all_rows(model, pack(make_groups(), mode=mode, pad_token_id=0))


@pytest.mark.parametrize("architecture", PADDED)
def test_padded_rows_of_what_does_not_pack(
    architecture: str, make_model: Callable[..., Any], make_groups: Callable[..., Any], assert_same_as_all_rows: Any
) -> None:
    model = make_model(architecture, **PADDED[architecture])
    proved(model, "none")
    assert model.config._attn_implementation == "eager"
    assert_same_as_all_rows(model, pack(make_groups(), mode="none", pad_token_id=0))


@pytest.mark.parametrize("architecture", REFUSED)
def test_all_rows_where_fewer_are_not_proved(
    architecture: str, make_model: Callable[..., Any], make_groups: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings, reason = REFUSED[architecture]
    model = make_model(architecture, **settings)
    batch = pack(make_groups(), mode="none", pad_token_id=0)
    with torch.no_grad(), caplog.at_level(logging.INFO, logger="srm.packing.last_layer_proof"):
        expected = run_backbone(model, batch)
        found = prove_last_layer(model, packed=False)
        hidden, layout = run_to_boundaries(model, batch)
    assert found.rows == "all"
    assert reason in found.reason
    assert [record.message for record in caplog.records if record.name.startswith("srm")] == [
        f"{type(model).__name__}, padded batches: last layer on all rows ({found.reason})"
    ]
    assert torch.equal(hidden, expected)
    assert layout is batch.layout
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules()), "hooks are left"
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("mode", ["shared", "none"])
@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt_neox", "cohere2", "deepseek_v3"])
def test_what_runs_on_fewer_rows(architecture: str, mode: str, make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model, batch = make_model(architecture, **ARCHITECTURES[architecture]), pack(make_groups(), mode=mode, pad_token_id=0)
    proved(model, mode)
    with torch.no_grad(), counted(model) as seen:
        run_to_boundaries(model, batch)
    rows, tokens = batch.boundaries.unique().numel(), batch.num_tokens
    last = {name.split("layers.1.")[1]: found for name, found in seen.items() if "layers.1." in name}
    # Keys and values, and what is made in one product with them.
    whole = {name for name in last if any(part in name for part in ("k_proj", "v_proj", "kv_", "qkv_proj", "query_key_value"))}
    assert {name: last[name] for name in whole} == {name: [tokens] for name in whole}
    narrow = {name: found for name, found in last.items() if name not in whole and "experts" not in name}
    assert len(narrow) >= 2
    assert narrow == {name: [rows] for name in narrow}
    assert all(found == [tokens] for name, found in seen.items() if "layers.0." in name and "experts" not in name)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("mode", ["shared", "none"])
def test_gradient_checkpointing(
    mode: str,
    use_reentrant: bool,
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    gradients: Callable[..., Any],
    assert_gradients_close: Callable[..., None],
) -> None:
    model = make_model(attn_implementation="sdpa").train()
    batches = [pack(make_groups(seed=seed), mode=mode, pad_token_id=0) for seed in range(2)]
    batches[1] = pack(make_groups(((3, (9, 4)), (5, (2,)))), mode=mode, pad_token_id=0)
    expected = gradients(model, [run_backbone(model, batch)[batch.boundaries] for batch in batches])
    proved(model, mode)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    states = [boundary_states(model, batch) for batch in batches]
    with torch.no_grad():  # all rows, of the other mode, before the layers run again
        run_backbone(model, pack(make_groups(), mode="none" if mode == "shared" else "shared", pad_token_id=0))
    # The layers of both batches run again, each on its own rows.
    assert_gradients_close(gradients(model, states), expected, 1e-5)


@pytest.mark.parametrize("adapters_first", [True, False])
@pytest.mark.parametrize("mode", ["shared", "none"])
def test_adapters_in_the_last_layer(
    mode: str, adapters_first: bool, make_model: Callable[..., Any], make_groups: Callable[..., Any], assert_same_as_all_rows: Any
) -> None:
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]
    model, batch = make_model(), pack(make_groups(), mode=mode, pad_token_id=0)
    if not adapters_first:
        proved(model, mode)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    proved(adapted, mode)
    assert_same_as_all_rows(adapted, batch)
    merged = adapted.merge_and_unload()
    assert_same_as_all_rows(merged.requires_grad_(True), batch)


def test_a_compiled_backbone(
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    gradients: Callable[..., Any],
    assert_gradients_close: Callable[..., None],
) -> None:
    model = make_model(num_hidden_layers=1)
    proved(model, "shared")
    compiled = torch.compile(model, backend="aot_eager")
    for seed, lengths in enumerate([((4, (3, 2)),), ((2, (5, 1, 4)), (6, (2,))), ((9, (1,)), (3, (3, 3)))]):
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        batch = pack(make_groups(lengths, seed), pad_token_id=0)
        eager, traced = boundary_states(model, batch), boundary_states(compiled, batch)
        torch.testing.assert_close(traced, eager, atol=1e-5, rtol=1e-5)
        expected = gradients(model, [eager])
        assert_gradients_close(gradients(model, [traced]), expected)
        # The second layout makes lengths dynamic; from then on nothing compiles again.
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs) == (seed < 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", ["shared", "none"])
def test_half_precision_and_autocast(
    mode: str, dtype: torch.dtype, make_model: Callable[..., Any], make_groups: Callable[..., Any]
) -> None:
    model, batch = make_model(attn_implementation="sdpa"), pack(make_groups(), mode=mode, pad_token_id=0)
    proved(model, mode)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, actual = run_backbone(model, batch)[batch.boundaries], boundary_states(model, batch)
    torch.testing.assert_close(actual, expected, atol=0.05, rtol=0.05)
    half = copy.deepcopy(model).to(dtype)
    half._srm_last_layer.clear()
    proved(half, mode)


def test_every_other_call_runs_on_all_rows(make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model, batch = make_model(), pack(make_groups(), pad_token_id=0)
    ids = torch.tensor([[5, 6, 7, 8]])

    def run() -> list[Tensor]:
        with torch.no_grad():
            model.set_attn_implementation("eager")
            plain = model(input_ids=ids, output_hidden_states=True)
            return [run_backbone(model, batch), plain.last_hidden_state, *plain.hidden_states]

    before = run()
    proved(model, "shared")
    proved(model, "none")
    with torch.no_grad():
        run_to_boundaries(model, batch)
    assert all(map(torch.equal, before, run()))
    with torch.no_grad():
        hidden, layout = run_to_boundaries(model, batch, last_layer_rows="all")
    assert torch.equal(hidden, before[0])
    assert layout is batch.layout


def test_output_hidden_states_in_the_config_changes_nothing(make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model, batch = make_model(), pack(make_groups(), pad_token_id=0)
    proved(model, "shared")
    with torch.no_grad():
        expected = boundary_states(model, batch)
        model.config.output_hidden_states = True
        assert torch.equal(boundary_states(model, batch), expected)


def test_a_batch_without_its_rows_and_one_of_boundaries_alone(make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model, batch = make_model(), pack(make_groups(), pad_token_id=0)
    proved(model, "shared")
    bare = dataclasses.replace(batch, read=None)
    layout = SentenceLayout(torch.arange(batch.num_tokens), torch.tensor([0, batch.num_tokens]))
    everywhere = dataclasses.replace(batch, layout=layout)
    with torch.no_grad():
        assert torch.equal(boundary_states(model, bare), boundary_states(model, batch))
        hidden, found = run_to_boundaries(model, everywhere)
        assert torch.equal(hidden, run_backbone(model, batch))
    assert found is layout


def test_an_error_inside_the_layer_leaves_nothing_behind(
    make_model: Callable[..., Any], make_groups: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = make_model(), pack(make_groups(), pad_token_id=0)
    proved(model, "shared")
    with torch.no_grad():
        expected = run_backbone(model, batch)
        for broken in (model.layers[-1].mlp, model.layers[-1].self_attn):
            monkeypatch.setattr(broken, "forward", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run_to_boundaries(model, batch)
            monkeypatch.undo()
            # Its modules by themselves, too, on states of the same shape.
            states = torch.randn(*batch.input_ids.shape, 32)
            assert model.layers[-1].mlp(states).ne(0).any(-1).all()
            assert torch.equal(run_backbone(model, batch), expected)


def test_threads_do_not_meet(make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model = make_model()
    proved(model, "shared")
    batches = [pack(make_groups(((3, (2 + seed, 9)), (4 + seed, (5,))), seed), pad_token_id=0) for seed in range(4)]
    with torch.no_grad():
        expected = [boundary_states(model, batch) for batch in batches]
    found: dict[int, list[Tensor]] = {}

    def run(which: int) -> None:
        with torch.no_grad():
            found[which] = [boundary_states(model, batches[which]) for _ in range(20)]

    threads = [threading.Thread(target=run, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(states, want) for which, want in enumerate(expected) for states in found[which])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copied", "pickled"])
def test_a_copy_runs_by_itself(duplicate: Callable[[Any], Any], make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model, batch = make_model(), pack(make_groups(), pad_token_id=0)
    proved(model, "shared")
    twin = duplicate(model)
    with torch.no_grad():
        expected = boundary_states(model, batch)
        model.layers[-1].mlp.down_proj.weight.zero_()
        assert torch.equal(boundary_states(twin, batch), expected)
        assert not torch.equal(boundary_states(model, batch), expected)


def test_layers_that_changed_since_are_an_error(make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model, batch = make_model(), pack(make_groups(), pad_token_id=0)
    proved(model, "shared")
    model.layers = model.layers[:1]
    model.config.num_hidden_layers = 1
    with pytest.raises(UserError, match=r"was to run on \d+ rows and ran on 71: .*set last_layer_rows to all\.$"):
        run_to_boundaries(model, batch)
    assert run_to_boundaries(model, batch, last_layer_rows="all")[0].shape[0] == 71
