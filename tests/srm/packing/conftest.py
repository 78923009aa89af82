"""Tiny random decoders of many architectures, ragged groups, and the oracle: one response at a time, attention untouched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

from srm.packing import PackedBatch, PromptGroup, ResponseIds, pack, run_backbone
from tests.srm.packing.last_layer_runs import boundary_states

VOCABULARY = 67
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
    "attn_implementation": "eager",
}
# A prompt longer than its responses, responses longer than the prompt, one-token prompts and responses, eight siblings.
RAGGED = ((9, (4, 1, 6)), (1, (7, 1)), (3, (2, 3, 1, 4, 1, 5, 2, 8)), (2, (11,)))


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    return _make_model


def _make_model(architecture: str = "llama", **overrides: Any) -> PreTrainedModel:
    """A random backbone with noise on every parameter, in eval mode, with eager attention unless told otherwise."""
    torch.manual_seed(0)
    settings = COMMON | overrides
    config = CONFIG_MAPPING[architecture](**settings)
    model = AutoModel.from_config(config).eval()
    # Norm weights and biases start at 1 and 0, which would hide a wrong one.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def make_groups() -> Callable[..., list[PromptGroup]]:
    return _make_groups


def _make_groups(lengths: Sequence[tuple[int, Sequence[int]]] = RAGGED, seed: int = 0) -> list[PromptGroup]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    def response(count: int) -> ResponseIds:
        return ResponseIds(ids=ids(count), sentence_ends=sorted({(count - 1) // 2, count - 1}))

    return [PromptGroup(prompt_ids=ids(prompt), responses=[response(n) for n in responses]) for prompt, responses in lengths]


@pytest.fixture(scope="session")
def token_rows() -> Callable[..., list[list[int]]]:
    return _token_rows


def _token_rows(groups: Sequence[PromptGroup], batch: PackedBatch) -> list[list[int]]:
    """For each response, where its prompt's and its own tokens lie in the flattened batch; worked out from the groups alone."""
    pairs = [(group, response) for group in groups for response in group.responses]
    rows, start = [], 0
    if batch.attention_mask is not None:
        width = batch.input_ids.shape[1]
        return [[b * width + i for i in range(len(g.prompt_ids) + len(r.ids))] for b, (g, r) in enumerate(pairs)]
    if len(batch.cu_seqlens) - 1 == len(pairs):
        for group, response in pairs:
            stop = start + len(group.prompt_ids) + len(response.ids)
            rows.append(list(range(start, stop)))
            start = stop
        return rows
    runs: dict[tuple[int, ...], list[int]] = {}
    for group in groups:
        key = tuple(group.prompt_ids)
        if key not in runs:
            # Groups with the same prompt share its one run.
            runs[key] = list(range(start, start + len(key)))
            start += len(key)
        prompt = runs[key]
        for response in group.responses:
            rows.append([*prompt, *range(start, start + len(response.ids))])
            start += len(response.ids)
    return rows


@pytest.fixture(scope="session")
def one_by_one() -> Callable[..., list[Tensor]]:
    return _one_by_one


def _one_by_one(model: torch.nn.Module, groups: Sequence[PromptGroup]) -> list[Tensor]:
    """Hidden states [prompt + response, D] of each response, run alone, with nothing but its token ids."""
    return [
        model(input_ids=torch.tensor([[*group.prompt_ids, *response.ids]]), use_cache=False).last_hidden_state[0]
        for group in groups
        for response in group.responses
    ]


@pytest.fixture(scope="session")
def gradients() -> Callable[..., dict[str, Tensor]]:
    return _gradients


def _gradients(model: torch.nn.Module, hidden: Sequence[Tensor]) -> dict[str, Tensor]:
    """Gradients of all parameters for a fixed random functional of each response's hidden states [L, D]."""
    generator = torch.Generator().manual_seed(1)
    model.zero_grad(set_to_none=True)
    torch.stack([(h * torch.randn(h.shape, generator=generator)).sum() for h in hidden]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="session")
def assert_gradients_close() -> Callable[..., None]:
    return _assert_gradients_close


def _assert_gradients_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert actual.keys() == expected.keys()
    assert expected
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        # Some gradients are zero in exact arithmetic (a key bias shifts all scores alike): there only rounding is left.
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        error = float((actual[name] - gradient).abs().max()) / scale
        assert error <= tolerance, f"{name}: gradient off by {error:.2e} of its scale"


@pytest.fixture(scope="session")
def assert_hidden_close() -> Callable[..., None]:
    return _assert_hidden_close


def _assert_hidden_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Hidden states [L, D] of each response, to 1e-5 of its largest."""
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5 * float(want.detach().abs().max()), rtol=0)


@pytest.fixture(scope="session")
def assert_equals_one_by_one() -> Callable[..., None]:
    return _assert_equals_one_by_one


def _assert_equals_one_by_one(model: PreTrainedModel, groups: Sequence[PromptGroup], mode: str) -> None:
    """Values and gradients of the packed run are those of each response run alone."""
    expected = _one_by_one(model, groups)
    expected_gradients = _gradients(model, expected)
    batch = pack(groups, mode=mode, pad_token_id=0)
    hidden = run_backbone(model, batch)
    assert hidden.shape == (batch.num_tokens, COMMON["hidden_size"])
    actual = [hidden[rows] for rows in _token_rows(groups, batch)]
    _assert_hidden_close(actual, expected)
    _assert_gradients_close(_gradients(model, actual), expected_gradients)


@pytest.fixture(scope="session")
def assert_same_as_all_rows(gradients: Callable[..., Any], assert_gradients_close: Callable[..., None]) -> Callable[..., None]:
    def check(model: Any, batch: Any) -> None:
        expected = run_backbone(model, batch)[batch.boundaries]
        expected_gradients = gradients(model, [expected])
        actual = boundary_states(model, batch)
        torch.testing.assert_close(actual, expected, atol=1e-6 * float(expected.detach().abs().max()), rtol=0)
        assert_gradients_close(gradients(model, [actual]), expected_gradients, 1e-5)

    return check
