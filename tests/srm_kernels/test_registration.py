"""Every op as PyTorch sees it: opcheck, torch.compile without graph breaks, gradcheck, and no wrong second derivative."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import srm_kernels as k
from srm_kernels.ops.token_rewards.reference import token_rewards_reference

CU = k.cu_from_lengths([3, 0, 4])
CU_TOKENS = k.cu_from_lengths([4, 0, 5])
BOUNDARIES = torch.tensor([1, 3, 8, 1, 2, 5, 7])
PAIRS = torch.tensor([[0, 1], [2, 0], [2, 1]])
LAYOUT = k.SentenceLayout(BOUNDARIES, CU)
ORDER = LAYOUT.order


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


# Name: the public function on its differentiable arguments, and those.
CASES: dict[str, tuple[Callable[..., object], list[Tensor]]] = {
    "gather": (lambda h: k.gather_boundaries(h, BOUNDARIES), [draw(9, 4)]),
    "gather_layout": (lambda h: k.gather_boundaries(h, LAYOUT), [draw(9, 4)]),
    "softmax": (lambda s: k.segment_softmax(s, CU), [draw(7)]),
    "softmax_heads": (lambda s: k.segment_softmax(s, CU), [draw(7, 2)]),
    "difference": (lambda v: k.difference_rewards(v, CU), [draw(7)]),
    "pool": (lambda q, key, v: k.sentence_attention_pool(q, key, v, CU), [draw(3, 4), draw(7, 4, seed=1), draw(7, seed=2)]),
    "pool_flat": (
        lambda q, key, v: k.sentence_attention_pool(q, key, v, CU, None, False, difference=False),
        [draw(3, 4), draw(7, 4, seed=1), draw(7, seed=2)],
    ),
    "pool_values": (
        lambda q, key, v: k.sentence_attention_pool(q, key, v, CU, pooling="value_attention"),
        [draw(3, 4), draw(7, 4, seed=1), draw(7, seed=2)],
    ),
    "mean": (lambda v: k.sentence_pool(v, CU, "mean"), [draw(7)]),
    "sum": (lambda v: k.sentence_pool(v, CU, "sum", False), [draw(7)]),
    "last": (lambda v: k.sentence_pool(v, CU, "last", difference=False), [draw(7)]),
    "bradley_terry": (lambda r: k.bradley_terry_loss(r, PAIRS, 0.3, 0.1, 0.01), [draw(3)]),
    "token_rewards": (
        lambda r, p, ref: k.token_rewards(r, BOUNDARIES, CU, p, ref, 0.1, "k3"),
        [draw(7), draw(9, seed=1), draw(9, seed=2)],
    ),
    "gae": (lambda r, v: k.packed_gae(r, v, CU_TOKENS, 0.9, 0.8), [draw(9), draw(9, seed=1)]),
    "gae_bootstrap": (
        lambda r, v, b: k.packed_gae(r, v, CU_TOKENS, 0.9, 0.8, bootstrap_value=b),
        [draw(9), draw(9, seed=1), draw(3, seed=2)],
    ),
    "head": (
        lambda h, *w: k.sentence_reward_head(h, LAYOUT, *w),
        [draw(9, 5), *(draw(*s, seed=i + 1) for i, s in enumerate(((1, 5), (1,), (4, 5), (4,), (4, 5), (4,))))],
    ),
}
cases = pytest.mark.parametrize("name", CASES)


def as_tuple(out: object) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def total(out: object) -> Tensor:
    """A scalar in which every output element has its own weight."""
    return sum((x * torch.arange(1, x.numel() + 1, dtype=x.dtype, device=x.device).reshape(x.shape)).sum() for x in as_tuple(out))


@cases
def test_gradcheck(name):
    op, inputs = CASES[name]
    assert torch.autograd.gradcheck(op, inputs)


@cases
def test_one_input_alone_gets_the_same_gradient(name):
    op, inputs = CASES[name]
    for i, expected in enumerate(torch.autograd.grad(total(op(*inputs)), inputs)):
        alone = [x if i == j else x.detach() for j, x in enumerate(inputs)]
        torch.testing.assert_close(torch.autograd.grad(total(op(*alone)), inputs[i])[0], expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
@cases
def test_checkpoints(name, use_reentrant):
    op, inputs = CASES[name]
    grads = []
    for run in (op, lambda *x: checkpoint(op, *x, use_reentrant=use_reentrant)):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        total(run(*leaves)).backward()
        grads.append([x.grad for x in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@cases
def test_the_backward_has_the_name_of_its_op(name):
    """Anomaly mode and profilers show nothing else."""
    op, inputs = CASES[name]
    nodes = {type(x.grad_fn).__name__ for x in as_tuple(op(*inputs))}
    assert nodes <= {f"{op}Backward" for op in NODES}
    assert len(nodes) == 1


NODES = (
    "GatherBoundaries",
    "SegmentSoftmax",
    "DifferenceRewards",
    "SentenceAttentionPool",
    "SentenceRewardHead",
    "BradleyTerryLoss",
    "TokenRewards",
    "PackedGae",
)


def test_a_module_may_be_loaded_again():
    """As a notebook's autoreload does. In a process of its own: here others hold the ops that it replaces."""
    code = """if True:
        import importlib, sys, torch, srm_kernels
        import srm_kernels.ops.difference_rewards.op as op
        again = importlib.reload(op).difference_rewards
        value, cu = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([0, 2])
        assert again(value, cu).tolist() == [1, 2]
        for name in [name for name in sys.modules if name.startswith("srm_kernels")]:
            del sys.modules[name]
        import srm_kernels
        srm_kernels.difference_rewards(value, cu).sum().backward()
        assert value.grad.tolist() == [0, 1]
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_gradient_does_not_need_may_change():
    """Rewards whose shape and dtype alone are asked for."""
    reward = torch.tensor([1.0, -1.0], requires_grad=True)
    scaled, sentence_reward = 2 * reward, reward.repeat(2)
    loss = k.bradley_terry_loss(scaled, torch.tensor([[0, 1]]))
    paid = k.token_rewards(sentence_reward, torch.arange(4), torch.tensor([0, 2, 4]), torch.zeros(4), torch.zeros(4))
    with torch.no_grad():
        scaled.zero_()
        sentence_reward.zero_()
    (loss + paid.sum()).backward()
    # 2 · -sigmoid(-4) and its opposite from the loss; two sentences of -1 earn.
    slope = 2 * torch.sigmoid(torch.tensor(-4.0))
    torch.testing.assert_close(reward.grad, torch.stack([-slope, slope + 2]))


KEEP_DTYPE = ("gather", "gather_layout", "softmax", "softmax_heads", "difference")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@cases
def test_arithmetic_is_fp32_and_rounds_once(name, dtype):
    """16-bit inputs give the bits that the same numbers give in fp32, rounded at the end where the op keeps its dtype."""
    op, inputs = CASES[name]
    ours = [x.detach().to(dtype).requires_grad_() for x in inputs]
    wider = torch.promote_types(dtype, torch.float32)
    theirs = [x.detach().to(wider).requires_grad_() for x in ours]
    out, expected = as_tuple(op(*ours)), as_tuple(op(*theirs))
    assert {x.dtype for x in out} == {dtype if name in KEEP_DTYPE else wider}
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(out, expected, strict=True))
    # Cotangents that 16 bits hold, so that both get the same.
    flowing = [(torch.arange(x.numel()).reshape(x.shape) % 7 - 3) / 4 for x in out]
    grads, expected_grads = (
        torch.autograd.grad(y, x, [g.to(z.dtype) for g, z in zip(flowing, y, strict=True)]) for y, x in ((out, ours), (expected, theirs))
    )
    for a, b in zip(grads, expected_grads, strict=True):
        if "softmax" in name:  # Its backward starts from weights that were rounded.
            torch.testing.assert_close(a, b.to(dtype), rtol=2e-2, atol=2e-2)
        else:
            assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("dynamic", [False, True])
@cases
def test_compiles_whole_forward_and_backward(name, dynamic):
    op, inputs = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: total(op(*x)), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected = total(op(*inputs))
    out = compiled(*inputs)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out, inputs), torch.autograd.grad(expected, inputs))


def test_one_graph_serves_all_lengths():
    """The number of sentences, responses and tokens differs in every batch: no recompilation after the first one."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def score(hidden: Tensor, boundaries: Tensor, cu: Tensor, weight: Tensor) -> Tensor:
        value = k.gather_boundaries(hidden, boundaries) @ weight
        return k.segment_softmax(k.difference_rewards(value, cu), cu).square().sum()

    compiled = torch.compile(score, fullgraph=True, backend=counter, dynamic=True)
    weight = torch.randn(4, requires_grad=True)
    graphs = []
    for lengths in ([3, 4], [5, 2, 2], [9, 1, 1, 6], [2, 30]):
        num = sum(lengths)
        arguments = (torch.randn(2 * num, 4), torch.arange(num) * 2, k.cu_from_lengths(lengths), weight)
        torch.testing.assert_close(compiled(*arguments), score(*arguments))
        compiled(*arguments).backward()
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 4


def test_numbers_that_change_stay_in_the_graph():
    """A KL coefficient that a controller moves reaches the checks as a symbol."""
    torch._dynamo.reset()
    x = torch.ones(9)

    def pay(kl_coef: float, gamma: float) -> Tensor:
        return k.packed_gae(k.token_rewards(x[:7], BOUNDARIES, CU, x, 0 * x, kl_coef), x, CU_TOKENS, gamma)[0]

    compiled = torch.compile(pay, fullgraph=True, backend="aot_eager")
    for kl_coef, gamma in ((0.1, 0.9), (0.2, 0.8), (0.3, 0.7)):
        torch.testing.assert_close(compiled(kl_coef, gamma), pay(kl_coef, gamma))


@cases
def test_a_forward_derivative_is_refused(name):
    """PyTorch would leave the op out of it and return 0."""
    op, inputs = CASES[name]
    inputs = tuple(x.detach() for x in inputs)
    with pytest.raises(RuntimeError, match=r"carries a forward-mode tangent.*Use its reference in srm_kernels\.ops"):
        torch.func.jvp(op, inputs, inputs)


@cases
def test_func_maps_over_values_and_refuses_the_rest(name):
    """vmap over one layout gives what a loop gives. torch.func.grad has no rule for a custom op, and says so."""
    op, inputs = CASES[name]
    batched = [torch.stack([x.detach(), 2 * x.detach()]) for x in inputs]
    for i, expected in enumerate(op(*(x[i] for x in batched)) for i in range(2)):
        torch.testing.assert_close(total(tuple(x[i] for x in as_tuple(torch.func.vmap(op)(*batched)))), total(expected))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda *x: total(op(*x)))(*(x[0] for x in batched))


@cases
def test_second_derivative_is_refused(name):
    op, inputs = CASES[name]
    # Squared, so that the gradient of a linear op depends on its input too.
    grads = torch.autograd.grad(total(op(*inputs)).square(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=r"it cannot be differentiated twice\. Use `[a-z_]+_reference` from srm_kernels.ops"):
        torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)


# Op to the arguments of its reference that follow the differentiable ones, and those.
REFERENCES: dict[str, tuple[tuple[object, ...], list[Tensor]]] = {
    "gather_boundaries": ((BOUNDARIES,), [draw(9, 4)]),
    "segment_softmax": ((CU,), [draw(7)]),
    "difference_rewards": ((CU,), [draw(7)]),
    "sentence_attention_pool": ((CU,), [draw(3, 4), draw(7, 4, seed=1), draw(7, seed=2)]),
    "bradley_terry_loss": ((PAIRS, 0.3, 0.1, 0.01), [draw(3)]),
    "packed_gae": ((CU_TOKENS, 0.9, 0.8), [draw(9), draw(9, seed=1)]),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_reference_is_the_way_out(name):
    """The function that the error names has a second derivative, and a forward one."""
    reference = getattr(importlib.import_module(f"srm_kernels.ops.{name}.reference"), f"{name}_reference")
    rest, inputs = REFERENCES[name]
    assert torch.autograd.gradgradcheck(lambda *x: reference(*x, *rest), inputs)
    assert torch.autograd.gradcheck(lambda *x: reference(*x, *rest), inputs, check_forward_ad=True)


def test_the_reference_is_the_way_out_of_token_rewards():
    inputs = [draw(7), draw(9, seed=1), draw(9, seed=2)]
    assert torch.autograd.gradgradcheck(lambda r, *x: token_rewards_reference(r, BOUNDARIES, CU, *x, 0.1, "k3"), inputs)


def arguments(name: str) -> tuple[object, ...]:
    """What the raw op of this name takes, backward ops included."""
    hidden, scores, values = draw(9, 4), draw(7, seed=2), draw(7, seed=3)
    query, key, logprobs, ref_logprobs, rewards = draw(3, 4, seed=4), draw(7, 4, seed=5), draw(9, seed=6), draw(9, seed=7), draw(3, seed=8)
    fixed = {x: x.detach() for x in (hidden, scores, values, query, key, logprobs, rewards)}
    parameters = [draw(*shape, seed=9 + i) for i, shape in enumerate(((1, 4), (1,), (4, 4), (4,), (4, 4), (4,)))]
    saved = torch.ops.srm_kernels.sentence_reward_head(
        *(hidden.detach(), BOUNDARIES, CU, *ORDER), *(x.detach() for x in parameters), 1e4, True, True, "attention", "torch"
    )[1:]
    return {
        "gather_boundaries": (hidden, BOUNDARIES, *ORDER, torch.float64, "torch"),
        "gather_boundaries_backward": (fixed[key], BOUNDARIES, *ORDER, 9, torch.float32, "torch"),
        "segment_softmax": (scores, CU, "torch"),
        "segment_softmax_backward": (fixed[values], fixed[scores], CU, "torch"),
        "difference_rewards": (values, CU, "torch"),
        "difference_rewards_backward": (fixed[values], CU, "torch"),
        "sentence_attention_pool": (query, key, values, CU, 1e4, True, True, "value_attention", "torch"),
        "sentence_attention_pool_backward": (
            *(fixed[x] for x in (rewards, scores, values, query, key, values)),
            CU,
            fixed[scores],
            fixed[values],
            1e4,
            True,
            True,
            "value_attention",
            "torch",
        ),
        "sentence_reward_head": (hidden, BOUNDARIES, CU, *ORDER, *parameters, 1e4, True, True, "attention", "torch"),
        "sentence_reward_head_backward": (
            *(fixed[rewards], fixed[scores], None, fixed[values], *saved, BOUNDARIES, CU, *ORDER),
            *(x.detach() for x in parameters),
            *(9, [True, True, False, True, True, True, True], 1e4, True, True, "attention", "torch"),
        ),
        "bradley_terry_loss": (rewards, PAIRS, None, None, 0.1, 0.01, "torch"),
        "bradley_terry_loss_backward": (fixed[rewards].sum(), fixed[rewards], torch.float32),
        "token_rewards": (scores, BOUNDARIES, CU, logprobs, ref_logprobs, 0.1, "k2", "torch"),
        "token_rewards_backward": (fixed[logprobs], BOUNDARIES, CU, fixed[logprobs], fixed[logprobs], 0.1, "k2", torch.float32, "torch"),
        "packed_gae": (logprobs, ref_logprobs, CU_TOKENS, rewards, 0.9, 0.8, "torch"),
        "packed_gae_backward": (fixed[logprobs], fixed[logprobs], CU_TOKENS, 0.9, 0.8, "torch"),
    }[name]


OP_NAMES = (
    "gather_boundaries",
    "gather_boundaries_backward",
    "segment_softmax",
    "segment_softmax_backward",
    "difference_rewards",
    "difference_rewards_backward",
    "sentence_attention_pool",
    "sentence_attention_pool_backward",
    "sentence_reward_head",
    "sentence_reward_head_backward",
    "bradley_terry_loss",
    "bradley_terry_loss_backward",
    "token_rewards",
    "token_rewards_backward",
    "packed_gae",
    "packed_gae_backward",
)


@pytest.mark.parametrize("name", OP_NAMES)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.srm_kernels, name), arguments(name))


@pytest.mark.parametrize("name", [name for name in OP_NAMES if not name.endswith("backward")])
def test_fake_tensors_have_the_dtypes_of_real_ones(name):
    """In fp64 all are alike: here what comes in has 16 bits."""
    halved = tuple(x.detach().half() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments(name))
    torch.library.opcheck(getattr(torch.ops.srm_kernels, name), halved, test_utils="test_faketensor")


@pytest.mark.interpreter
@pytest.mark.parametrize("name", OP_NAMES)
def test_opcheck_in_the_interpreter(name, monkeypatch):
    monkeypatch.setattr("srm_kernels.ops.packed_gae.kernels.CHUNK", 16)
    swapped = tuple("triton" if x == "torch" else x for x in arguments(name))
    torch.library.opcheck(getattr(torch.ops.srm_kernels, name), swapped)


@pytest.mark.interpreter
@pytest.mark.parametrize("attends", [True, False])
def test_opcheck_of_the_head_on_tensor_cores(attends):
    """It keeps tensors of other shapes there."""
    hidden, parameters = draw(9, 4).detach().bfloat16().requires_grad_(), [draw(1, 4, seed=1), draw(1, seed=2), *[None] * 4]
    if attends:
        parameters[2:] = [draw(4, 4, seed=3), draw(4, seed=4), draw(4, 4, seed=5), draw(4, seed=6)]
    parameters = [x if x is None else x.detach().float().requires_grad_() for x in parameters]
    options = (1e4 if attends else None, True, True, "attention" if attends else "sum", "triton")
    inputs = (hidden, BOUNDARIES, CU, *ORDER, *parameters, *options)
    torch.library.opcheck(torch.ops.srm_kernels.sentence_reward_head, inputs)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
    saved = torch.ops.srm_kernels.sentence_reward_head(*detached)[1:]
    flowing, needed = (torch.ones(3), torch.ones(7), None, None), [True] * (7 if attends else 3) + [False] * (0 if attends else 4)
    arguments = (*flowing, *saved, *detached[1:12], 9, needed, *options)
    torch.library.opcheck(torch.ops.srm_kernels.sentence_reward_head_backward, arguments)


def test_every_op_is_here():
    registered = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("srm_kernels::")}
    assert registered == set(OP_NAMES)
