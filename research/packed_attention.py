"""Time ways to compute attention over a packed row on one CPU core: a call per segment, with slices, and with a block mask.

    python -m research.packed_attention --json outputs/packed_attention.json

Every variant is checked against the first before it is timed; they run in turn, and the best of the rounds counts. Needs no data.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from bench import environment
from srm.memory import keep_freed_memory
from srm.packing.backends.sdpa import attend
from srm.packing.plan import AttentionPlan

# SmolLM2-135M: query heads, key and value heads, width of a head.
HEADS, KV_HEADS, WIDTH = 9, 3, 64
# Prompt length and response lengths of each group.
ROWS: dict[str, list[tuple[int, list[int]]]] = {
    "87 + (235, 197)": [(87, [235, 197])],
    "300 + (300, 200)": [(300, [300, 200])],
    "1024 + 16 x 256": [(1024, [256] * 16)],
    "4 x (40 + 8 x 30)": [(40, [30] * 8)] * 4,
}
Attention = Callable[[Tensor, Tensor, Tensor, list[tuple[int, list[int]]]], Tensor]


def main() -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    result = {
        **environment.describe(),
        "attention": {name: time_attention(groups, arguments.rounds) for name, groups in ROWS.items()},
    }
    print(json.dumps(result, indent=2))
    environment.write(arguments.json, result)


def time_attention(groups: list[tuple[int, list[int]]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of one layer in bf16: forward, forward and backward."""
    tokens = sum(prompt + sum(responses) for prompt, responses in groups)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, tokens, WIDTH).bfloat16().requires_grad_() for heads in (HEADS, KV_HEADS, KV_HEADS))
    variants: dict[str, Attention] = {
        "ours: a call per segment, split": ours,
        "a call per segment, slices": slices,
        "a mask per group": block_mask,
    }
    expected = ours(query, key, value, groups)
    for name, variant in variants.items():
        torch.testing.assert_close(variant(query, key, value, groups), expected, atol=0.02, rtol=0.02, msg=f"{name} is wrong")
    gradient = torch.randn_like(expected)
    best = {name: [float("inf")] * 2 for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            start = time.perf_counter()
            output = variant(query, key, value, groups)
            forward = time.perf_counter() - start
            output.backward(gradient)
            both = time.perf_counter() - start
            query.grad = key.grad = value.grad = None
            best[name] = [min(old, 1e3 * new) for old, new in zip(best[name], (forward, both), strict=True)]
    return {name: [round(milliseconds, 1) for milliseconds in times] for name, times in best.items()}


def ours(query: Tensor, key: Tensor, value: Tensor, groups: list[tuple[int, list[int]]]) -> Tensor:
    lengths: list[int] = []
    parents: list[int] = []
    for prompt, responses in groups:
        parent = len(lengths)
        lengths += [prompt, *responses]
        parents += [-1, *[parent] * len(responses)]
    plan = AttentionPlan(lengths=tuple(lengths), parents=tuple(parents))
    return attend(query, key, value, plan, scaling=None, dropout=0.0, window=None)


def slices(query: Tensor, key: Tensor, value: Tensor, groups: list[tuple[int, list[int]]]) -> Tensor:
    outputs, start = [], 0
    for prompt, responses in groups:
        own = slice(start, start + prompt)
        outputs.append(sdpa(query[:, :, own], key[:, :, own], value[:, :, own], is_causal=True, enable_gqa=True))
        first, start = own, start + prompt
        for length in responses:
            part = slice(start, start + length)
            k, v = (torch.cat([x[:, :, first], x[:, :, part]], dim=2) for x in (key, value))
            mask = torch.ones(length, prompt + length, dtype=torch.bool).tril(prompt)
            outputs.append(sdpa(query[:, :, part], k, v, attn_mask=mask, enable_gqa=True))
            start += length
    return torch.cat(outputs, dim=2).transpose(1, 2)


def block_mask(query: Tensor, key: Tensor, value: Tensor, groups: list[tuple[int, list[int]]]) -> Tensor:
    outputs, start = [], 0
    for prompt, responses in groups:
        segment = torch.repeat_interleave(torch.tensor([prompt, *responses]))
        position = torch.arange(len(segment))
        mask = (position[:, None] >= position) & ((segment[:, None] == segment) | (segment == 0))
        part = slice(start, start + len(segment))
        outputs.append(sdpa(query[:, :, part], key[:, :, part], value[:, :, part], attn_mask=mask, enable_gqa=True))
        start += len(segment)
    return torch.cat(outputs, dim=2).transpose(1, 2)


if __name__ == "__main__":
    main()
