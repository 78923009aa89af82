"""Time the small pieces on one CPU core: sentence splitters, and ways to compute attention over a packed row.

    python bench/pieces.py [--input pairs.jsonl.gz] --json bench/results/pieces_cpu.json

Every variant is checked against the first before it is timed; they run in turn, and the best of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import environment
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from srm.memory import keep_freed_memory
from srm.packing.backends.sdpa import attend
from srm.packing.plan import AttentionPlan
from srm.segmentation import make_segmenter

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", help="pairs to segment; generated ones where it is not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    result = {
        **environment.describe(),
        "segmentation": time_segmenters(texts_of(arguments.input), arguments.rounds),
        "attention": {name: time_attention(groups, arguments.rounds) for name, groups in ROWS.items()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")


def texts_of(source: str | None) -> list[str]:
    if source is None:
        from srm.data.synthetic import generate_pairs

        return [text for pair in generate_pairs(4000, split="train") for text in (pair.chosen, pair.rejected)]
    from srm.data import read_responses

    return [row.response for row in read_responses(source)]


def time_segmenters(texts: list[str], rounds: int) -> dict[str, object]:
    """Megabytes of UTF-8 a second."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    plain = PunktSentenceTokenizer()
    splitters: dict[str, Callable[[str], list[tuple[int, int]]]] = {
        "NLTK PunktSentenceTokenizer() alone": lambda text: list(plain.span_tokenize(text)),
        **{name: make_segmenter(name).segment for name in ("punkt", "newline")},
    }
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, split in splitters.items():
            start = time.process_time()
            for text in texts:
                split(text)
            best[name] = min(best.get(name, float("inf")), time.process_time() - start)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    return {
        "responses": len(texts),
        "megabytes": round(megabytes, 2),
        "megabytes_per_second": {name: round(megabytes / seconds, 2) for name, seconds in best.items()},
    }


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
