"""Which backend is chosen, and that each calls its kernel rightly: against fakes of every signature, and FlexAttention on the CPU."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from srm.errors import UserError
from srm.packing import backends
from srm.packing.backends import BACKENDS, Need, NoBackendError, cascade, choose, flash, flex, sdpa, varlen
from srm.packing.plan import AttentionPlan

CUDA = Need(device=torch.device("cuda"), dtype=torch.bfloat16, width=64, value_width=64)
CPU = Need(device=torch.device("cpu"), dtype=torch.float32, width=64, value_width=64)
PLAN = AttentionPlan(lengths=(4, 3, 5, 1, 6), parents=(-1, 0, 0, -1, 3))


@pytest.fixture(autouse=True)
def no_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends._choose.cache_clear()
    yield
    backends._choose.cache_clear()


def loops(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, scale: float, left: int, softcap: float | None = None) -> Tensor:
    """Variable-length attention, causal and aligned at the end; `left` tokens before the query, -1 for all."""
    outputs = []
    for s in range(len(cu_q) - 1):
        qs, ks, vs = q[cu_q[s] : cu_q[s + 1]], k[cu_k[s] : cu_k[s + 1]], v[cu_k[s] : cu_k[s + 1]]
        groups = qs.shape[1] // ks.shape[1]
        ks, vs = ks.repeat_interleave(groups, 1), vs.repeat_interleave(groups, 1)
        score = torch.einsum("qhe,khe->hqk", qs, ks) * scale
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        distance = torch.arange(len(qs))[:, None] + len(ks) - len(qs) - torch.arange(len(ks))
        hidden = (distance < 0) if left < 0 else (distance < 0) | (distance > left)
        outputs.append(torch.einsum("hqk,khe->qhe", score.masked_fill(hidden, -torch.inf).softmax(-1), vs))
    return torch.cat(outputs)


def torch_211(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    assert window_size[1] == 0, "causal"
    assert query.shape[1] == key.shape[1]
    return loops(query, key, value, cu_seq_q, cu_seq_k, scale or query.shape[-1] ** -0.5, window_size[0])


def torch_212(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    assert window_size[1] == 0, "causal"
    assert enable_gqa == (query.shape[1] != key.shape[1])
    return loops(query, key, value, cu_seq_q, cu_seq_k, scale or query.shape[-1] ** -0.5, window_size[0])


def flash_2(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
):
    assert causal
    assert (max_seqlen_q, max_seqlen_k) == (6, 9)
    return loops(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale or q.shape[-1] ** -0.5, window_size[0], softcap or None)


def flash_4(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, softmax_scale=None, causal=False, window_size=(None, None), softcap=0.0):
    assert causal
    assert not softcap, "its backward pass would fail"
    left = -1 if window_size[0] is None else window_size[0]
    return loops(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale or q.shape[-1] ** -0.5, left), None


def inputs(heads: int = 4, groups: int = 2, width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, width), (groups, width), (groups, width)]
    return [
        torch.randn(1, PLAN.num_tokens, h, e, dtype=torch.float64, generator=generator).transpose(1, 2).requires_grad_() for h, e in shapes
    ]


def assert_same(attend: Callable[..., Tensor], *, scaling: float | None, window: int | None, groups: int = 2) -> None:
    """Values and gradients of `attend(query, key, value)` are those of SDPA per segment, which has tests of its own."""
    tensors = inputs(groups=groups)
    actual = attend(*tensors)
    expected = sdpa.attend(*tensors, PLAN, scaling=scaling, dropout=0.0, window=window)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for got, want in zip(
        torch.autograd.grad((actual * weight).sum(), tensors), torch.autograd.grad((expected * weight).sum(), tensors), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-11, rtol=0)


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("function", [torch_211, torch_212])
def test_varlen_signatures(function: Any, window: int | None, scaling: float | None, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", function)
    assert_same(
        lambda q, k, v: varlen.attend(q, k, v, PLAN, scaling=scaling, dropout=0.0, window=window, softcap=None),
        scaling=scaling,
        window=window,
        groups=groups,
    )


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize(("backend", "function"), [(flash.FLASH_2, flash_2), (flash.FLASH_3, flash_2), (flash.FLASH_4, flash_4)])
def test_flash_signatures(
    backend: flash.FlashAttention, function: Any, scaling: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "_function", lambda distribution, module: function)
    assert_same(
        lambda q, k, v: backend.attend(q, k, v, PLAN, scaling=scaling, dropout=0.0, window=window, softcap=None),
        scaling=scaling,
        window=window,
    )


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex(scaling: float | None, window: int | None) -> None:
    tensors = [x.detach().float() for x in inputs()]
    actual = flex.attend(*tensors, PLAN, scaling=scaling, dropout=0.0, window=window, softcap=None)
    expected = sdpa.attend(*tensors, PLAN, scaling=scaling, dropout=0.0, window=window)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_caps_on_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_function", lambda distribution, module: flash_2)
    tensors = [3 * x.detach().float() for x in inputs()]
    settings = {"scaling": 1.0, "dropout": 0.0, "window": None, "softcap": 2.0}
    rows = PLAN.key_rows(torch.device("cpu"))
    q, k, v = varlen.rows_of(*tensors, PLAN)
    expected = loops(q, k, v, rows.cu_queries, rows.cu_keys, 1.0, -1, 2.0)[None]
    for backend in (flex, flash.FLASH_2):
        torch.testing.assert_close(backend.attend(*tensors, PLAN, **settings), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(expected, sdpa.attend(*tensors, PLAN, scaling=1.0, dropout=0.0, window=None), atol=0.1)


def test_autocast_decides_the_dtype() -> None:
    q, k, v = (x.detach().float() for x in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        assert Need.of_call(q, k, v, window=None, softcap=None, dropout=0.0).dtype == torch.bfloat16
        assert {x.dtype for x in varlen.rows_of(q, k, v.bfloat16(), PLAN)} == {torch.bfloat16}
    assert Need.of_call(q, k, v, window=3, softcap=None, dropout=0.1) == Need(
        device=q.device, dtype=torch.float32, width=8, value_width=8, window=3, dropout=0.1
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """machine(generation, installed={}): what the backends find."""

    def make(generation: int, installed: dict[str, Any] | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(flash, "_function", lambda distribution, module: (installed or {}).get(distribution))

    return make


@pytest.mark.parametrize(
    ("generation", "installed", "change", "expected"),
    [
        (9, {}, {}, "varlen"),
        (9, {}, {"window": 100}, "varlen"),
        (9, {}, {"dtype": torch.float32}, "sdpa"),
        (9, {}, {"dtype": torch.float64}, "sdpa"),
        (7, {}, {"dtype": torch.float16}, "flex"),
        (9, {}, {"width": 512, "value_width": 512}, "flex"),
        (9, {}, {"width": 20, "value_width": 20}, "flex"),
        (9, {}, {"value_width": 32}, "flex"),
        (9, {}, {"softcap": 50.0}, "flex"),
        (9, {}, {"dropout": 0.1}, "sdpa"),
        (9, {}, {"width": 12, "value_width": 12}, "sdpa"),
        (8, {"flash-attn": flash_2}, {}, "varlen"),
        (8, {"flash-attn": flash_2}, {"softcap": 50.0}, "flash_attn_2"),
        (8, {"flash-attn": flash_2}, {"dropout": 0.1}, "flash_attn_2"),
        (8, {"flash-attn-3": flash_2}, {}, "varlen"),
        (9, {"flash-attn-3": flash_2, "flash-attn": flash_2}, {}, "flash_attn_3"),
        (10, {"flash-attn-3": flash_2, "flash-attn-4": flash_4}, {}, "flash_attn_4"),
        (10, {"flash-attn-4": flash_4}, {"width": 80, "value_width": 80}, "varlen"),
        (10, {"flash-attn-4": flash_4}, {"softcap": 50.0}, "flex"),
        (10, {"flash-attn-3": flash_2, "flash-attn": flash_2, "flash-attn-4": flash_4}, {"sinks": True}, "cascade"),
        (9, {}, {"sinks": True, "window": 100}, "cascade"),
        (9, {}, {"sinks": True, "dtype": torch.float32}, "cascade"),
    ],
)
def test_choice(machine: Any, generation: int, installed: dict[str, Any], change: dict[str, Any], expected: str) -> None:
    machine(generation, installed=installed)
    assert expected == choose(dataclasses.replace(CUDA, **change)).backend.NAME


def test_cpu_runs_sdpa_and_says_why_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="srm.packing.backends"):
        choice = choose(CPU)
    assert choice.backend is sdpa
    assert [reason.split(":")[0] for reason in choice.passed_over] == [backend.NAME for backend in BACKENDS[: BACKENDS.index(sdpa)]]
    assert all("on CUDA, not on cpu" in reason for reason in choice.passed_over)
    told = "packed attention in float32 on cpu: sdpa: one scaled_dot_product_attention call per segment "
    assert told + "(passed over 5 others: it runs on CUDA, not on cpu)" in caplog.text


def test_nothing_caps_scores_on_the_cpu() -> None:
    with pytest.raises(NoBackendError, match=r"sdpa: it caps no scores \(`softcap`\)"):
        choose(dataclasses.replace(CPU, softcap=50.0))


def test_sinks_run_on_the_cpu() -> None:
    assert choose(dataclasses.replace(CPU, sinks=True)).backend is cascade


def test_one_backend_by_name(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(9)
    assert choose(CUDA).backend is varlen
    monkeypatch.setenv(backends.VARIABLE, "cascade")
    assert [choose(need).backend for need in (CUDA, CPU)] == [cascade, cascade]
    with pytest.raises(NoBackendError, match=r"^cascade: it has no attention dropout; SRM_PACKED_ATTENTION allows no other$"):
        choose(dataclasses.replace(CUDA, dropout=0.1))
    monkeypatch.setenv(backends.VARIABLE, "cascades")
    with pytest.raises(UserError, match=r"SRM_PACKED_ATTENTION must be one of flash_attn_4, .*, sdpa, cascade, or not set, got 'cascades'"):
        choose(CUDA)


def test_amd_runs_what_is_tested_there(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(9)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert choose(CUDA).backend is sdpa


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("window", [None, 4])
def test_this_torch_takes_what_we_pass(window: int | None, groups: int) -> None:
    """Torch's own function and operators, as installed, forward and backward on tensors without values: arguments and shapes must fit."""
    assert list(inspect.signature(varlen.varlen_attn).parameters)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    plan = AttentionPlan(lengths=PLAN.lengths, parents=PLAN.parents)
    with FakeTensorMode():
        shapes = [(1, heads, plan.num_tokens, 8) for heads in (4, groups, groups)]
        tensors = [torch.empty(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        out = varlen.attend(*tensors, plan, scaling=0.3, dropout=0.0, window=window, softcap=None)
        assert out.shape == (1, plan.num_tokens, 4, 8)
        assert [x.shape for x in torch.autograd.grad(out.sum(), tensors)] == [torch.Size(shape) for shape in shapes]
