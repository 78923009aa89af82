"""Rows of very many tokens, and what is done once a batch however many layers there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from srm.packing import PromptGroup, pack, run_backbone
from srm.packing.plan import AttentionPlan

BENCH = Path(__file__).parents[3] / "bench"
# One prompt and two responses, 250 tokens.
GROUP = (40, (130, 80))


def last_boundaries(model: torch.nn.Module, groups: list[PromptGroup]) -> tuple[Tensor, list[Tensor]]:
    """Hidden states at the last group's boundaries [6, D], and the gradients of a functional of them."""
    batch = pack(groups, pad_token_id=0)
    hidden = run_backbone(model, batch)[batch.boundaries[-6:]]
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    return hidden.detach(), list(torch.autograd.grad((hidden * weight).sum(), list(model.parameters())))


# In 16 bits the backward pass of attention is another one.
@pytest.mark.parametrize(
    ("dtype", "count", "tolerance"), [(torch.float32, 4000, 1e-5), (torch.bfloat16, 1000, 0.02)], ids=["a million", "in 16 bits"]
)
def test_long_rows_neither_overflow_nor_go_quadratic(
    dtype: torch.dtype,
    count: int,
    tolerance: float,
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forward and backward, the last group against itself alone; four times the tokens take four times the memory."""
    monkeypatch.syspath_prepend(BENCH)
    from timing import measure_peak

    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = make_model("llama", **tiny, max_position_embeddings=256).to(dtype)
    groups = make_groups([GROUP] * count)
    peaks = []
    for some in (groups[-count // 4 :], groups):
        with measure_peak(torch.device("cpu")) as peak:
            hidden, gradients = last_boundaries(model, some)
        peaks.append(peak.bytes)
    expected, expected_gradients = last_boundaries(model, groups[-1:])
    torch.testing.assert_close(hidden, expected, atol=tolerance, rtol=0)
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, want, atol=tolerance * float(want.abs().max()), rtol=0)
    if None in peaks:
        pytest.skip("this system does not tell a process's peak memory")
    quarter, whole = peaks
    # Linear is 4, quadratic 16; pages that are freed late, and lists that grow in leaps, move it a little.
    assert whole < 6 * quarter


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a plan, or the matrix that its masks are views of, was made."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        original = getattr(AttentionPlan, name)

        def call(*args: Any, **settings: Any) -> Any:
            calls[name] += 1
            return original(*args, **settings)

        monkeypatch.setattr(AttentionPlan, name, call)

    for name in ("__init__", "_widest_mask"):
        counted(name)
    return calls


@pytest.mark.parametrize("layers", [1, 4])
def test_plan_and_masks_are_made_once_a_batch(
    layers: int, builds: Counter[str], make_model: Callable[..., Any], make_groups: Callable[..., Any]
) -> None:
    model, batch = make_model(num_hidden_layers=layers), pack(make_groups(), pad_token_id=0)
    run_backbone(model, batch).sum().backward()
    assert builds == {"__init__": 1, "_widest_mask": 1}
    run_backbone(model, batch)
    assert builds == {"__init__": 2, "_widest_mask": 2}


@pytest.fixture
def lone_process() -> Iterator[None]:
    """A process group of one, which is enough to shard a model."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("lone_process")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_so_they_are_where_fsdp2_rounds_each_layer(
    checkpointing: bool, builds: Counter[str], make_model: Callable[..., Any], make_groups: Callable[..., Any]
) -> None:
    """It rebuilds containers among a layer's arguments, to round the tensors in them."""
    batch = pack(make_groups(), pad_token_id=0)
    with torch.no_grad():
        exact = run_backbone(make_model(num_hidden_layers=3), batch)
    builds.clear()
    model = make_model(num_hidden_layers=3).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in (*model.layers, model):
        fully_shard(module, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    hidden = run_backbone(model, batch)
    hidden.float().sum().backward()
    assert builds == {"__init__": 1, "_widest_mask": 1}
    assert hidden.dtype == torch.bfloat16, "nothing was rounded"
    assert ((hidden - exact).norm(dim=1) / exact.norm(dim=1)).max() < 0.1
    assert all(weight.grad is not None for weight in model.parameters())
