"""Every backend that a GPU at hand can run against SDPA per segment: values, gradients, whole models, and what a batch costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from srm.packing import pack, probe, report, run_backbone
from srm.packing.backends import BACKENDS, Need, cascade, sdpa
from srm.packing.plan import AttentionPlan

pytestmark = pytest.mark.gpu

LAYOUTS = {
    "one segment": ((300,), (-1,)),
    "packed": ((30, 600, 129, 1), (-1,) * 4),
    "siblings": ((100, 30, 257, 1, 64), (-1, 0, 0, 0, 0)),
    "two prompts": ((257, 20, 90, 1, 600), (-1, 0, 0, -1, 3)),
}


def draw(plan: AttentionPlan, heads: int, groups: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, width), (groups, width), (groups, width)]
    tensors = [torch.randn(1, plan.num_tokens, h, e, generator=generator).transpose(1, 2) for h, e in shapes]
    return [x.to("cuda", torch.bfloat16).requires_grad_() for x in tensors]


def assert_near(actual: Tensor, exact: Tensor, rounded: Tensor, what: str) -> None:
    """As near to the exact result as SDPA in the same dtype is, up to twice its error."""
    error, allowed = (float((x.double() - exact).abs().max()) for x in (actual, rounded))
    assert error <= 2 * allowed + 1e-3 * float(exact.abs().max()), f"{what}: off by {error:.2e}, SDPA in bf16 by {allowed:.2e}"


@pytest.mark.parametrize(("heads", "groups", "width"), [(9, 3, 64), (4, 4, 128), (8, 2, 32)])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend is not sdpa], ids=lambda backend: backend.NAME)
def test_equals_sdpa(backend: Any, layout: str, window: int | None, heads: int, groups: int, width: int) -> None:
    need = Need(device=torch.device("cuda", 0), dtype=torch.bfloat16, width=width, value_width=width, window=window)
    if reason := backend.refuse(need):
        pytest.skip(f"{backend.NAME}: {reason}")
    lengths, parents = LAYOUTS[layout]
    plan = AttentionPlan(lengths=lengths, parents=parents)
    tensors = draw(plan, heads, groups, width)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    settings = {"scaling": 0.2, "dropout": 0.0, "window": window, "softcap": None}
    outputs = [
        backend.attend(*tensors, plan, **settings),
        sdpa.attend(*wide, plan, **settings),
        sdpa.attend(*tensors, plan, **settings),
    ]
    assert_near(*outputs, "output")
    weight = torch.randn(outputs[1].shape, device="cuda", dtype=torch.float64)
    gradients = [
        torch.autograd.grad(output, inputs, weight.to(output.dtype))
        for output, inputs in zip(outputs, (tensors, wide, tensors), strict=True)
    ]
    for name, *three in zip(("query", "key", "value"), *gradients, strict=True):
        assert_near(*three, f"gradient of the {name}")


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sinks_equal_matrix_products(layout: str, window: int | None) -> None:
    lengths, parents = LAYOUTS[layout]
    plan = AttentionPlan(lengths=lengths, parents=parents)
    tensors = [*draw(plan, 8, 2, 64), torch.randn(8, device="cuda").bfloat16().requires_grad_()]
    wide = [x.detach().double().requires_grad_() for x in tensors]
    single = [x.detach().float().requires_grad_() for x in tensors]  # matrix products in fp32, rounded once at the end
    settings = {"scaling": 0.2, "dropout": 0.0, "window": window}
    outputs = [cascade.attend(*inputs[:3], plan, **settings, sinks=inputs[3]) for inputs in (tensors, wide, single)]
    assert_near(outputs[0], outputs[1], outputs[2].bfloat16(), "output")
    weight = torch.randn(outputs[1].shape, device="cuda", dtype=torch.float64)
    gradients = [
        torch.autograd.grad(output, inputs, weight.to(output.dtype))
        for output, inputs in zip(outputs, (tensors, wide, single), strict=True)
    ]
    for name, got, exact, rounded in zip(("query", "key", "value", "sinks"), *gradients, strict=True):
        assert_near(got, exact, rounded.bfloat16(), f"gradient of the {name}")


@pytest.mark.parametrize("mode", ["shared", "packed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3"])
def test_models_equal_one_by_one(
    architecture: str,
    dtype: torch.dtype,
    mode: str,
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    token_rows: Callable[..., Any],
) -> None:
    window = {"sliding_window": 5} if architecture == "mistral" else {}
    model = make_model(architecture, hidden_size=128, head_dim=32, **window).to("cuda", dtype)
    probe(model)
    assert report(model).backend == ("sdpa" if dtype is torch.float32 else "varlen") or report(model).backend.startswith("flash")
    groups = make_groups()
    batch = pack(groups, mode=mode, pad_token_id=0).to("cuda")
    exact_model = make_model(architecture, hidden_size=128, head_dim=32, **window).to("cuda", torch.float64)
    with torch.no_grad():
        hidden = run_backbone(model, batch)
        pairs = [(group, response) for group in groups for response in group.responses]
        for rows, (group, response) in zip(token_rows(groups, batch), pairs, strict=True):
            ids = torch.tensor([[*group.prompt_ids, *response.ids]], device="cuda")
            exact = exact_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            error = (hidden[rows].double() - exact).norm(dim=1) / exact.norm(dim=1)
            assert error.max() < (0.05 if dtype is torch.bfloat16 else 1e-4)


def test_a_cap_on_scores_packs_in_half_precision(make_model: Callable[..., Any]) -> None:
    model = make_model("gemma2", head_dim=32, hidden_size=128).to("cuda", torch.bfloat16)
    probe(model)
    assert report(model).backend in ("flash_attn_2", "flash_attn_3", "flex")


def test_a_batch_makes_the_host_wait_nowhere(make_model: Callable[..., Any], make_groups: Callable[..., Any]) -> None:
    model = make_model(hidden_size=128, head_dim=32).to("cuda", torch.bfloat16)
    batch = pack(make_groups(), pad_token_id=0).to("cuda")
    run_backbone(model, batch).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_backbone(model, dataclasses.replace(batch)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_gradients_repeat_their_bits_through_the_gather() -> None:
    from srm.packing.gather import gather_rows

    plan = AttentionPlan(lengths=(500, *[100] * 16), parents=(-1, *[0] * 16))
    x = torch.randn(plan.num_tokens, 3, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    rows = plan.key_rows(x.device)
    weight = torch.randn(plan.num_keys, 3, 64, device="cuda", dtype=torch.bfloat16)
    first, *others = (torch.autograd.grad(gather_rows(x, rows), x, weight)[0] for _ in range(3))
    assert all(torch.equal(first, other) for other in others)


def test_long_fp32_segments_with_shared_heads_stay_linear_in_memory() -> None:
    plan = AttentionPlan(lengths=(8000, 4000), parents=(-1, 0))
    tensors = [torch.randn(1, heads, plan.num_tokens, 64, device="cuda").requires_grad_() for heads in (8, 2, 2)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sdpa.attend(*tensors, plan, scaling=None, dropout=0.0, window=None).sum().backward()
    # The scores of the first segment alone would be 80 times the queries.
    assert torch.cuda.max_memory_allocated() - before < 40 * tensors[0].nbytes


def test_a_million_tokens_fit() -> None:
    lengths = (1000, *[1000] * 999)
    plan = AttentionPlan(lengths=lengths, parents=(-1, *[0] * 7, *[-1] * 992))
    tensors = [torch.randn(1, h, plan.num_tokens, 64, device="cuda", dtype=torch.bfloat16) for h in (3, 1, 1)]
    need = Need.of_call(*tensors, window=None, softcap=None, dropout=0.0)
    backend = next(backend for backend in BACKENDS if backend.refuse(need) is None)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = backend.attend(*tensors, plan, scaling=None, dropout=0.0, window=None, softcap=None)
    assert output.isfinite().all()
    assert torch.cuda.max_memory_allocated() - before < 4 * sum(x.nbytes for x in tensors)
