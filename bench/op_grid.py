"""Which ops and sizes bench/ops.py measures, and in which order: a run that is cut short has a cell of every goal before a second of any.

`width` is D, A, H or B, whichever the op has; 0 for none. T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["GOALS", "cells"]

# T and D of each round. The first is the size that goals are quoted at; large rows show bandwidth, small ones what a call costs.
ROUNDS = (
    (65536, 4096),
    (262144, 4096),
    (16384, 2048),
    (65536, 2048),
    (262144, 2048),
    (16384, 4096),
    (65536, 8192),
    (65536, 576),
    (16384, 576),
    (16384, 8192),
    (262144, 576),
    (262144, 8192),
)
# What a goal is said of, in docs/kernels.md, and with how many widths of its own beside the rounds' D; the head and the gather take D.
GOALS: dict[str, tuple[int, ...] | None] = {
    "sentence_reward_head": None,
    "gather_boundaries": None,
    "packed_gae": (0,),
    "sentence_attention_pool": (256,),
    "bradley_terry_loss": (4096, 64),
    "token_rewards": (0,),
    "segment_softmax": (0, 16),
    "difference_rewards": (0,),
    "sentence_pool": (0,),
}
_SMOKE = ((512, 16),)


def cells(only: str = "", *, smoke: bool = False) -> Iterator[tuple[str, int, int]]:
    """Op, width and T of each cell. only: what the op's name contains. smoke: one tiny cell of each op."""
    seen = set()
    for i, (num_tokens, hidden) in enumerate(_SMOKE if smoke else ROUNDS):
        for op, own in GOALS.items():
            width = hidden if own is None else own[i % len(own)]
            # Pairs know no tokens: their rewards are as many at every T.
            cell = (op, min(width, 16) if smoke else width, ROUNDS[0][0] if op == "bradley_terry_loss" and not smoke else num_tokens)
            if only in op and cell not in seen:
                seen.add(cell)
                yield cell
