"""What only a device can show: CUDA graphs, streams, no synchronisation, no recompilation, 2^31 elements, the sanitizer's checkers.

The numbers are checked by the `gpu` lane of the tests one folder up. Run all with `pytest -m gpu tests/srm_kernels`.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import srm_kernels as k
from srm_kernels import compile_check
from srm_kernels.ops.sentence_reward_head.reference import sentence_reward_head_reference

pytestmark = pytest.mark.gpu

NUM_TOKENS, WIDTH = 400, 64
LENGTHS = [12, 1, 30, 7]
PARAMETERS = ((1, WIDTH), (1,), (32, WIDTH), (32,), (32, WIDTH), (32,))


def layout(lengths: list[int], num_tokens: int = NUM_TOKENS) -> k.SentenceLayout:
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = [torch.randperm(num_tokens, generator=generator)[:n].sort().values for n in lengths]
    return k.SentenceLayout(torch.cat(rows), k.cu_from_lengths(lengths)).to("cuda")


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype).requires_grad_()


def weights() -> list[Tensor]:
    return [draw(i, *shape) for i, shape in enumerate(PARAMETERS)]


def everything(hidden: Tensor, lay: k.SentenceLayout, w: list[Tensor]) -> Tensor:
    """All ops in one scalar."""
    out = k.sentence_reward_head(hidden, lay, *w, backend="triton")
    pairs = torch.arange(4, device="cuda").reshape(2, 2)
    loss = k.bradley_terry_loss(out.reward, pairs, 0.1, 0.1, 0.01, backend="triton")
    logprobs = hidden.float().mean(1)
    paid = k.token_rewards(out.sentence_reward, lay.boundaries, lay.cu_boundaries, logprobs, 0.5 * logprobs, 0.1, "k3", backend="triton")
    # Not `torch.tensor`: a copy from the host cannot be captured.
    cu_tokens = torch.arange(3, device="cuda") * hidden.shape[0] // 2
    advantages, returns = k.packed_gae(paid, logprobs, cu_tokens, 0.99, 0.95, backend="triton")
    share = k.segment_softmax(k.difference_rewards(out.value, lay.cu_boundaries, backend="triton"), lay.cu_boundaries, backend="triton")
    return loss + advantages.square().mean() + returns.mean() + share.square().sum() + out.weight.square().sum()


def step(hidden: Tensor, lay: k.SentenceLayout, w: list[Tensor]) -> list[Tensor]:
    loss = everything(hidden, lay, w)
    return [loss, *torch.autograd.grad(loss, [hidden, *w])]


def test_a_captured_graph_replays_on_new_data():
    hidden, lay, w = draw(9, NUM_TOKENS, WIDTH, dtype=torch.bfloat16), layout(LENGTHS), weights()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(hidden, lay, w)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(hidden, lay, w)
    # The same shapes, other contents: other lengths, other positions, other states.
    other = layout([1, 20, 9, 20])
    with torch.no_grad():
        hidden.copy_(draw(10, NUM_TOKENS, WIDTH))
        lay.boundaries.copy_(other.boundaries)
        lay.cu_boundaries.copy_(other.cu_boundaries)
    graph.replay()
    torch.cuda.synchronize()
    for got, expected in zip(captured, step(hidden, other, w), strict=True):
        assert torch.equal(got, expected)


def test_nothing_waits_for_the_device():
    hidden, lay, w = draw(9, NUM_TOKENS, WIDTH), layout(LENGTHS), weights()
    cu_tokens = torch.tensor([0, 100, NUM_TOKENS], device="cuda")
    step(hidden, lay, w)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = k.sentence_reward_head(hidden, lay, *w)
        k.packed_gae(hidden[:, 0], hidden[:, 1], cu_tokens, 0.99, 0.95)
        torch.autograd.grad(out.reward.sum(), [hidden, *w])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_streams_do_not_disturb_each_other():
    jobs = [(draw(i, NUM_TOKENS, WIDTH), layout([n, 40 - n, 3, 5]), weights()) for i, n in enumerate(range(1, 20))]
    expected = [step(*job) for job in jobs]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    results = []
    for i, job in enumerate(jobs):
        with torch.cuda.stream(streams[i % 2]):
            results.append(step(*job))
    torch.cuda.synchronize()
    for got, wanted in zip(results, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_other_lengths_compile_nothing():
    """Counts are not specialised on: 1, multiples of 16 and others share one binary, and so does what they make of buffers."""
    modules = [importlib.import_module(f"srm_kernels.ops.{op}.kernels") for op in compile_check.OPS]
    kernels = {kernel.fn: kernel for module in modules for kernel in vars(module).values() if hasattr(kernel, "device_caches")}.values()

    def count() -> int:
        return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())

    w, counts = weights(), []
    for num_tokens, lengths in ((2049, LENGTHS), (3001, [1, 1, 1, 1]), (2048, [16, 16, 16, 16]), (4100, [17, 3, 2, 300]), (7000, LENGTHS)):
        hidden, lay = draw(0, num_tokens, WIDTH), layout(lengths, num_tokens)
        step(hidden, lay, w)
        counts.append(count())
    assert counts[0] > 10
    assert counts == counts[:1] * 5


def free_memory(num_bytes: float) -> None:
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 1.1 * num_bytes:
        pytest.skip(f"needs {num_bytes / 2**30:.0f} GiB of free device memory")


@pytest.mark.parametrize("row_gap", [1, 3])
def test_hidden_states_past_two_to_the_31_elements(row_gap):
    width = 8192
    num_tokens = 2**31 // width + 5
    free_memory(2 * num_tokens * width * (row_gap + 1))
    hidden = torch.zeros(num_tokens, row_gap * width, dtype=torch.bfloat16, device="cuda")[:, :width].requires_grad_()
    with torch.no_grad():
        hidden[-1], hidden[0] = 3, 1
    boundaries = torch.tensor([num_tokens - 1, 0, num_tokens - 1], device="cuda")
    out = k.gather_boundaries(hidden, boundaries, backend="triton")
    assert out[:, 0].tolist() == [3, 1, 3]
    (grad,) = torch.autograd.grad(out, hidden, torch.ones_like(out))
    assert grad[-1].unique().tolist() == [2]
    assert grad[0].unique().tolist() == [1]
    assert not grad[1:-1].any()


def test_tokens_past_two_to_the_31():
    """Zeros, and at the end a sequence that must come out as it does alone."""
    num, tail = 2**31 + 1000, 1500
    free_memory(26 * num)
    first, second = (torch.zeros(num, dtype=torch.float16, device="cuda") for _ in range(2))
    first[-tail:], second[-tail:] = draw(0, tail).detach(), draw(1, tail).detach()
    cu, cu_tail = torch.tensor([0, num - tail, num], device="cuda"), torch.tensor([0, tail], device="cuda")
    boundaries = torch.tensor([tail // 2, tail - 1], device="cuda")
    ends, reward = torch.tensor([0, 2], device="cuda"), torch.ones(2, device="cuda")

    def compared(run: Callable[..., Tensor]) -> None:
        at_the_end = run(first, second, cu, boundaries + num - tail)
        alone = run(first[-tail:].clone(), second[-tail:].clone(), cu_tail, boundaries)
        torch.testing.assert_close(at_the_end[-tail:], alone, rtol=1e-5, atol=1e-5)
        assert not at_the_end[:-tail].any()

    compared(lambda x, y, cu, _: k.packed_gae(x, y, cu, 0.99, 0.95, backend="triton")[0])
    compared(lambda x, y, cu, _: k.difference_rewards(x, cu, backend="triton"))
    compared(lambda x, y, _, ends_at: k.token_rewards(reward, ends_at, ends, x, y, 0.1, "k3", backend="triton"))


def test_segments_past_two_to_the_31_elements():
    """Equal scores in segments of 8 rows: every weight is an eighth, to the last one."""
    width = 2048
    num = 2**31 // width + 8
    free_memory(10 * num * width)
    cu = torch.arange(0, num + 1, 8, device="cuda")
    rows = torch.zeros(num, width, dtype=torch.float16, device="cuda").requires_grad_()
    weight = k.segment_softmax(rows, cu, backend="triton")
    assert weight.eq(0.125).all()
    # The gradient that flows in is 1 in the last row of all, 0 elsewhere.
    flowing = torch.zeros_like(weight)
    flowing[-1] = 1
    (grad,) = torch.autograd.grad(weight, rows, flowing)
    assert grad[-8:, -1].tolist() == [-1 / 64] * 7 + [7 / 64]
    assert not grad[:-8].any()
    del weight, flowing, grad
    query, value = torch.ones(cu.numel() - 1, width, dtype=torch.float16, device="cuda"), torch.ones(num, device="cuda")
    value[-1] = 9
    reward, _, attention = k.sentence_attention_pool(query, rows, value, cu, None, difference=False, backend="triton")
    assert attention.eq(0.125).all()
    (grad,) = torch.autograd.grad(reward[-1], rows)
    assert grad[-8:, -1].tolist() == pytest.approx([-1 / 8 / width**0.5] * 7 + [7 / 8 / width**0.5], rel=1e-3)
    assert not grad[:-8].any()


def test_compiles_whole_on_the_device():
    hidden, lay, w = draw(9, NUM_TOKENS, WIDTH), layout(LENGTHS), weights()
    compiled = torch.compile(everything, fullgraph=True)
    loss = compiled(hidden, lay, w)
    # Between our ops Inductor adds in an order of its own.
    torch.testing.assert_close([loss, *torch.autograd.grad(loss, [hidden, *w])], step(hidden, lay, w), rtol=1e-4, atol=1e-4)


def test_the_head_on_tensor_cores_is_as_exact_as_fp32():
    """At a width where a product adds up thousands of numbers; its bits repeat."""
    num_tokens, width, attention = 4000, 4096, 256
    lay = layout([40] * 20, num_tokens)
    shapes = ((1, width), (1,), (attention, width), (attention,), (attention, width), (attention,))
    hidden, w = (
        draw(0, num_tokens, width, dtype=torch.bfloat16),
        [(draw(i + 1, *shape) / 64).detach().requires_grad_() for i, shape in enumerate(shapes)],
    )

    def run(head: Callable[..., tuple[Tensor, ...]], leaves: list[Tensor]) -> list[Tensor]:
        out = head(leaves[0], lay, *leaves[1:])
        return [*out, *torch.autograd.grad(sum(x.square().sum() for x in out), leaves)]

    exact, fp32 = (
        run(sentence_reward_head_reference, [x.detach().to(dtype).requires_grad_() for x in (hidden, *w)])
        for dtype in (torch.float64, torch.float32)
    )
    got, again = (run(lambda *x: k.sentence_reward_head(*x, backend="triton"), [hidden, *w]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    for i, (ours, theirs, wanted) in enumerate(zip(got, fp32, exact, strict=True)):
        norm = torch.linalg.vector_norm(wanted)
        error, usual = (torch.linalg.vector_norm(x.double() - wanted) / norm for x in (ours, theirs))
        rounding = 2**-8 if i == 4 else 0  # Of the gradient of `hidden`, to bf16.
        # A tensor core takes 16 products a step and cuts its sum off where fp32 rounds, so errors add up with the steps.
        assert error < max(4 * usual, width / 16 * 2**-24) + rounding, (i, float(error), float(usual))


def test_a_second_device_is_chosen_by_the_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    values, cu = torch.arange(4.0, device="cuda:1"), torch.tensor([0, 4], device="cuda:1")
    assert k.difference_rewards(values, cu, backend="triton").tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_the_sanitizer_finds_nothing_in_our_kernels(tool: str):
    """All kernels are watched, or initcheck would not see what others wrote; only reports that name one of ours count."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    code = """
        import importlib.util
        spec = importlib.util.spec_from_file_location("checks", {path!r})
        checks = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(checks)
        checks.step(checks.draw(9, checks.NUM_TOKENS, checks.WIDTH), checks.layout(checks.LENGTHS), checks.weights())
    """
    # torch's allocator hands out parts of one large block: without it, each tensor's bounds are known.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    script = textwrap.dedent(code).format(path=__file__)
    command = [sanitizer, "--tool", tool, "--print-limit", "10000", sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    assert "SUMMARY:" in output, output[-4000:]
    ours = {case.kernel.__name__ for op in compile_check.OPS for case in compile_check._cases(op)}
    found = [line for line in output.splitlines() if line.startswith("=========") and any(name in line for name in ours)]
    assert not found, "\n".join(found[:40])
