"""The head against an independent loop over rows, and the module's contract."""

import copy
import itertools
import math
import pickle
import re

import pytest
import torch
import torch._dynamo.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm_kernels import SentenceLayout, SentenceRewardHead, cu_from_lengths, sentence_reward_head
from srm_kernels.ops.sentence_reward_head.reference import sentence_reward_head_reference

NAMES = ("value_weight", "value_bias", "query_weight", "query_bias", "key_weight", "key_bias")
# Two siblings share b_0 = 3; one response is only its prompt; one prompt token stands between.
LAYOUT = SentenceLayout(torch.tensor([3, 5, 9, 3, 14, 15, 18, 22]), cu_from_lengths([3, 3, 1, 1]))
NUM_TOKENS = 24


def weights(random, hidden_size=12, width=6):
    shapes = ((1, hidden_size), (1,), (width, hidden_size), (width,), (width, hidden_size), (width,))
    return {name: random(10 + i, *shape) / 3 for i, (name, shape) in enumerate(zip(NAMES, shapes, strict=True))}


def by_row(hidden, layout, w, *, pooling="value_attention", rope_theta=1e4, include_prompt=True, difference=True):
    """Section 2 of the method, one number at a time, in Python floats' precision."""

    def turn(x, i):
        if rope_theta is None:
            return x
        out = []
        for j in range(len(x) // 2):
            angle = i * rope_theta ** (-2 * j / len(x))
            out += [
                x[2 * j] * math.cos(angle) - x[2 * j + 1] * math.sin(angle),
                x[2 * j] * math.sin(angle) + x[2 * j + 1] * math.cos(angle),
            ]
        return torch.stack(out)

    rewards, sentence_rewards, attentions, values = [], [], [], []
    cu = layout.cu_boundaries.tolist()
    for start, end in itertools.pairwise(cu):
        h = [hidden[t] for t in layout.boundaries[start:end].tolist()]
        v = [(w["value_weight"].flatten() * x).sum() + w["value_bias"].squeeze() for x in h]
        r = [v[i] - v[i - 1] if difference and i else v[i] for i in range(len(v))]
        pooled = range(0 if include_prompt else 1, len(v))
        a = [torch.zeros((), dtype=hidden.dtype) for _ in v]
        if pooling in ("attention", "value_attention") and len(pooled):
            q = turn(w["query_weight"] @ h[-1] + w["query_bias"], len(v) - 1)
            scores = [(q * turn(w["key_weight"] @ h[i] + w["key_bias"], i)).sum() / math.sqrt(len(q)) for i in pooled]
            for i, share in zip(pooled, torch.stack(scores).softmax(0), strict=True):
                a[i] = share
        for i in pooled if pooling in ("mean", "sum", "last") else ():
            a[i] = a[i] + {"mean": 1 / len(pooled), "sum": 1, "last": float(i == len(v) - 1)}[pooling]
        rewards.append(sum(x * y for x, y in zip(a, v if pooling == "value_attention" else r, strict=True)))
        if pooling == "value_attention" and difference:
            a = [sum(a[i:]) for i in range(len(a))]
        sentence_rewards, attentions, values = sentence_rewards + r, attentions + a, values + v
    return [torch.stack(x) for x in (rewards, sentence_rewards, attentions, values)]


@pytest.mark.parametrize("pooling", ["attention", "value_attention", "mean", "sum", "last"])
@pytest.mark.parametrize(("include_prompt", "difference", "rope_theta"), [(True, False, 1e4), (False, True, 10.0), (False, False, None)])
def test_every_variant(lane, random, assert_close, pooling, include_prompt, difference, rope_theta):
    hidden, w = random(0, NUM_TOKENS, 12), weights(random)
    options = {"pooling": pooling, "include_prompt": include_prompt, "difference": difference, "rope_theta": rope_theta}
    layout = LAYOUT.to(lane.device)
    out = sentence_reward_head(hidden.to(lane.device), layout, *(x.to(lane.device) for x in w.values()), **options, backend=lane.backend)
    assert_close(out, by_row(hidden, LAYOUT, w, **options))
    assert out._fields == ("reward", "sentence_reward", "weight", "value")


def op(backend, hidden, pooling, **w):
    return tuple(sentence_reward_head(hidden, LAYOUT.to(hidden.device), **w, pooling=pooling, backend=backend))


def oracle(hidden, pooling, **w):
    return by_row(hidden, LAYOUT, w, pooling=pooling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("pooling", ["attention", "value_attention"])
def test_gradients(compare, random, pooling, dtype):
    compare(op, oracle, {"hidden": random(0, NUM_TOKENS, 12), **weights(random)}, dtype, scale=4, pooling=pooling)


def test_extreme_and_equal_states(lane, random):
    w = [x.to(lane.device, torch.float32) for x in weights(random).values()]
    equal = torch.full((NUM_TOKENS, 12), 1e4, device=lane.device)
    out = sentence_reward_head(equal, LAYOUT.to(lane.device), *w, rope_theta=None, backend=lane.backend)
    assert out.weight.tolist() == pytest.approx([1, 2 / 3, 1 / 3] * 2 + [1, 1])
    assert out.sentence_reward[[1, 2, 4, 5]].tolist() == [0] * 4
    opposite = equal * torch.tensor([1.0, -1.0], device=lane.device).repeat(NUM_TOKENS // 2)[:, None]
    out = sentence_reward_head(opposite, LAYOUT.to(lane.device), *w, backend=lane.backend)
    assert all(x.isfinite().all() for x in out)
    assert out.weight[[0, 3, 6, 7]].tolist() == pytest.approx([1] * 4)  # All attention is behind the first boundary.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_is_fp32_whatever_the_dtype_and_autocast(lane, random, assert_close, dtype):
    hidden, w = random(0, NUM_TOKENS, 12).to(dtype), {name: x.float() for name, x in weights(random).items()}
    arguments = (hidden.to(lane.device), LAYOUT.to(lane.device), *(x.to(lane.device) for x in w.values()))
    plain = sentence_reward_head(*arguments, backend=lane.backend)
    with torch.autocast(lane.device, dtype=torch.bfloat16):
        autocast = sentence_reward_head(*arguments, backend=lane.backend)
    for a, b in zip(plain, autocast, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
    assert_close(plain, by_row(hidden.double(), LAYOUT, {name: x.double() for name, x in w.items()}))


def test_non_contiguous_and_same_bits_twice(lane, random):
    """Hidden states, weights and layout with gaps between their elements."""
    plain = {"hidden": random(0, NUM_TOKENS, 12), **weights(random)}
    plain = {name: x.to(lane.device, torch.float32) for name, x in plain.items()}
    strided = {name: torch.stack((x, x), -1)[..., 0] for name, x in plain.items()}
    layout = LAYOUT.to(lane.device)
    gaps = SentenceLayout(*(torch.stack((x, x.flip(0)), 1)[:, 0] for x in (layout.boundaries, layout.cu_boundaries)))
    assert not gaps.boundaries.is_contiguous()
    runs = []
    for leaves, where in ((strided, gaps), (strided, gaps), (plain, layout)):
        hidden, *w = leaves = [x.detach().requires_grad_() for x in leaves.values()]
        out = sentence_reward_head(hidden, where, *w, backend=lane.backend)
        runs.append([*out, *torch.autograd.grad(sum(x.square().sum() for x in out), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs[:2], strict=True))
    for a, b in zip(runs[0], runs[2], strict=True):  # Products of strided matrices may add in another order.
        torch.testing.assert_close(a, b)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout(lane, data):
    num_tokens = data.draw(st.integers(1, 30))
    rows = data.draw(st.lists(st.sets(st.integers(0, num_tokens - 1), min_size=1, max_size=6), min_size=1, max_size=4))
    layout = SentenceLayout(torch.tensor([t for row in rows for t in sorted(row)]), cu_from_lengths([len(row) for row in rows]))
    layout.validate(num_tokens)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    hidden = torch.randn(num_tokens, 5, dtype=torch.float64, generator=generator)
    shapes = ((1, 5), (1,), (4, 5), (4,), (4, 5), (4,))
    w = {name: torch.randn(s, dtype=torch.float64, generator=generator) for name, s in zip(NAMES, shapes, strict=True)}
    options = {"include_prompt": data.draw(st.booleans()), "difference": data.draw(st.booleans())}
    out = sentence_reward_head(
        hidden.to(lane.device), layout.to(lane.device), *(x.to(lane.device) for x in w.values()), **options, backend=lane.backend
    )
    for a, b in zip(out, by_row(hidden, layout, w, **options), strict=True):
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize("pooling", ["attention", "value_attention", "mean", "sum", "last"])
def test_zero_start(pooling):
    torch.manual_seed(0)
    head = SentenceRewardHead(64, pooling=pooling)
    assert not head.value.weight.any()
    assert not head.value.bias.any()
    assert hasattr(head, "query") == hasattr(head, "key") == (pooling in ("attention", "value_attention"))
    if hasattr(head, "query"):
        assert head.query.weight.shape == head.key.weight.shape == (256, 64)
        assert head.query.weight.std().item() == pytest.approx(0.001, rel=0.05)
        assert not head.key.bias.any()
    out = head(torch.randn(NUM_TOKENS, 64), LAYOUT)
    assert not out.reward.any()
    weights = {"value_attention": [1.0, 2 / 3, 1 / 3], "sum": [1.0] * 3, "last": [0.0, 0.0, 1.0]}.get(pooling, [1 / 3] * 3)
    assert out.weight[:3].tolist() == pytest.approx(weights, abs=1e-3)


def test_module_equals_function(random):
    head = SentenceRewardHead(12, attention_size=6, rope_theta=100.0, include_prompt=False, difference=False).double()
    w = weights(random)
    head.load_state_dict({name.replace("_", "."): x for name, x in w.items()})
    hidden = random(0, NUM_TOKENS, 12)
    expected = sentence_reward_head(hidden, LAYOUT, *w.values(), rope_theta=100.0, include_prompt=False, difference=False)
    assert all(torch.equal(a, b) for a, b in zip(head(hidden, LAYOUT), expected, strict=True))


def test_copies_score_alike(random, tmp_path):
    """A deep copy, a pickle, and the weights alone in another head; of the layout too."""
    head, hidden = SentenceRewardHead(12, attention_size=6, include_prompt=False), random(0, NUM_TOKENS, 12).float()
    torch.nn.init.normal_(head.value.weight)
    expected = head(hidden, LAYOUT)
    other = SentenceRewardHead(12, attention_size=6, include_prompt=False)
    torch.save(head.state_dict(), tmp_path / "head.pt")
    other.load_state_dict(torch.load(tmp_path / "head.pt"))
    for copied in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), other):
        for layout in (LAYOUT, copy.deepcopy(LAYOUT), pickle.loads(pickle.dumps(LAYOUT))):
            assert all(torch.equal(a, b) for a, b in zip(copied(hidden, layout), expected, strict=True))


def test_one_graph_serves_all_layouts():
    head = SentenceRewardHead(12, attention_size=6)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled, graphs = torch.compile(head, fullgraph=True, backend=counter, dynamic=True), []
    for lengths in ([3, 4], [5, 2, 2], [9, 1, 1, 6]):
        num = sum(lengths)
        layout, hidden = SentenceLayout(torch.arange(num), cu_from_lengths(lengths)), torch.randn(2 * num, 12, requires_grad=True)
        out = compiled(hidden, layout)
        torch.testing.assert_close(tuple(out), tuple(head(hidden, layout)))
        out.reward.sum().backward()
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 3


def test_it_learns_from_the_zero_start(random):
    """At value zero the query and key get no gradient, the value does: one step later all of them do."""
    head = SentenceRewardHead(12, attention_size=6)
    hidden = random(0, NUM_TOKENS, 12).float()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        head(hidden, LAYOUT).reward[0].backward()
        optimizer.step()
    assert head.value.weight.grad.any()
    assert head.query.weight.grad.any()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_no_boundaries(lane, lengths):
    head = SentenceRewardHead(8, attention_size=4, backend=lane.backend).to(lane.device)
    layout = SentenceLayout(torch.zeros(0, dtype=torch.int64), cu_from_lengths(lengths)).to(lane.device)
    for num_tokens in (0, 5):
        hidden = torch.ones(num_tokens, 8, device=lane.device, requires_grad=True)
        out = head(hidden, layout)
        assert out.reward.tolist() == [0.0] * len(lengths)
        (out.reward.sum() + out.weight.sum()).backward()
        assert not hidden.grad.any()


def test_errors():
    head = SentenceRewardHead(8, attention_size=4)
    head.query = torch.nn.Sequential(head.query)
    with pytest.raises(TypeError, match=r"`query` must be nn\.Linear, got Sequential.*modules_to_save"):
        head(torch.ones(NUM_TOKENS, 8), LAYOUT)
    with pytest.raises(
        ValueError, match=r"^SentenceRewardHead: `pooling` must be one of attention, value_attention, mean, sum, last, got 'max'"
    ):
        SentenceRewardHead(8, pooling="max")
    with pytest.raises(
        ValueError, match=r"^sentence_reward_head: `pooling` must be one of attention, value_attention, mean, sum, last, got 'max'"
    ):
        sentence_reward_head(torch.ones(NUM_TOKENS, 8), LAYOUT, torch.ones(1, 8), torch.ones(1), pooling="max")
    with pytest.raises(ValueError, match="the width A of `attention_size` must be even for rotary pairs, got 5"):
        SentenceRewardHead(8, attention_size=5)
    with pytest.raises(ValueError, match="the width A of `attention_size` must be at least 1, got 0"):
        SentenceRewardHead(8, attention_size=0)
    with pytest.raises(ValueError, match=r"`rope_theta` must be positive, got -1\.0\. None turns"):
        SentenceRewardHead(8, rope_theta=-1.0)
    with pytest.raises(ValueError, match=r"^SentenceRewardHead: `backend` must be .*, got 'cuda'"):
        SentenceRewardHead(8, backend="cuda")
    with pytest.raises(TypeError, match=r"`layout` must be a SentenceLayout, got Tensor\. Make one"):
        sentence_reward_head(torch.ones(NUM_TOKENS, 8), LAYOUT.boundaries, torch.ones(1, 8), torch.ones(1), pooling="mean")
    with pytest.raises(ValueError, match="needs the weights and biases of query and key"):
        sentence_reward_head(torch.ones(NUM_TOKENS, 8), LAYOUT, torch.ones(1, 8), torch.ones(1))
    with pytest.raises(ValueError, match=r"`value_weight` must have shape \[1, D\] or \[D\] with D=8, got \[1, 9\]"):
        sentence_reward_head(torch.ones(NUM_TOKENS, 8), LAYOUT, torch.ones(1, 9), torch.ones(1), pooling="mean")
    # One for each boundary would be added up without a word.
    with pytest.raises(ValueError, match=r"`value_bias` must have one element, got shape \[8\]"):
        sentence_reward_head(torch.ones(NUM_TOKENS, 8), LAYOUT, torch.ones(1, 8), torch.ones(8), pooling="mean")
    hidden = torch.ones(NUM_TOKENS, 8)
    shapes = dict(zip(NAMES, ((1, 8), (1,), (4, 8), (4,), (4, 8), (4,)), strict=True))
    for name, wrong, meaning in (("query_weight", (4, 9), "[A, D]"), ("key_weight", (6, 8), "[A, D]"), ("key_bias", (1,), "[A]")):
        weights = {other: torch.ones(shape) for other, shape in (shapes | {name: wrong}).items()}
        message = f"sentence_reward_head: `{name}` must have shape {meaning} = {list(shapes[name])}, got {list(wrong)}"
        with pytest.raises(ValueError, match=re.escape(message)):
            sentence_reward_head(hidden, LAYOUT, **weights)
    weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    for name in NAMES:
        with pytest.raises(TypeError, match=f"^sentence_reward_head: `{name}` must be floating point"):
            sentence_reward_head(hidden, LAYOUT, **weights | {name: weights[name].bool()})
    for name in NAMES[2:]:
        with pytest.raises(
            ValueError, match=r'^sentence_reward_head: `pooling="value_attention"` needs the weights and biases of query and key'
        ):
            sentence_reward_head(hidden, LAYOUT, **weights | {name: None})


@pytest.mark.parametrize("head", [sentence_reward_head, sentence_reward_head_reference])
def test_hidden_and_the_value_decide_the_dtype(head, random):
    """The other parameters are rounded to it; one of fp64 does not make the outputs so."""
    hidden, w = random(0, NUM_TOKENS, 12).float(), weights(random)
    rounded = {name: x.float() for name, x in w.items()}
    expected = head(hidden, LAYOUT, **rounded)
    for name in NAMES[1:]:
        out = head(hidden, LAYOUT, **rounded | {name: w[name]})
        assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(out, expected, strict=True)), name
    assert {x.dtype for x in head(hidden, LAYOUT, **rounded | {"value_weight": w["value_weight"]})} == {torch.float64}
    flat = head(hidden, LAYOUT, **rounded | {"value_weight": rounded["value_weight"][0], "value_bias": rounded["value_bias"][0]})
    assert all(torch.equal(a, b) for a, b in zip(flat, expected, strict=True))


@pytest.mark.interpreter
@pytest.mark.parametrize("pooling", ["value_attention", "mean"])
def test_every_step_runs_on_the_backend_that_was_asked_for(random, monkeypatch, pooling):
    parts = "srm_kernels.ops.sentence_reward_head.parts"
    for name in ("gather_boundaries_reference", "gather_boundaries_backward_reference", "pool_and_rotation"):
        monkeypatch.setattr(f"{parts}.{name}", lambda *_: 1 / 0)
    monkeypatch.setattr(f"{parts}.sentence_attention_pool_backward_reference", lambda *_: 1 / 0)
    for dtype in (torch.float64, torch.bfloat16):
        hidden, w = random(0, NUM_TOKENS, 12).to(dtype).requires_grad_(), {name: x.to(dtype) for name, x in weights(random).items()}
        sentence_reward_head(hidden, LAYOUT, **w, pooling=pooling, backend="triton").reward.sum().backward()


def exact_head(hidden, layout, w, dtype=torch.float64):
    """Outputs of the definition and gradients of the sum of their squares, in fp64."""
    leaves = [x.detach().to("cpu", dtype).requires_grad_() for x in (hidden, *w)]
    out = sentence_reward_head_reference(leaves[0], layout.to("cpu"), *leaves[1:])
    return [*out, *torch.autograd.grad(sum(x.square().sum() for x in out), leaves)]


def off_by(got, exact):
    """The error of the whole tensor beside its norm."""
    return (torch.linalg.vector_norm(got.detach().cpu().double() - exact) / torch.linalg.vector_norm(exact)).item()


def test_bf16_rows_lose_nothing_to_tensor_cores(lane, random):
    """Terms of bf16 come as close to fp64 as fp32 does, the gradient of `hidden` but for its own rounding."""
    width, layout = 1024, LAYOUT.to(lane.device)
    hidden, w = random(0, NUM_TOKENS, width).bfloat16(), [x.float() / 8 for x in weights(random, width, 16).values()]
    exact, fp32 = (exact_head(hidden, LAYOUT, w, dtype) for dtype in (torch.float64, torch.float32))
    leaves = [x.to(lane.device).requires_grad_() for x in (hidden, *w)]
    out = sentence_reward_head(leaves[0], layout, *leaves[1:], backend=lane.backend)
    got = [*out, *torch.autograd.grad(sum(x.square().sum() for x in out), leaves)]
    errors = [
        (off_by(ours, wanted.detach()), off_by(theirs, wanted.detach())) for ours, theirs, wanted in zip(got, fp32, exact, strict=True)
    ]
    # The values, a product and nothing else. Two terms would be off by 1e-5; what fp32 loses depends on how a CPU's units add up.
    assert errors[3][0] < max(2.5e-7, 2 * errors[3][1])
    for i, (ours, theirs) in enumerate(errors):
        rounding = 2**-8 if i == len(out) else 0  # Of the gradient of `hidden`, to bf16.
        assert ours < max(4 * theirs, 1e-6) + rounding, i
