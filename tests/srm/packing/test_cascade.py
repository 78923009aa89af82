"""The cascade backend against a loop over queries in fp64: values, gradients, sinks; and the flash kernels' own shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srm.packing import backends, pack, probe, report, run_backbone
from srm.packing.backends import cascade, lse_kernels
from srm.packing.plan import AttentionPlan

LAYOUTS = {
    "one segment": ((9,), (-1,)),
    "two segments": ((3, 6), (-1, -1)),
    "siblings": ((4, 3, 5, 1), (-1, 0, 0, 0)),
    "two prompts": ((7, 2, 9, 1, 6), (-1, 0, 0, -1, 3)),
    "children apart": ((3, 2, 4, 1, 2, 5), (-1, -1, 0, 1, 0, -1)),
}


def naive(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float, window: int | None, sinks: Tensor | None) -> Tensor:
    """[1, T, H, E], one query at a time, from the definition: all of the parent, then the segment up to the query; a sink has no value."""
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    rows = []
    for own, parent in zip(plan.rows, plan.parents, strict=True):
        before = list(range(plan.rows[parent].start, plan.rows[parent].stop)) if parent >= 0 else []
        for i in range(own.start, own.stop):
            seen = [*before, *range(own.start, i + 1)]
            seen = seen if window is None else seen[-window:]
            of_heads = []
            for head in range(heads):
                scores = key[0, head // groups, seen] @ query[0, head, i] * scale
                total = scores if sinks is None else torch.cat([scores, sinks[head : head + 1]])
                of_heads.append(total.softmax(0)[: len(seen)] @ value[0, head // groups, seen])
            rows.append(torch.stack(of_heads))
    return torch.stack(rows)[None]


def tensors(num_tokens: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries of 4 heads, keys and values of 2, and a sink for each head."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, num_tokens, h, 8, dtype=torch.float64, generator=generator).transpose(1, 2) for h in (4, 2, 2)]
    return [x.to(dtype).requires_grad_() for x in (*drawn, torch.randn(4, dtype=torch.float64, generator=generator))]


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("block", [1024, 2])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_loop(layout: str, window: int | None, block: int, with_sinks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lse_kernels, "QUERY_BLOCK", block)
    plan = AttentionPlan(lengths=LAYOUTS[layout][0], parents=LAYOUTS[layout][1])
    inputs = tensors(plan.num_tokens)[: 4 if with_sinks else 3]
    query, key, value, sinks = (*inputs, None)[:4]
    actual = cascade.attend(query, key, value, plan, scaling=0.7, dropout=0.0, window=window, sinks=sinks)
    expected = naive(query, key, value, plan, 0.7, window, sinks)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for got, want in zip(
        torch.autograd.grad((actual * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_layout(data: st.DataObject) -> None:
    lengths = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)))
    parents: list[int] = []
    for segment in range(len(lengths)):
        parents.append(data.draw(st.sampled_from([-1, *(s for s in range(segment) if parents[s] < 0)])))
    plan = AttentionPlan(lengths=lengths, parents=tuple(parents))
    query, key, value, sinks = tensors(plan.num_tokens)
    actual = cascade.attend(query, key, value, plan, scaling=None, dropout=0.0, window=None, sinks=sinks)
    torch.testing.assert_close(actual, naive(query, key, value, plan, 8**-0.5, None, sinks), atol=1e-12, rtol=0)


def test_a_sink_far_above_all_scores_takes_everything() -> None:
    plan = AttentionPlan(lengths=(3, 4), parents=(-1, 0))
    query, key, value, _ = tensors(7)
    sinks = torch.tensor([1e4, -torch.inf, -torch.inf, 1e4], dtype=torch.float64)
    output = cascade.attend(query, key, value, plan, scaling=1.0, dropout=0.0, window=None, sinks=sinks)
    assert not output[:, :, [0, 3]].any()
    torch.testing.assert_close(output[:, :, [1, 2]], naive(query, key, value, plan, 1.0, None, None)[:, :, [1, 2]], atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    plan = AttentionPlan(lengths=(3, 4, 2), parents=(-1, 0, 0))
    query, key, value, sinks = tensors(9, torch.float32)
    with torch.autocast("cpu", dtype):
        mixed = cascade.attend(query, key, value.to(dtype), plan, scaling=1.0, dropout=0.0, window=None, sinks=sinks)
    half = [x.detach().to(dtype).requires_grad_() for x in (query, key, value, sinks)]
    output = cascade.attend(*half[:3], plan, scaling=1.0, dropout=0.0, window=None, sinks=half[3])
    exact = [x.detach().double().requires_grad_() for x in half]
    expected = naive(*exact[:3], plan, 1.0, None, exact[3])
    assert mixed.dtype == output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, atol=1e-2, rtol=0)
    torch.testing.assert_close(mixed.double(), expected, atol=2e-2, rtol=0)
    for got, want in zip(torch.autograd.grad(output.sum(), half), torch.autograd.grad(expected.sum(), exact), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, atol=5e-2, rtol=0)


def test_keys_of_a_prompt_lie_once() -> None:
    """However many responses it has; and those of a single prompt are a view of the row's."""
    one, two = (LAYOUTS[name] for name in ("siblings", "two prompts"))
    for lengths, parents in (one, two):
        plan = AttentionPlan(lengths=lengths, parents=parents)
        own, prompts = cascade._parts(plan, torch.device("cpu"))
        assert sum(own.key_lengths) == plan.num_tokens
        assert sum(prompts.key_lengths) == sum(lengths[parent] for parent in set(parents) if parent >= 0) < plan.num_keys - plan.num_tokens
        assert not plan._key_rows, "nothing is gathered"
    single = cascade._parts(AttentionPlan(lengths=one[0], parents=one[1]), torch.device("cpu"))[1]
    assert (single.queries, single.keys) == (slice(4, 13), slice(0, 4))


@pytest.mark.parametrize("window", [None, 3])
def test_this_torch_has_the_operators(window: int | None) -> None:
    """On meta tensors: the arguments bind, and the shapes are those that the matrix products have."""
    plan = AttentionPlan(lengths=(4, 3, 5, 1), parents=(-1, 0, 0, 0))
    rows = plan.key_rows(torch.device("cpu"))
    parts = (
        cascade._parts(plan, torch.device("cpu")) if window is None else (cascade._windowed(plan, rows.cu_queries, rows.cu_keys, window),)
    )
    for part in parts:
        num_queries, num_keys = sum(part.query_lengths), sum(part.key_lengths)
        on = {
            kind: [torch.empty(n, h, 8, dtype=torch.bfloat16, device=kind) for n, h in ((num_queries, 4), (num_keys, 2), (num_keys, 2))]
            for kind in ("cpu", "meta")
        }
        for x in on["cpu"]:
            x.zero_()
        out, lse = lse_kernels.MatmulKernel().forward(*on["cpu"], part, 0.5)
        flash_out, flash_lse = lse_kernels.FlashKernel().forward(*on["meta"], part, 0.5)
        assert (flash_out.shape, flash_lse.shape, flash_lse.dtype) == (out.shape, lse.shape, lse.dtype)
        gradients = lse_kernels.FlashKernel().backward(flash_out, *on["meta"], flash_out, flash_lse, part, 0.5)
        assert [x.shape for x in gradients] == [x.shape for x in on["cpu"]]


GPT_OSS = {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 5}


@pytest.mark.parametrize("mode", ["shared", "packed", "none"])
def test_a_model_with_sinks_packs(mode: str, make_model: Any, make_groups: Any, assert_equals_one_by_one: Callable[..., None]) -> None:
    model = make_model("gpt_oss", **GPT_OSS)
    probe(model)
    assert_equals_one_by_one(model, make_groups(), mode)
    assert report(model).backend == "cascade"


def test_sinks_matter_and_learn(make_model: Any, make_groups: Any) -> None:
    model = make_model("gpt_oss", **GPT_OSS)
    batch = pack(make_groups(), pad_token_id=0)
    hidden = run_backbone(model, batch)
    hidden.square().sum().backward()
    assert all(layer.self_attn.sinks.grad.abs().min() > 0 for layer in model.layers)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.sinks.fill_(-torch.inf)
        assert not torch.allclose(run_backbone(model, batch), hidden, atol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_any_decoder_by_name(
    architecture: str, make_model: Any, make_groups: Any, assert_equals_one_by_one: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(backends.VARIABLE, "cascade")
    model = make_model(architecture, **({"sliding_window": 5} if architecture == "mistral" else {}))
    probe(model)
    assert_equals_one_by_one(model, make_groups(), "shared")
    assert report(model).backend == "cascade"
