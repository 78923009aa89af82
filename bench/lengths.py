"""Ragged batches to measure on: how long prompts, sentences and responses are, drawn from real pairs or from a distribution fitted to them.

A token here is a word or a punctuation mark. The generated lengths are log-normal, with the means and spreads of log-lengths of 1,500
pairs of five public preference sets, split by `srm.segmentation` (docs/results.md says which): prompts of 95 tokens on average, 9
sentences a response, 23 tokens a sentence, one boundary in 25 tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srm_kernels import SentenceLayout, cu_from_lengths

__all__ = ["Group", "PackedLengths", "generated_groups", "pack_lengths", "real_groups"]

# Mean and standard deviation of the logarithm, and the longest.
PROMPT_TOKENS, SENTENCES, SENTENCE_TOKENS = (3.99, 1.0, 831), (1.70, 1.02, 123), (2.73, 0.82, 578)
PIECE = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt's length in tokens, and for each of its responses the lengths of its sentences."""

    prompt: int
    responses: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        return self.prompt + sum(map(sum, self.responses))


@dataclass(frozen=True, kw_only=True)
class PackedLengths:
    """Groups packed into `num_tokens` = T: prompt, then its responses; what is left at the end belongs to no response.

    layout: the boundaries [N]; the responses of a group share their first one.
    cu_seqlens: int32 [S + 1], every prompt, every response and the rest as a sequence of its own.
    """

    num_tokens: int
    layout: SentenceLayout
    cu_seqlens: Tensor


def generated_groups(count: int = 2000, seed: int = 0) -> list[Group]:
    """Prompts with two responses each."""
    rng = random.Random(seed)

    def length(shape: tuple[float, float, int]) -> int:
        return min(max(1, round(rng.lognormvariate(*shape[:2]))), shape[2])

    return [
        Group(prompt=length(PROMPT_TOKENS), responses=tuple(tuple(length(SENTENCE_TOKENS) for _ in range(length(SENTENCES))) for _ in "cr"))
        for _ in range(count)
    ]


def real_groups(source: str, count: int = 1000, seed: int = 0) -> list[Group]:
    """`count` rows of `source`, drawn at random; anything that `srm-train` reads."""
    from srm.data import read_comparisons
    from srm.segmentation import make_segmenter

    segmenter = make_segmenter("punkt")

    def text_of(content: str | list[dict[str, object]]) -> str:
        return content if isinstance(content, str) else "\n".join(str(message["content"]) for message in content)

    def sentences(text: str) -> tuple[int, ...]:
        return tuple(max(1, len(PIECE.findall(text[span.start : span.end]))) for span in segmenter.segment(text)) or (1,)

    rows = read_comparisons(source, skip_bad_rows=True)
    return [
        Group(
            prompt=max(1, len(PIECE.findall(text_of(row.prompt)))),
            responses=tuple(sentences(text_of(response)) for response in row.responses),
        )
        for row in random.Random(seed).sample(rows, min(count, len(rows)))
    ]


def pack_lengths(groups: Sequence[Group], num_tokens: int) -> PackedLengths:
    """As many of `groups`, in order and from the start again, as fit `num_tokens`; one that does not fit is passed over."""
    boundaries: list[int] = []
    num_boundaries: list[int] = []
    lengths: list[int] = []
    position = 0
    for group in _that_fit(groups, num_tokens):
        shared = position + group.prompt - 1
        lengths += [group.prompt, *map(sum, group.responses)]
        position += group.prompt
        for response in group.responses:
            boundaries.append(shared)
            for length in response:
                position += length
                boundaries.append(position - 1)
            num_boundaries.append(len(response) + 1)
    if not boundaries:
        raise ValueError(f"pack_lengths: no group fits {num_tokens} tokens; the shortest has {min(g.num_tokens for g in groups)}.")
    return PackedLengths(
        num_tokens=num_tokens,
        layout=SentenceLayout(torch.tensor(boundaries), cu_from_lengths(num_boundaries)),
        cu_seqlens=cu_from_lengths([*lengths, num_tokens - position]),
    )


def _that_fit(groups: Sequence[Group], space: int) -> Iterator[Group]:
    missed = i = 0
    while missed < len(groups):
        group = groups[i % len(groups)]
        i += 1
        if group.num_tokens > space:
            missed += 1
            continue
        yield group
        space -= group.num_tokens
        missed = 0
