"""What is counted: every op, forward and backward, at three sizes of ragged batches. Only public functions, so that kernels may change.

Shape letters: `T` tokens, `N` boundaries, `B` responses, `D` hidden, `A` attention width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

import srm_kernels as ops
from bench.lengths import PackedLengths, generated_groups, pack_lengths

__all__ = ["CASES", "CountCase"]

TOKENS, HIDDEN, ATTENTION = (16384, 65536, 262144), 4096, 256
RESPONSES = (64, 512, 4096)
Run = Callable[[], "tuple[Tensor, list[Tensor]]"]


@dataclass(frozen=True, kw_only=True)
class CountCase:
    """One op at one size.

    Attributes:
        op: its name, and how it is called where there are several ways.
        size: what the batch is like.
        make: gives the function that runs the forward pass: an output, and the inputs that its gradient is for.
        whole: all programs run, because a later kernel reads places that an earlier one wrote.
    """

    op: str
    size: str
    make: Callable[[], Run]
    whole: bool = False


@cache
def packed(num_tokens: int) -> PackedLengths:
    """Prompts and responses with the lengths of real ones."""
    return pack_lengths(generated_groups(), num_tokens)


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros: what is counted does not depend on values. Of a gigabyte only the pages exist that somebody reads."""
    make = torch.empty if torch.Size(shape).numel() > 1 << 24 else torch.zeros
    return make(shape, dtype=dtype).requires_grad_()


def gather(num_tokens: int, width: int, out_dtype: torch.dtype) -> Run:
    layout, hidden = packed(num_tokens).layout, leaf(num_tokens, width, dtype=torch.bfloat16)
    return lambda: (ops.gather_boundaries(hidden, layout.boundaries, out_dtype=out_dtype, backend="triton"), [hidden])


def softmax(num_tokens: int) -> Run:
    layout = packed(num_tokens).layout
    score = leaf(layout.num_boundaries)
    return lambda: (ops.segment_softmax(score, layout.cu_boundaries, backend="triton"), [score])


def difference(num_tokens: int) -> Run:
    layout = packed(num_tokens).layout
    value = leaf(layout.num_boundaries)
    return lambda: (ops.difference_rewards(value, layout.cu_boundaries, backend="triton"), [value])


def pool(num_tokens: int, width: int, pooling: str) -> Run:
    layout = packed(num_tokens).layout
    inputs = [leaf(layout.num_responses, width), leaf(layout.num_boundaries, width), leaf(layout.num_boundaries)]
    return lambda: (ops.sentence_attention_pool(*inputs, layout.cu_boundaries, pooling=pooling, backend="triton")[0], inputs)


def head(num_tokens: int, hidden_width: int, width: int) -> Run:
    layout, hidden = packed(num_tokens).layout, leaf(num_tokens, hidden_width, dtype=torch.bfloat16)
    weights = [leaf(*shape) for shape in ((1, hidden_width), (1,), (width, hidden_width), (width,), (width, hidden_width), (width,))]
    return lambda: (ops.sentence_reward_head(hidden, layout, *weights, backend="triton").reward, [hidden, *weights])


def plain_pool(num_tokens: int) -> Run:
    layout = packed(num_tokens).layout
    value = leaf(layout.num_boundaries)
    return lambda: (ops.sentence_pool(value, layout.cu_boundaries, "mean", backend="triton")[0], [value])


def bradley_terry(num_responses: int, shuffled: bool) -> Run:
    """Each response in one pair: beside its partner in the batch, as trainers have them, or anywhere."""
    order = torch.randperm(num_responses, generator=torch.Generator().manual_seed(0)) if shuffled else torch.arange(num_responses)
    reward, pairs = leaf(num_responses), order.reshape(-1, 2)
    return lambda: (ops.bradley_terry_loss(reward, pairs, centering=0.01, backend="triton"), [reward])


def token_rewards(num_tokens: int) -> Run:
    layout = packed(num_tokens).layout
    inputs = [leaf(layout.num_boundaries), leaf(num_tokens), leaf(num_tokens)]

    def run() -> tuple[Tensor, list[Tensor]]:
        reward, logprobs, reference = inputs
        return ops.token_rewards(reward, layout.boundaries, layout.cu_boundaries, logprobs, reference, 0.05, "k3", backend="triton"), inputs

    return run


def gae(num_tokens: int) -> Run:
    cu_seqlens, inputs = packed(num_tokens).cu_seqlens, [leaf(num_tokens), leaf(num_tokens)]
    return lambda: (ops.packed_gae(*inputs, cu_seqlens, 0.99, 0.95, backend="triton")[0], inputs)


def _cases() -> Iterator[CountCase]:
    for num_tokens in TOKENS:
        wide, narrow, plain = f"T={num_tokens} D={HIDDEN} bf16", f"T={num_tokens} A={ATTENTION}", f"T={num_tokens}"
        yield CountCase(op="gather_boundaries", size=wide, make=partial(gather, num_tokens, HIDDEN, torch.bfloat16))
        yield CountCase(op="gather_boundaries to fp32", size=wide, make=partial(gather, num_tokens, HIDDEN, torch.float32))
        yield CountCase(op="segment_softmax", size=plain, make=partial(softmax, num_tokens))
        yield CountCase(op="difference_rewards", size=plain, make=partial(difference, num_tokens))
        for pooling in ("attention", "value_attention"):
            yield CountCase(op=f"sentence_attention_pool {pooling}", size=narrow, make=partial(pool, num_tokens, ATTENTION, pooling))
        yield CountCase(op="sentence_pool mean", size=plain, make=partial(plain_pool, num_tokens))
        yield CountCase(op="sentence_reward_head", size=f"{wide} A={ATTENTION}", make=partial(head, num_tokens, HIDDEN, ATTENTION))
        yield CountCase(op="token_rewards k3", size=plain, make=partial(token_rewards, num_tokens), whole=True)
        yield CountCase(op="packed_gae", size=plain, make=partial(gae, num_tokens))
    for num_responses in RESPONSES:
        yield CountCase(op="bradley_terry_loss", size=f"B={num_responses}", make=partial(bradley_terry, num_responses, False))
        yield CountCase(op="bradley_terry_loss shuffled", size=f"B={num_responses}", make=partial(bradley_terry, num_responses, True))


CASES = sorted(_cases(), key=lambda case: case.op)
