"""The 16-bit backward pass on the CPU against fp64, beside torch's own, and in all that autograd may ask of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from srm.packing import pack, run_backbone
from srm.packing.backends import cpu_backward, sdpa
from srm.packing.backends.cpu_backward import BLOCK
from srm.packing.plan import AttentionPlan

SCALE = 0.2  # no power of two, which would be exact in every dtype
SIBLINGS = AttentionPlan(lengths=(5, 3, 1, 4), parents=(-1, 0, 0, 0))


def _inputs(heads: int, groups: int, plan: AttentionPlan, dtype: torch.dtype, value_width: int = 16) -> list[Tensor]:
    torch.manual_seed(plan.num_tokens)
    # As a projection leaves them: heads innermost.
    shapes = ((1, plan.num_tokens, *shape) for shape in ((heads, 16), (groups, 16), (groups, value_width)))
    return [torch.randn(shape).mul(2).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def _attend(inputs: list[Tensor], plan: AttentionPlan, window: int | None = None) -> Tensor:
    return sdpa.attend(*inputs, plan, scaling=SCALE, dropout=0.0, window=window)


def _exact(inputs: list[Tensor], plan: AttentionPlan, window: int | None) -> Tensor:
    """[1, T, H, E]: one dense matrix of scores, every key of every segment in it."""
    q, k, v = inputs
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    seen = torch.zeros(plan.num_tokens, plan.num_tokens, dtype=torch.bool)
    for segment, (rows, parent) in enumerate(zip(plan.rows, plan.parents, strict=True)):
        columns = torch.arange(plan.num_tokens)
        of_segment = columns[rows]
        if parent >= 0:
            of_segment = torch.cat([columns[plan.rows[parent]], of_segment])
        for i, row in enumerate(columns[rows]):
            sees = plan.prefix(segment) + i + 1
            seen[row, of_segment[max(0, sees - (window or sees)) : sees]] = True
    return ((q @ k.mT * SCALE).masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def _assert_as_near_as_torchs_own(inputs: list[Tensor], grad: Tensor, plan: AttentionPlan, window: int | None = None) -> None:
    """Output and gradients, in the norm of their errors against fp64."""
    in_fp64 = [x.detach().double().requires_grad_() for x in inputs]
    output = _exact(in_fp64, plan, window)
    expected = (output, *torch.autograd.grad(output, in_fp64, grad.double()))

    def errors(output: Tensor) -> list[float]:
        found = (output, *torch.autograd.grad(output, inputs, grad))
        return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]

    ours = errors(_attend(inputs, plan, window))
    theirs = errors(sdpa._attend(*inputs, plan, scale=SCALE, dropout=0.0, window=window))
    for name, mine, other in zip(("output", "query", "key", "value"), ours, theirs, strict=True):
        assert mine < max(1.5 * other, torch.finfo(grad.dtype).eps), name


@pytest.fixture
def own_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Grows by its dtype with every backward pass of our own."""
    calls: list[torch.dtype] = []
    real = cpu_backward.gradients

    def gradients(query: Tensor, *rest: Any, **settings: Any) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(query.dtype)
        return real(query, *rest, **settings)

    monkeypatch.setattr(cpu_backward, "gradients", gradients)
    return calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "groups", "lengths", "parents", "window"),
    [
        (6, 2, (7,), (-1,), None),
        (4, 4, (5, 1, 1), (-1, 0, 0), None),
        (4, 1, (1, 1, 1, 1), (-1, 0, 0, -1), None),
        (6, 3, (21, 40, 9, 13, 30), (-1, 0, 0, -1, 3), None),
        (2, 1, (BLOCK + 33,), (-1,), None),
        (2, 1, (70, BLOCK + 9, 20), (-1, 0, 0), None),
        (2, 2, (BLOCK, BLOCK, 1), (-1, 0, 0), None),
        (4, 2, (30, 60, 8, 50), (-1, 0, 0, -1), 11),
        (2, 2, (40, BLOCK + 9), (-1, 0), 33),
        (2, 1, (6, 5, 1), (-1, 0, 0), 2),
    ],
)
def test_gradients_are_as_near_to_fp64_as_torchs_own(
    heads: int, groups: int, lengths: tuple[int, ...], parents: tuple[int, ...], window: int | None, dtype: torch.dtype
) -> None:
    plan = AttentionPlan(lengths=lengths, parents=parents)
    grad = torch.randn(1, plan.num_tokens, heads, 16).to(dtype)
    _assert_as_near_as_torchs_own(_inputs(heads, groups, plan, dtype), grad, plan, window)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_all_values_have_in_common_cancels(dtype: torch.dtype) -> None:
    """Gradients of the scores are small differences then, of large products of the gradient with the values."""
    plan = AttentionPlan(lengths=(30, 40, 1), parents=(-1, 0, 0))
    query, key, value = _inputs(2, 1, plan, dtype)
    common = torch.randn(1, 1, 1, 16).sign()
    value = (value.detach() + 10 * common).to(dtype).requires_grad_()
    grad = (torch.randn(1, plan.num_tokens, 2, 16) + common).to(dtype)
    _assert_as_near_as_torchs_own([query, key, value], grad, plan)


@pytest.mark.parametrize("value_width", [8, 40])
def test_values_of_another_width(value_width: int) -> None:
    grad = torch.randn(1, SIBLINGS.num_tokens, 4, value_width).bfloat16()
    _assert_as_near_as_torchs_own(_inputs(4, 2, SIBLINGS, torch.bfloat16, value_width), grad, SIBLINGS)


def test_training_in_16_bits_takes_it_and_fp32_and_scoring_do_not(own_calls: list[torch.dtype]) -> None:
    plan = AttentionPlan(lengths=(5, 3, 4), parents=(-1, 0, 0))
    inputs = _inputs(4, 2, plan, torch.float32)
    expected = torch.autograd.grad(_attend(inputs, plan).sum(), inputs)
    assert own_calls == []
    with torch.autocast("cpu", torch.bfloat16):
        # The backward pass too, as where a trainer leaves autocast on.
        gradients_in_bf16 = torch.autograd.grad(_attend(inputs, plan).float().sum(), inputs)
    assert own_calls == [torch.bfloat16]
    for a, b in zip(gradients_in_bf16, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.03 * b.norm()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert _attend(inputs, plan).grad_fn is None
    frozen = [x.detach().bfloat16() for x in inputs]
    assert _attend(frozen, plan).grad_fn is None


@pytest.mark.parametrize("wanted", ["q", "k", "v", "qk", "qv", "kv"])
def test_only_what_needs_a_gradient_gets_one(wanted: str) -> None:
    inputs = _inputs(4, 2, SIBLINGS, torch.bfloat16)
    grad = torch.randn(1, SIBLINGS.num_tokens, 4, 16).bfloat16()
    expected = torch.autograd.grad(_attend(inputs, SIBLINGS), inputs, grad)
    some = [x.detach().requires_grad_(name in wanted) for name, x in zip("qkv", inputs, strict=True)]
    _attend(some, SIBLINGS).backward(grad)
    for name, x, whole in zip("qkv", some, expected, strict=True):
        if name in wanted:
            assert torch.equal(x.grad, whole)
        else:
            assert x.grad is None


@pytest.mark.parametrize("memory", ["expanded", "heads first", "every other"])
def test_gradients_come_in_any_memory_layout(memory: str) -> None:
    inputs = _inputs(4, 2, SIBLINGS, torch.bfloat16)
    output = _attend(inputs, SIBLINGS)
    plain = torch.randn(output.shape).bfloat16()
    grad = {
        "expanded": lambda: plain[:, :, :1, :1].expand_as(plain),  # as behind `.sum()`
        "heads first": lambda: plain.transpose(1, 2).contiguous().transpose(1, 2),
        "every other": lambda: torch.stack([plain, plain], dim=-1)[..., 0],
    }[memory]()
    assert not grad.is_contiguous()
    found = torch.autograd.grad(output, inputs, grad, retain_graph=True)
    expected = torch.autograd.grad(output, inputs, grad.contiguous(), retain_graph=True)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < torch.finfo(torch.bfloat16).eps * b.norm()
    again = torch.autograd.grad(output, inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), "a graph that is kept gives the same bits"


def test_children_are_summed_in_fp32() -> None:
    plan = AttentionPlan(lengths=(1, *[1] * 300), parents=(-1, *[0] * 300))
    query, key, value = (torch.zeros(1, 1, plan.num_tokens, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    _attend([query, key, value], plan).sum().backward()
    # All of its own output and half of each child's. In bf16 a sum of halves stops at 128.
    assert (value.grad[0, 0, 0] == 151).all()


def test_blocks_of_a_segment_are_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backward, "BLOCK", 1)
    monkeypatch.setattr(cpu_backward, "_causal", lambda: torch.zeros(1, 1))
    plan = AttentionPlan(lengths=(600,), parents=(-1,))
    query, key, value = (torch.zeros(1, 1, 600, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    _attend([query, key, value], plan).sum().backward()
    # 1/1 + 1/2 + ... + 1/600 of the queries' outputs. In bf16 a sum of such terms stops at about 5.
    assert (value.grad[0, 0, 0] - sum(1 / i for i in range(1, 601))).abs().max() < 0.05


def test_no_mask_where_causal_serves() -> None:
    plan = AttentionPlan(lengths=(BLOCK + 5, 3), parents=(-1, -1))
    _attend(_inputs(2, 1, plan, torch.bfloat16), plan).sum().backward()
    assert not plan._masks


def test_a_second_derivative_is_refused() -> None:
    plan = AttentionPlan(lengths=(4,), parents=(-1,))
    inputs = _inputs(2, 1, plan, torch.bfloat16)
    (first,) = torch.autograd.grad(_attend(inputs, plan).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_under_gradient_checkpointing_and_in_a_copy(
    use_reentrant: bool,
    own_calls: list[torch.dtype],
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    gradients: Callable[..., Any],
) -> None:
    model = make_model("mistral", sliding_window=5).bfloat16().train()
    batch = pack(make_groups(), pad_token_id=0)

    def run(model: Any) -> dict[str, Tensor]:
        own_calls.clear()
        found = gradients(model, [run_backbone(model, batch).float()])
        assert own_calls == [torch.bfloat16] * 2, "one a layer"
        return found

    expected = run(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for found in (run(model), run(copy.deepcopy(model))):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_in_a_compiled_backbone_under_autocast(
    own_calls: list[torch.dtype],
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    gradients: Callable[..., Any],
    assert_gradients_close: Callable[..., None],
) -> None:
    model = make_model("mistral", sliding_window=5, num_hidden_layers=1)
    compiled = torch.compile(model, backend="aot_eager")
    for lengths in [((4, (3, 2)),), ((2, (5, 1, 4)), (6, (2,)))]:
        batch = pack(make_groups(lengths), pad_token_id=0)

        def run(backbone: Any, batch: Any = batch) -> dict[str, Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                hidden = run_backbone(backbone, batch).float()
            return gradients(model, [hidden])

        expected = run(model)
        own_calls.clear()
        # Compiled code rounds to 16 bits in other places.
        assert_gradients_close(run(compiled), expected, 0.05)
        assert own_calls == [torch.bfloat16]


def test_adapters_on_some_projections(
    own_calls: list[torch.dtype],
    make_model: Callable[..., Any],
    make_groups: Callable[..., Any],
    gradients: Callable[..., Any],
    assert_gradients_close: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the first layer only queries need a gradient, in the second all three; without adapters nothing does."""
    peft = pytest.importorskip("peft")
    frozen, batch = make_model().bfloat16().requires_grad_(False), pack(make_groups(), pad_token_id=0)
    assert not run_backbone(frozen, batch).requires_grad
    model = peft.get_peft_model(frozen, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).eval()

    def run() -> dict[str, Tensor]:
        return gradients(model, [run_backbone(model, batch).float()])

    found = run()
    assert own_calls == [torch.bfloat16] * 2
    assert all("q_proj.lora" in name for name in found)
    monkeypatch.setattr(cpu_backward, "is_worth_it", lambda *_: False)
    assert_gradients_close(found, run(), 0.05)
    assert len(own_calls) == 2, "the second run was torch's own"
