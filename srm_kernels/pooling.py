"""How sentence rewards become the response's reward."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["ATTENTION_POOLINGS", "PLAIN_POOLINGS", "POOLINGS", "Pooling", "check_pooling"]

Pooling = Literal["attention", "value_attention", "mean", "sum", "last"]
"""What pools the sentence rewards `r_i` of a response into its reward `R = Σ w_i r_i`; `a` is a softmax over the response's boundaries.

- `"value_attention"`: `R = Σ a_i v_i`, attention over the values `v_i`, so `w_i = Σ_{j ≥ i} a_j`. The default everywhere.
- `"attention"`: `R = Σ a_i r_i`, so `w_i = a_i` (arXiv 2503.04793, section 3).
- `"mean"`, `"sum"`, `"last"`: equal weights that sum to 1, weights of 1, a weight of 1 on the last sentence and 0 on the others.
"""

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ATTENTION_POOLINGS: tuple[Pooling, ...] = ("attention", "value_attention")
"""The ones that need a query and keys."""

PLAIN_POOLINGS: tuple[Pooling, ...] = tuple(pooling for pooling in POOLINGS if pooling not in ATTENTION_POOLINGS)


def check_pooling(op: str, pooling: str, allowed: tuple[str, ...], way_out: str = "") -> None:
    """Raises ValueError where `pooling` is none of those `allowed`; `way_out` ends the message."""
    if pooling not in allowed:
        raise ValueError(f"{op}: `pooling` must be one of {', '.join(allowed)}, got {pooling!r}.{way_out}")
