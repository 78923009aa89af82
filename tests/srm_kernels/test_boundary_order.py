"""The order of a layout's boundaries: sorted once, carried along, and never believed where it may be out of date."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from srm_kernels import SentenceLayout, gather_boundaries

# Siblings share 2; the second response lies before the first.
BOUNDARIES, CU = [6, 8, 11, 2, 3, 5, 2, 5], [0, 3, 6, 8]


def layout(boundaries: list[int] | None = None) -> SentenceLayout:
    return SentenceLayout(torch.tensor(boundaries or BOUNDARIES), torch.tensor(CU))


@pytest.fixture
def unsortable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, nobody sorts."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("sorted again")

    return lambda: monkeypatch.setattr(torch, "sort", refuse)


def test_sorts_once_and_keeps_the_order_of_equals(unsortable):
    given = layout()
    positions, indices, _ = given.order
    unsortable()
    assert given.order.positions is positions
    assert positions.tolist() == [2, 2, 3, 5, 5, 6, 8, 11]
    assert indices.tolist() == [3, 6, 4, 5, 7, 0, 1, 2]


def test_what_ascends_is_not_sorted(unsortable):
    unsortable()
    given = layout([1, 2, 2, 4, 5, 6, 6, 9])
    assert given.order.positions is given.boundaries
    assert given.order.indices.tolist() == list(range(8))


def test_the_order_goes_where_the_layout_goes(unsortable):
    given = layout()
    moved = given.to("meta")
    unsortable()
    assert moved.order.positions.device.type == moved.order.indices.device.type == "meta"
    assert moved.order.positions.shape == moved.order.indices.shape == (8,)
    assert given.to("cpu").order.positions is given.order.positions
    rising = layout(list(range(8))).to("meta")
    assert rising.order.positions is rising.boundaries


def test_a_write_into_the_boundaries_is_noticed():
    given = layout()
    before = given.order
    given.boundaries[0] = 0
    assert given.order.positions.tolist() == [0, 2, 2, 3, 5, 5, 8, 11]
    assert not before.describes(given.boundaries)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_counts_its_own_writes(duplicate):
    given = layout()
    given.boundaries[1] = 7
    assert given.order.version == 1
    copied = duplicate(given)
    copied.boundaries[0] = 0  # Its first write, after which a version of 1 would fit.
    assert copied.order.positions.tolist() == [0, 2, 2, 3, 5, 5, 7, 11]


def test_nothing_is_kept_where_writes_go_unseen(monkeypatch):
    given = layout()
    kept = given.order
    with monkeypatch.context() as patch:
        patch.setattr("srm_kernels.layout._is_captured", lambda boundaries: True)
        assert given.order is None
        assert not kept.describes(given.boundaries)
    with torch.inference_mode():
        assert layout().order is None
        assert given.to("meta").order is None


def test_a_promise_is_checked_where_it_can_be(monkeypatch, unsortable):
    with pytest.raises(ValueError, match="`ascending=True`, but `boundaries` fall somewhere"):
        SentenceLayout(torch.tensor(BOUNDARIES), torch.tensor(CU), ascending=True)
    given = SentenceLayout(torch.arange(8), torch.tensor(CU), ascending=True)
    unsortable()
    # It holds whatever is written there, and so in a CUDA graph too.
    monkeypatch.setattr("srm_kernels.layout._is_captured", lambda boundaries: True)
    assert given.order.positions is given.boundaries
    assert given.order.describes(given.boundaries)
    assert given.to("meta").order.positions.device.type == "meta"
    given.boundaries[7] = 0
    with pytest.raises(ValueError, match="`ascending=True`"):
        given.validate(10)


def forward(backend: str, boundaries: Tensor | SentenceLayout, hidden: Tensor, reward: Tensor) -> tuple[Tensor, ...]:
    """What the op that takes an order makes of inputs on 12 tokens, and a loss of it."""
    rows = gather_boundaries(hidden, boundaries, backend=backend)
    return rows, (rows.square().sum(1) * reward).sum()


def step(backend: str, boundaries: Tensor | SentenceLayout, *inputs: Tensor, run=forward) -> tuple[Tensor, ...]:
    """The same with the gradients."""
    out = run(backend, boundaries, *inputs)
    return *out, *torch.autograd.grad(out[-1], inputs)


@pytest.fixture
def inputs(lane, random) -> list[Tensor]:
    return [random(seed, *shape).to(lane.device, torch.float32).requires_grad_() for seed, shape in enumerate(((12, 4), (8,)))]


def equal(out: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


def test_the_op_takes_it_and_comes_to_the_same(lane, inputs, unsortable):
    given = layout().to(lane.device)
    expected = step(lane.backend, given.boundaries.clone(), *inputs)
    assert given.order is not None
    unsortable()
    assert equal(step(lane.backend, given, *inputs), expected)


def test_a_stale_order_is_not_used(lane, inputs):
    given = layout().to(lane.device)
    expected = step(lane.backend, given.boundaries.flip(0), *inputs)
    assert given.order is not None
    given.boundaries.copy_(given.boundaries.flip(0))
    assert equal(step(lane.backend, given, *inputs), expected)


def test_a_compiled_graph_takes_it_too(lane, inputs, monkeypatch):
    """And sees that it is out of date, though it cannot count writes while it is traced."""
    torch._dynamo.reset()
    given = layout().to(lane.device)
    assert given.order is not None
    flipped = given.boundaries.flip(0)
    expected, other = (step(lane.backend, boundaries, *inputs) for boundaries in (given.boundaries, flipped))
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    with monkeypatch.context() as patch:
        if lane.backend == "triton":
            patch.setattr("srm_kernels.ops.gather_boundaries.kernels.sort_positions", None)
        assert equal(step(lane.backend, given, *inputs, run=compiled), expected)
    given.boundaries.copy_(flipped)
    assert equal(step(lane.backend, given, *inputs, run=compiled), other)


def test_a_layout_moves_inside_a_compiled_graph():
    torch._dynamo.reset()
    moved = torch.compile(lambda given: given.to("meta").boundaries + 1, fullgraph=True, backend="eager")(layout())
    assert moved.device.type == "meta"


def test_a_compiled_graph_does_without(lane, inputs):
    torch._dynamo.reset()
    boundaries, cu = (torch.tensor(x, device=lane.device) for x in (BOUNDARIES, CU))
    compiled = torch.compile(
        lambda backend, boundaries, *inputs: forward(backend, SentenceLayout(boundaries, cu), *inputs),
        fullgraph=True,
        backend="aot_eager",
    )
    expected = step(lane.backend, boundaries, *inputs)
    assert equal(step(lane.backend, boundaries, *inputs, run=compiled), expected)
