"""Packed and prompt-sharing runs equal one-by-one runs, values and gradients, on decoders of many architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from srm.packing import backends, enable, pack, probe, run_backbone
from srm.packing.backends import flex
from tests.srm.packing.architectures import ARCHITECTURES


@pytest.mark.parametrize("mode", ["shared", "packed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradients_equal_one_by_one(
    architecture: str,
    mode: str,
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    assert_equals_one_by_one: Callable[..., None],
) -> None:
    assert_equals_one_by_one(make_model(architecture, **ARCHITECTURES[architecture]), make_groups(), mode)


@pytest.mark.parametrize("size", [16, 64])
def test_a_group_of_many_responses(
    size: int, make_model: Callable[..., Any], make_groups: Callable[..., Any], assert_equals_one_by_one: Callable[..., None]
) -> None:
    groups = make_groups(((11, tuple(1 + i % 7 for i in range(size))),))
    assert_equals_one_by_one(make_model("mistral", sliding_window=9), groups, "shared")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_capped_scores_where_a_backend_has_them(
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    token_rows: Callable[..., Any],
    one_by_one: Callable[..., Any],
    assert_hidden_close: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FlexAttention, which a GPU would run, without gradients: on a CPU it has none."""
    monkeypatch.setattr(flex, "refuse", lambda need: None)
    monkeypatch.setenv(backends.VARIABLE, "flex")
    backends._choose.cache_clear()
    settings = {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 1}
    model, uncapped = (make_model("gemma2", **settings, attn_logit_softcapping=cap) for cap in (0.5, None))
    groups = make_groups()
    with torch.no_grad():
        expected, without = one_by_one(model, groups), one_by_one(uncapped, groups)
        probe(model)
        batch = pack(groups, pad_token_id=0)
        hidden = run_backbone(model, batch)
    assert_hidden_close([hidden[rows] for rows in token_rows(groups, batch)], expected)
    for want, other in zip(expected, without, strict=True):
        assert len(want) < 4 or not torch.allclose(want, other, atol=0.01), "the cap must matter"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2", "opt"])
def test_padded_rows_equal_one_by_one_after_packing(
    architecture: str,
    attention: str,
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    token_rows: Callable[..., Any],
    one_by_one: Callable[..., Any],
    assert_hidden_close: Callable[..., None],
) -> None:
    model, groups = make_model(architecture, **ARCHITECTURES[architecture], attn_implementation=attention), make_groups()
    with torch.no_grad():
        expected = one_by_one(model, groups)
        enable(model)
        batch = pack(groups, mode="none", pad_token_id=0)
        hidden = run_backbone(model, batch)
    assert model.config._attn_implementation == attention
    assert_hidden_close([hidden[rows] for rows in token_rows(groups, batch)], expected)


LENGTHS = st.lists(
    st.tuples(st.integers(1, 14), st.lists(st.integers(1, 14), min_size=1, max_size=4).map(tuple)), min_size=1, max_size=4
).map(tuple)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=LENGTHS, seed=st.integers(0, 1000))
# With this seed both prompts are the same token, so that they share one run.
@example(lengths=((1, (2,)), (1, (3,))), seed=111)
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_any_ragged_layout(
    architecture: str,
    lengths: Any,
    seed: int,
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    token_rows: Callable[..., Any],
    one_by_one: Callable[..., Any],
    assert_hidden_close: Callable[..., None],
) -> None:
    model, groups = make_model(architecture, **ARCHITECTURES[architecture]), make_groups(lengths, seed)
    with torch.no_grad():
        expected = one_by_one(model, groups)
        for mode in ("shared", "packed"):
            batch = pack(groups, mode=mode, pad_token_id=0)
            hidden = run_backbone(model, batch)
            assert_hidden_close([hidden[rows] for rows in token_rows(groups, batch)], expected)
