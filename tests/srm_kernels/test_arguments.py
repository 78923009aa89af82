"""Tensors that cannot be right are refused before anything runs, by an error that names the argument.

Types, shapes and devices everywhere; the values of offsets where they can be read.
"""

import contextlib
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import srm_kernels as k
from srm_kernels import SentenceLayout, SentenceRewardHead

# Op on `x` [3] and offsets, and what its error calls the offsets.
OPS = {
    "segment_softmax": (lambda x, cu: k.segment_softmax(x, cu), "cu_seqlens", "len(score)"),
    "difference_rewards": (lambda x, cu: k.difference_rewards(x, cu), "cu_boundaries", "len(value)"),
    "sentence_attention_pool": (
        lambda x, cu: k.sentence_attention_pool(x.new_ones(len(cu) - 1, 2), x.new_ones(3, 2), x, cu),
        "cu_boundaries",
        "len(value)",
    ),
    "sentence_pool": (lambda x, cu: k.sentence_pool(x, cu, "mean"), "cu_boundaries", "len(value)"),
    "token_rewards": (lambda x, cu: k.token_rewards(x, torch.zeros_like(x).long(), cu, x, x), "cu_boundaries", "len(boundaries)"),
    "packed_gae": (lambda x, cu: k.packed_gae(x, x, cu), "cu_seqlens", "len(reward)"),
    "SentenceLayout": (lambda x, cu: k.SentenceLayout(torch.zeros_like(x).long(), cu), "cu_boundaries", "len(boundaries)"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])  # The second one's values cannot be read, as on a GPU.
@pytest.mark.parametrize("name", OPS)
def test_shapes_of_offsets(name, device):
    op, argument, total = OPS[name]
    x = torch.ones(3, device=device)
    # With no segment no kernel would be launched, and what comes back would be memory that nobody wrote.
    message = re.escape(f"{name}: `{argument}` must have B + 1 entries, got 1, so B = 0, but {total}=3. Rebuild")
    with pytest.raises(ValueError, match=message):
        op(x, torch.zeros(1, dtype=torch.int64, device=device))
    op(x, torch.tensor([0, 3], device=device))
    if name != "sentence_attention_pool":  # Its query has B rows, and here B would be -1.
        with pytest.raises(ValueError, match=rf"^{name}: `{argument}` must have B \+ 1 entries, got none"):
            op(x, torch.zeros(0, dtype=torch.int64, device=device))
    with pytest.raises(TypeError, match=rf"^{name}: `{argument}` must be int32 or int64, got torch\.float32"):
        op(x, torch.zeros(2, device=device))
    with pytest.raises(ValueError, match=rf"^{name}: `{argument}` must have one dimension"):
        op(x, torch.zeros(2, 1, dtype=torch.int64, device=device))


def empty_head(x: Tensor, cu: Tensor) -> Any:
    """The head takes offsets in a layout, which speaks for it."""
    return k.sentence_reward_head(x[:, None], SentenceLayout(torch.zeros_like(x).long(), cu), x.new_ones(1), x.new_ones(1), pooling="mean")


NO_SEGMENTS = {name: (op, name) for name, (op, *_) in OPS.items()} | {"sentence_reward_head": (empty_head, "SentenceLayout")}


@pytest.mark.parametrize("name", NO_SEGMENTS)
def test_no_segments_are_refused_by_shapes_alone(name):
    """Of a tensor that is not empty: compiled, also after a batch that was right, and where values cannot be read."""
    op, speaker = NO_SEGMENTS[name]
    message = rf"{speaker}: `cu_\w+` must have B \+ 1 entries, got 1, so B = 0, but len\(\w+\)=3"

    def run(x: Tensor, cu: Tensor) -> Any:
        out = op(x, cu)
        return out.boundaries if isinstance(out, SentenceLayout) else out

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    compiled(torch.ones(3), torch.tensor([0, 1, 3]))
    for function in (compiled, torch.compile(run, fullgraph=True, backend="aot_eager")):
        with pytest.raises(Exception, match=message):  # Dynamo's own, with ours inside.
            function(torch.ones(3), torch.zeros(1, dtype=torch.int64))
    with FakeTensorMode(), pytest.raises(ValueError, match=message):
        op(torch.ones(3), torch.zeros(1, dtype=torch.int64))


# Op on indices into the rows of `x`, of which there are none, and what its error calls them.
POINTERS = {
    "gather_boundaries": (lambda x, index: k.gather_boundaries(x[:, None], index), "boundaries"),
    "bradley_terry_loss": (lambda x, index: k.bradley_terry_loss(x, index[:, None].expand(-1, 2)), "pairs"),
    "token_rewards": (lambda x, index: k.token_rewards(x.new_ones(2), index, index, x, x), "boundaries"),
    "sentence_reward_head": (
        lambda x, index: k.sentence_reward_head(x[:, None], SentenceLayout(index, index), x.new_ones(1), x.new_ones(1), pooling="mean"),
        "boundaries",
    ),
}


@pytest.mark.parametrize("kind", ["cpu", "meta", "fake"])
@pytest.mark.parametrize("name", POINTERS)
def test_nothing_to_point_at(name, kind):
    op, argument = POINTERS[name]
    message = rf"^{name}: `{argument}` must lie in \[0, 0\), which is empty, but has shape \[2"
    device = "meta" if kind == "meta" else "cpu"
    with FakeTensorMode() if kind == "fake" else contextlib.nullcontext(), pytest.raises(IndexError, match=message):
        op(torch.ones(0, device=device), torch.tensor([0, 2], device=device))


def test_rows_whose_number_is_known_at_run_time_only(monkeypatch):
    """No check may ask for it while a graph is traced."""
    monkeypatch.setattr(torch._dynamo.config, "capture_dynamic_output_shape_ops", True)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, mask, index: k.gather_boundaries(x[mask], index), fullgraph=True, backend="aot_eager")
    x = torch.randn(9, 4)
    assert torch.equal(compiled(x, torch.arange(9) > 2, torch.tensor([0, 3])), x[[3, 6]])


@pytest.mark.parametrize("name", [name for name in OPS if name != "SentenceLayout"])  # Which has `validate`.
@pytest.mark.parametrize(
    ("offsets", "rule"),
    [
        ([1, 3], "must start at 0, got 1"),
        ([0, 2, 1, 3], r"must not fall, got 2 then 1 \(response 1\)"),
        ([0, 1, 2], "must end at .*=3, got 2"),
    ],
)
def test_values_of_offsets(name, offsets, rule):
    op, argument, _ = OPS[name]
    with pytest.raises(ValueError, match=f"^{name}: `{argument}` {rule}"):
        op(torch.ones(3), torch.tensor(offsets))


CU = torch.tensor([0, 3])
X, INDEX = torch.ones(3), torch.tensor([0, 1, 2])
# Op to its tensors and what else it needs.
TENSORS = {
    "gather_boundaries": ({"hidden": torch.ones(3, 2), "boundaries": INDEX}, {}),
    "segment_softmax": ({"score": X, "cu_seqlens": CU}, {}),
    "difference_rewards": ({"value": X, "cu_boundaries": CU}, {}),
    "sentence_attention_pool": ({"query": torch.ones(1, 2), "key": torch.ones(3, 2), "value": X, "cu_boundaries": CU}, {}),
    "sentence_pool": ({"value": X, "cu_boundaries": CU}, {"pooling": "mean"}),
    "bradley_terry_loss": ({"reward": X, "pairs": torch.tensor([[0, 1]]), "margin": torch.ones(1), "weight": torch.ones(1)}, {}),
    "token_rewards": ({"sentence_reward": X, "boundaries": INDEX, "cu_boundaries": CU, "logprobs": X, "ref_logprobs": X}, {}),
    "packed_gae": ({"reward": X, "value": X, "cu_seqlens": CU, "bootstrap_value": torch.ones(1)}, {}),
}
ARGUMENTS = [(name, argument) for name, (tensors, _) in TENSORS.items() for argument in tensors]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_types(name, argument):
    tensors, rest = TENSORS[name]
    kind = "floating point" if tensors[argument].is_floating_point() else "int32 or int64"
    wrong = tensors[argument].bool()
    with pytest.raises(TypeError, match=rf"^{name}: `{argument}` must be (an )?{kind}.*, got torch\.bool"):
        getattr(k, name)(**tensors | {argument: wrong}, **rest)
    with pytest.raises(TypeError, match=f"^{name}: `{argument}` must be .*(tensor|number), got list"):
        getattr(k, name)(**tensors | {argument: tensors[argument].tolist()}, **rest)
    if argument not in ("margin", "weight", "bootstrap_value"):
        with pytest.raises(TypeError, match=f"^{name}: `{argument}` must be .*tensor, got NoneType"):
            getattr(k, name)(**tensors | {argument: None}, **rest)


NUMBERS = [
    ("token_rewards", "kl_coef"),
    ("packed_gae", "gamma"),
    ("packed_gae", "lam"),
    ("bradley_terry_loss", "label_smoothing"),
    ("bradley_terry_loss", "centering"),
    ("sentence_attention_pool", "rope_theta"),
]


@pytest.mark.parametrize(("name", "number"), NUMBERS)
def test_numbers(name, number):
    """A tensor in a number's place would lose its gradient without a word."""
    tensors, rest = TENSORS[name]
    with pytest.raises(TypeError, match=rf"^{name}: `{number}` must be a Python number, got a tensor.*`{number}\.item\(\)`"):
        getattr(k, name)(**tensors, **rest, **{number: torch.tensor(0.5, requires_grad=True)})
    with pytest.raises(TypeError, match=f"^{name}: `{number}` must be a number, got str"):
        getattr(k, name)(**tensors, **rest, **{number: "0.5"})
    with pytest.raises(ValueError, match=f"^{name}: `{number}` must be"):
        getattr(k, name)(**tensors, **rest, **{number: float("nan")})


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("wrong", [None, ["torch"], "cuda"])
def test_backends(name, wrong):
    tensors, rest = TENSORS[name]
    with pytest.raises(ValueError, match=rf'^{name}: `backend` must be "auto", "triton" or "torch", got {re.escape(repr(wrong))}'):
        getattr(k, name)(**tensors, **rest, backend=wrong)


def test_margins_and_weights_of_pairs():
    tensors, _ = TENSORS["bradley_terry_loss"]
    for margin in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="bradley_terry_loss: `margin` must be finite"):
            k.bradley_terry_loss(tensors["reward"], tensors["pairs"], margin)
    with pytest.raises(ValueError, match=r"^bradley_terry_loss: `weight` must not be negative, got -2\.0 \(pair 1\)"):
        k.bradley_terry_loss(tensors["reward"], tensors["pairs"].expand(2, 2), weight=torch.tensor([1.0, -2.0]))


class Named(Tensor):
    """A subclass that changes nothing."""


@pytest.mark.parametrize("name", [name for name in OPS if name != "SentenceLayout"])
def test_values_of_subclasses_are_read_too(name):
    op, argument, _ = OPS[name]
    with pytest.raises(ValueError, match=f"{name}: `{argument}` must start at 0, got 1"):
        op(torch.ones(3), torch.tensor([1, 3]).as_subclass(Named))


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_devices(name, argument):
    tensors, rest = TENSORS[name]
    first, second, *_ = tensors
    moved = tensors | {argument: tensors[argument].to("meta")}
    wrong, right = (second if argument == first else argument), first
    message = rf"^{name}: `{wrong}` is on {moved[wrong].device}, but `{right}` is on {moved[right].device}\. Move it there"
    with pytest.raises(ValueError, match=message):
        getattr(k, name)(**moved, **rest)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_shapes(name, argument):
    """Two dimensions too many."""
    tensors, rest = TENSORS[name]
    with pytest.raises(ValueError, match=rf"^{name}: `{argument}` must have (shape|one dimension)"):
        getattr(k, name)(**tensors | {argument: tensors[argument][None, None]}, **rest)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """Of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


def test_parts_of_tensors_are_refused(mesh: Any) -> None:
    """Hidden states that are sharded, and weights of Linears that are sharded one by one: the head reads them past their modules."""
    layout = SentenceLayout(torch.tensor([0, 2]), torch.tensor([0, 2]))
    head, hidden = SentenceRewardHead(hidden_size=8, attention_size=4), torch.randn(3, 8)
    expected = head(hidden, layout).reward
    with pytest.raises(TypeError, match=r"sentence_reward_head: `hidden` is a DTensor.*`hidden\.full_tensor\(\)`"):
        head(distribute_tensor(hidden, mesh, [Shard(0)]), layout)
    with pytest.raises(TypeError, match=r"SentenceLayout: `boundaries` is a DTensor.*`boundaries\.full_tensor\(\)`"):
        SentenceLayout(distribute_tensor(layout.boundaries, mesh, [Shard(0)]), layout.cu_boundaries)
    whole = fully_shard(copy.deepcopy(head), mesh=mesh)
    assert torch.equal(whole(hidden, layout).reward, expected)
    for linear in (head.value, head.query, head.key):
        fully_shard(linear, mesh=mesh)
    with pytest.raises(TypeError, match=r"`value_weight` is a DTensor.*`fully_shard` the head or the model around it, not each Linear"):
        head(hidden, layout)
