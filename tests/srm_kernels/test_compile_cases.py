"""compile_check leaves no configuration out: what the launchers ask the compiler for is recorded, and each request has its case.

Recording needs no GPU: a stand-in for the driver names a target, and Triton's hook before a compilation says that there is nothing to do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from srm_kernels import compile_check, cu_from_lengths
from srm_kernels.ops.bradley_terry_loss import kernels as bradley_terry
from srm_kernels.ops.difference_rewards import kernels as difference
from srm_kernels.ops.gather_boundaries import kernels as gather
from srm_kernels.ops.packed_gae import kernels as gae
from srm_kernels.ops.segment_softmax import kernels as softmax
from srm_kernels.ops.sentence_attention_pool import kernels as pool
from srm_kernels.ops.sentence_reward_head import kernels as head
from srm_kernels.ops.token_rewards import kernels as tokens
from srm_kernels.ops.token_rewards.reference import ESTIMATORS

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUM_TOKENS, BOUNDARIES, CU = 9, torch.tensor([9, 1, 3, 8, 1, 2])[1:], torch.tensor([9, 0, 3, 3, 5], dtype=torch.int32)[1:]
# Sizes and numbers that a kernel is compiled for without choosing anything by them.
SIZES = {"D", "E", "A", "P", "Q", "H", "LOG2_THETA"}
# Widths from one to beyond every tile.
HIDDEN_WIDTHS, HEADS = range(1, 4200), range(1, 65)
Request = tuple[Any, ...]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> set[Request]:
    """What launches ask for from here on. They compile and run nothing."""
    recorded: set[Request] = set()

    def record(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        names = fn.jit_function.arg_names
        (attributes,) = compile["configs"]
        constants = {names[i]: value for (i,), value in compile["constants"].items()}
        signature = {name: kind for name, kind in compile["signature"].items() if kind != "constexpr"}
        divisible = {names[i] for (i,), kinds in attributes.items() if ["tt.divisibility", 16] in kinds}
        recorded.add(request(names, fn.name, signature, constants, divisible, compile["num_warps"]))
        return True

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: "none", get_current_stream=lambda device: 0
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", record)
    return recorded


def request(
    names: list[str], kernel: str, signature: dict[str, str], constants: dict[str, Any], divisible: set[str], num_warps: int
) -> Request:
    """One configuration, comparable. How an index is loaded has nothing to do with the rest: both widths are one here."""
    kinds = tuple((name, "index" if signature[name] in ("*i32", "*i64") else signature[name]) for name in names if name in signature)
    chosen = tuple((name, str(constants[name])) for name in names if name in constants and name not in SIZES)
    return kernel.rpartition(".")[2], kinds, chosen, tuple(sorted(divisible)), num_warps


def compiled(op: str) -> set[Request]:
    """What `compile_check` compiles for `op`."""
    return {
        request(
            case.kernel.arg_names,
            case.kernel.__name__,
            dict(case.signature),
            dict(case.constants),
            {name for name, kind in case.signature.items() if kind.startswith("*")} - set(case.unaligned) | set(case.divisible),
            case.num_threads // 32,
        )
        for case in compile_check._cases(op)
    }


def first_of_each(widths: range, key: Callable[[int], Any]) -> Iterator[int]:
    """The first width of each kind."""
    return iter({str(key(width)): width for width in reversed(widths)}.values())


def chosen(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in SIZES}


def wider(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def zeros_like(x: Tensor) -> Tensor:
    """What a caller hands in, where `x` is what a kernel would have written."""
    return torch.zeros(*x.shape, dtype=x.dtype)


def launch_gather(dtype: torch.dtype) -> None:
    # Besides the tile, a launch tells rows that are aligned, and a stride of 1, from others.
    def kind(width: int) -> Any:
        return chosen(gather.tile_config(width, wider(dtype).itemsize)), width % 16 == 0, width == 1

    for width in first_of_each(HIDDEN_WIDTHS, kind):
        hidden = torch.zeros(NUM_TOKENS, width, dtype=dtype)
        for out_dtype in {dtype, wider(dtype)}:
            out = gather.gather_boundaries_forward(hidden, BOUNDARIES, out_dtype)
            gather.gather_boundaries_backward(zeros_like(out), BOUNDARIES, NUM_TOKENS, dtype)


def launch_softmax(dtype: torch.dtype) -> None:
    for heads in first_of_each(HEADS, lambda heads: chosen(softmax.softmax_config(heads))):
        weight = softmax.segment_softmax_forward(torch.zeros(5, heads, dtype=dtype), CU)
        softmax.segment_softmax_backward(zeros_like(weight), zeros_like(weight), CU)


def launch_difference(dtype: torch.dtype) -> None:
    difference.difference_rewards_forward(torch.zeros(5, dtype=dtype), CU)
    difference.difference_rewards_backward(torch.zeros(5, dtype=dtype), CU)


def launch_pool(dtype: torch.dtype) -> None:
    def run(width: int | None, theta: float | None, include_prompt: bool, take_differences: bool, pooling: str) -> None:
        query, key = (None, None) if width is None else (torch.zeros(3, width, dtype=dtype), torch.zeros(5, width, dtype=dtype))
        value = torch.zeros(5, dtype=dtype)
        outputs = pool.sentence_attention_pool_forward(query, key, value, CU, theta, include_prompt, take_differences, pooling)
        grads = map(zeros_like, outputs)
        options = theta, include_prompt, take_differences, pooling
        pool.sentence_attention_pool_backward(*grads, query, key, value, CU, *map(zeros_like, outputs[1:]), *options)

    widest = 4096 if dtype == torch.float64 else 8192
    with pytest.raises(ValueError, match=f"`query` and `key` must have A of at most {widest} for the kernels, got {widest + 1}"):
        run(widest + 1, 1e4, True, True, "attention")
    for width in first_of_each(range(1, widest + 1), lambda width: chosen(pool.pool_config(width, wider(dtype).itemsize))):
        for pooling in ("attention", "value_attention"):
            run(width, 1e4, True, True, pooling)
    run(255, None, False, False, "attention")
    run(256, 1e4, False, True, "value_attention")
    for pooling in ("mean", "sum", "last"):
        run(None, None, True, True, pooling)


def launch_bradley_terry(dtype: torch.dtype) -> None:
    for margin, weight in itertools.product((None, torch.zeros(1, dtype=wider(dtype))), (None, torch.zeros(1))):
        bradley_terry.bradley_terry_loss_with_grad(torch.zeros(3, dtype=dtype), torch.tensor([[0, 1]]), margin, weight, 0.1, 0.01)


def launch_tokens(dtype: torch.dtype) -> None:
    inputs = [torch.zeros(n, dtype=dtype) for n in (5, NUM_TOKENS, NUM_TOKENS)]
    for estimator in ESTIMATORS:
        arguments = (BOUNDARIES, CU, *inputs[1:], 0.1, estimator)
        tokens.token_rewards_backward(zeros_like(tokens.token_rewards_forward(inputs[0], *arguments)), *arguments, dtype)


def launch_gae(dtype: torch.dtype) -> None:
    for num in (NUM_TOKENS, 3 * gae.CHUNK):  # With one chunk there is nothing to carry.
        cu, inputs = cu_from_lengths([num]), [torch.zeros(num, dtype=dtype) for _ in range(2)]
        for bootstrap in (None, torch.zeros(1, dtype=dtype)):
            out = gae.packed_gae_forward(*inputs, cu, 0.9, 0.8, bootstrap)
            gae.packed_gae_backward(*map(zeros_like, out), cu, 0.9, 0.8)


def launch_head(dtype: torch.dtype) -> None:
    """Its own kernels run on bf16 alone; the weights have a dtype of their own."""
    if dtype == torch.bfloat16:
        for of_weights, attention in itertools.product((dtype, torch.float32), (0, 6)):
            launch_head_with(of_weights, head.Columns.of(attention))


def launch_head_on(boundaries: Tensor, cu: Tensor, hidden: Tensor) -> None:
    """All of a step, as its kernels would."""
    c, weights = head.Columns.of(6), tuple(torch.zeros(*shape) for shape in ((1, 64), (1,), (6, 64), (6,), (6, 64), (6,)))
    row, _ = head.operands(hidden.bfloat16(), boundaries, cu, weights, c)
    num, num_responses = len(boundaries), len(cu) - 1
    head.outputs_of_terms(torch.zeros(num, 3 * c.P), torch.zeros(num_responses, 3 * c.Q), c)
    grads = torch.zeros(num), None, torch.zeros(num_responses, 6), torch.zeros(num, 6)
    head.split_gradients(*grads, torch.sort(boundaries), cu, c, for_rows=True, for_weights=True)
    head.weight_gradients_of_terms(torch.zeros(3 * (c.P + c.Q), row.shape[1]), weights, 64, c)


def launch_head_with(dtype: torch.dtype, c: head.Columns) -> None:
    def kind(width: int) -> Any:
        return chosen(head.tile_config(width, True)), width % 16 == 0, width == 1

    def zeros(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(*shape, dtype=of)

    for width in first_of_each(HIDDEN_WIDTHS, kind):
        shapes = ((1, width), (1,), (c.A, width), (c.A,), (c.A, width), (c.A,))
        weights = tuple(zeros(*shape, of=dtype) if c.A or i < 2 else None for i, shape in enumerate(shapes))
        head.operands(zeros(NUM_TOKENS, width, of=torch.bfloat16), BOUNDARIES, CU, weights, c)
        head.weight_gradients_of_terms(torch.empty(3 * (c.P + c.Q), head.in_eights(width + 1)), weights, width, c)
    # What a product returns lies where an allocation begins.
    head.outputs_of_terms(torch.empty(5, 3 * c.P), torch.empty(3, 3 * c.Q) if c.A else None, c)
    grads = [zeros(3, c.A), zeros(5, c.A)] if c.A else [None, None]
    for flowing, (for_rows, for_weights) in itertools.product((None, zeros(5)), ((True, False), (False, True), (True, True))):
        order = torch.sort(BOUNDARIES)
        head.split_gradients(zeros(5), flowing, *grads, order, CU, c, for_rows=for_rows, for_weights=for_weights)


LAUNCHES = {
    "gather_boundaries": launch_gather,
    "segment_softmax": launch_softmax,
    "difference_rewards": launch_difference,
    "sentence_attention_pool": launch_pool,
    "bradley_terry_loss": launch_bradley_terry,
    "token_rewards": launch_tokens,
    "packed_gae": launch_gae,
    "sentence_reward_head": launch_head,
}


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls an op hands it slices that begin in the middle of 16 bytes."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **kind: zeros(math.prod(shape) + 1, **kind)[1:].view(shape))


@pytest.mark.parametrize("op", compile_check.OPS)
def test_every_configuration_has_its_case(op, requests):
    for dtype in DTYPES:
        LAUNCHES[op](dtype)
    kernels = {case.kernel.__name__ for case in compile_check._cases(op)}
    assert {kernel for kernel, *_ in requests} == kernels, "a kernel is never launched here, or has no case"
    missing = requests - compiled(op)
    assert not missing, "\n".join(map(str, sorted(missing)))


@pytest.mark.parametrize("op", compile_check.OPS)
def test_slices_have_their_case_too(op, requests, slices):
    """They are copied, but for `hidden`, of which few rows are read."""
    for dtype in DTYPES:
        LAUNCHES[op](dtype)
    pointers = {(name, name in divisible) for _, kinds, _, divisible, _ in requests for name, kind in kinds if name.endswith("_ptr")}
    assert {name for name, is_aligned in pointers if not is_aligned} == (
        {"hidden_ptr"} if op in ("gather_boundaries", "sentence_reward_head") else set()
    )
    missing = requests - compiled(op)
    assert not missing, "\n".join(map(str, sorted(missing)))


def test_a_configuration_without_a_case_is_noticed(requests, monkeypatch):
    """As if somebody gave some widths another tile."""
    config = pool.pool_config
    monkeypatch.setattr(pool, "pool_config", lambda width, itemsize: config(width, itemsize) | ({"BLOCK_N": 3} if width == 300 else {}))
    LAUNCHES["sentence_attention_pool"](torch.float32)
    missing = requests - compiled("sentence_attention_pool")
    assert {kernel for kernel, *_ in missing} == {"pool_kernel", "pool_backward_kernel"}
    assert all(("BLOCK_N", "3") in constants for _, _, constants, *_ in missing)


def test_other_counts_ask_for_nothing_new(requests):
    """Counts of 1, multiples of 16 and others, and whatever they make of the sizes of buffers: one binary serves all."""
    asked = []
    for lengths in ([1], [16] * 4, [5, 0, 1000], [3000], [4096, 1], [5000]):
        requests.clear()
        num, cu = sum(lengths), cu_from_lengths(lengths)
        x, hidden = torch.zeros(num), torch.zeros(num, 64)
        boundaries = torch.arange(num)
        gather.gather_boundaries_backward(hidden, boundaries, num, torch.float32)
        gather.gather_boundaries_forward(hidden, boundaries, torch.float32)
        softmax.segment_softmax_forward(x, cu)
        difference.difference_rewards_forward(x, cu)
        pool.sentence_attention_pool_forward(torch.zeros(len(lengths), 64), hidden, x, cu, 1e4, True, True, "attention")
        bradley_terry.bradley_terry_loss_with_grad(x, torch.zeros(num, 2, dtype=torch.int64), None, None, 0.0, 0.0)
        tokens.token_rewards_forward(x, boundaries, cu, x, x, 0.1, "k1")
        gae.packed_gae_forward(x, x, cu, 0.9, 0.8, None)
        launch_head_on(boundaries, cu, hidden)
        asked.append(set(requests))
    everything = set().union(*asked)
    assert len(everything) == len({kernel for kernel, *_ in everything}), "\n".join(map(str, sorted(everything)))
