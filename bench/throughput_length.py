"""The modes `length` and `length-train` of bench/throughput.py: what a token costs in longer and longer packed rows of equal sequences.

Attention grows with the length of a sequence, so only rows of sequences of one length tell whether anything else grows with the row.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from providers import Batch, Contender, Models, ours, ours_both_passes
from workloads import generated_groups, real_tokens

__all__ = ["GROUP_TOKENS", "length_contenders", "length_summary", "print_lengths"]

# Each row is made of groups of a prompt and two responses.
_PROMPT, _RESPONSE, _SIZE = 128, 192, 2
GROUP_TOKENS = _PROMPT + _SIZE * _RESPONSE


def length_contenders(models: Models, lengths: Sequence[int], *, backward: bool) -> dict[str, Contender]:
    """By its tokens, one model on one packed row of each of `lengths`, multiples of `GROUP_TOKENS`, shortest first.

    backward: the forward and the backward pass, with gradient checkpointing, or the longest row would not fit; else scoring.
    """
    count = max(lengths) // GROUP_TOKENS
    vocabulary = models.config.vocab_size
    rows = generated_groups(count, size=_SIZE, prompt=_PROMPT, response=_RESPONSE, spread=0.0, vocabulary=vocabulary)
    common: dict[str, Any] = {"packing": "shared", "budget": GROUP_TOKENS}
    contender = ours_both_passes(models, rows[:1], checkpointing=True, **common) if backward else ours(models, rows[:1], **common)
    parts = ((length, rows[: length // GROUP_TOKENS]) for length in sorted(lengths))
    return {
        str(length): replace(contender, batches=[Batch(items=part, tokens=length, real_tokens=real_tokens(part))]) for length, part in parts
    }


def length_summary(
    rounds: dict[str, list[dict[str, Any]]], peaks: dict[str, float | None], *, operations: float, product: float, errors: dict[str, float]
) -> dict[str, Any]:
    """Of each length, the seconds of a token at the median, and round by round against the shortest.

    operations: floating-point operations of a token. product: those of a second that the device can do.
    """
    per_token = {length: [record["seconds"] / record["tokens"] for record in records] for length, records in rounds.items()}
    shortest = next(iter(per_token.values()))
    lengths = {}
    for length, seconds in per_token.items():
        relative = [ours / theirs for ours, theirs in zip(seconds, shortest, strict=True)]
        lengths[length] = {
            "seconds_per_token": statistics.median(seconds),
            "relative": statistics.median(relative),
            "low": min(relative),
            "high": max(relative),
            "utilisation": operations / statistics.median(seconds) / product,
            "peak_gb": peaks[length],
            "rounds": rounds[length],
        }
    return {"sequences": f"{_SIZE} responses of {_RESPONSE} tokens to prompts of {_PROMPT}", "lengths": lengths, "reward_error": errors}


def print_lengths(mode: str, found: dict[str, Any]) -> None:
    print(f"\n{mode:12} {'tokens/s':>12} {'use':>5} {'peak GB':>8}  a token's cost against the shortest row's ({found['sequences']})")
    for length, row in found["lengths"].items():
        peak = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}"
        relative = f"{row['relative']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
        print(f"{length:12} {1 / row['seconds_per_token']:12.0f} {row['utilisation']:5.0%} {peak:>8}  {relative}")
