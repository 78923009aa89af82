"""Rows to run backbones on: pairs as long as real ones, or read from a file, and groups of many responses to one prompt.

The generated lengths are log-normal: means 87 (prompt), 235 (chosen) and 197 (rejected) tokens, and the spreads and correlations of 2,235
real pairs of at most 1,024 tokens in SmolLM2's tokens (docs/results.md says which pairs). Padded in random batches of 8 they hold 2.8
times the tokens of a row with shared prompts, sorted as pairs 1.4 times, sorted as single sequences 1.17 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from srm.data import EncodedComparison
from srm.packing import ResponseIds
from srm.packing.batch import IntArray

if TYPE_CHECKING:
    from srm.data import ResponseEncoder

__all__ = ["generated_groups", "generated_pairs", "padded_tokens", "random_text", "read_pairs", "real_tokens"]

WORDS = ("the", "a", "cat", "dog", "house", "river", "stone", "walks", "sees", "finds", "quickly", "old", "new", "bright", "under", "today")

# Of the logarithms of the lengths of prompt, chosen and rejected response.
_MEAN = np.array([4.296, 5.299, 5.027])
_DEVIATION = np.array([0.571, 1.035, 1.252])
_CORRELATION = np.array([[1, -0.063, -0.119], [-0.063, 1, 0.694], [-0.119, 0.694, 1]])
_SENTENCE_TOKENS = 27


def generated_pairs(count: int, *, vocabulary: int, max_length: int, seed: int = 0) -> list[EncodedComparison]:
    """`count` pairs of random ids; rows over `max_length` are drawn anew, as training drops them."""
    random = np.random.default_rng(seed)
    # A shorter limit than the fit's shrinks the lengths, or hardly any row would be left.
    mean = _MEAN + min(0.0, float(np.log(max_length / 1024)))
    covariance = np.outer(_DEVIATION, _DEVIATION) * _CORRELATION
    rows: list[EncodedComparison] = []
    while len(rows) < count:
        prompt, *responses = (max(1, round(float(x))) for x in np.exp(random.multivariate_normal(mean, covariance)))
        if prompt + max(responses) <= max_length:
            rows.append(_row(random, vocabulary, prompt, responses, pairs=((0, 1, None),)))
    return rows


def generated_groups(
    count: int, *, size: int, prompt: int, response: int, vocabulary: int, spread: float = 0.25, seed: int = 0
) -> list[EncodedComparison]:
    """`count` prompts of `prompt` tokens with `size` responses each of `response` tokens, up to `spread` of that shorter or longer."""
    random = np.random.default_rng(seed)
    low, high = (max(1, round(share * response)) for share in (1 - spread, 1 + spread))
    return [
        _row(random, vocabulary, prompt, [int(n) for n in random.integers(low, high, size, endpoint=True)], pairs=()) for _ in range(count)
    ]


def read_pairs(source: str, encoder: ResponseEncoder, *, count: int, max_length: int, seed: int = 0) -> list[EncodedComparison]:
    """`count` rows drawn from `source`, anything that `srm-train` reads; longer ones are dropped before."""
    from srm.data import encode_comparisons, read_comparisons

    rows = read_comparisons(source)
    drawn = np.random.default_rng(seed).permutation(len(rows))[: 2 * count]
    encoded, _ = encode_comparisons([rows[i] for i in drawn], encoder, max_length=max_length, overlong="drop", progress=False)
    pairs = [row for row in encoded if len(row.responses) == 2]
    if len(pairs) < count:
        raise SystemExit(f"throughput: {source} has {len(pairs)} pairs of at most {max_length} tokens, and --pairs asks for {count}.")
    return pairs[:count]


def random_text(draw: Random, num_words: int) -> str:
    """Sentences of random words."""
    return " ".join(draw.choice(WORDS) + ("." if draw.random() < 0.08 else "") for _ in range(num_words))


def real_tokens(rows: Sequence[EncodedComparison]) -> int:
    """Tokens of prompt and response of every response: what is scored, however it is laid out."""
    return sum(len(row.prompt_ids) * len(row.responses) + sum(len(response.ids) for response in row.responses) for row in rows)


def padded_tokens(rows: Sequence[EncodedComparison]) -> int:
    """Tokens of `rows` as one padded batch."""
    return sum(len(row.responses) for row in rows) * max(row.longest for row in rows)


def _row(random: np.random.Generator, vocabulary: int, prompt: int, responses: Sequence[int], pairs: tuple) -> EncodedComparison:
    def ids(count: int) -> IntArray:
        # The first ids are special tokens, among them what padding is told by.
        return random.integers(3, vocabulary, count, dtype=np.int32)

    def response(count: int) -> ResponseIds:
        ends = np.append(np.arange(_SENTENCE_TOKENS - 1, count - 1, _SENTENCE_TOKENS), count - 1).astype(np.int32)
        return ResponseIds(ids=ids(count), sentence_ends=ends)

    return EncodedComparison(prompt_ids=ids(prompt), responses=tuple(map(response, responses)), pairs=pairs, where="generated")
