"""What an implementation of the head takes and returns.

Shape letters: `T` tokens, `N` boundaries, `B` responses, `D` hidden, `A` attention width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Flowing", "Implementation", "Saved", "Weights"]


class Weights(NamedTuple):
    """The head's parameters, in the order in which the op takes them. Without attention there are two."""

    value_weight: Tensor
    value_bias: Tensor
    query_weight: Tensor | None
    query_bias: Tensor | None
    key_weight: Tensor | None
    key_bias: Tensor | None


class Saved(NamedTuple):
    """Outputs that the backward reads: three public ones; the rows in `hidden`'s dtype, queries [B, A] and keys [N, A]; and, of any shape,
    what an implementation would rather keep than compute anew."""

    sentence_reward: Tensor
    weight: Tensor
    value: Tensor
    row: Tensor
    query: Tensor | None
    key: Tensor | None
    kept: Tensor


class Flowing(NamedTuple):
    """The gradients of the public outputs; None where nothing flows."""

    reward: Tensor | None
    sentence_reward: Tensor | None
    weight: Tensor | None
    value: Tensor | None

    def into_pool(self, saved: Saved, num_responses: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the pool's outputs; zeros where nothing flows."""
        reward = saved.value.new_zeros(num_responses) if self.reward is None else self.reward
        if self.sentence_reward is not None and self.weight is not None:
            return reward, self.sentence_reward, self.weight
        nothing = torch.zeros_like(saved.value)
        return reward, nothing if self.sentence_reward is None else self.sentence_reward, nothing if self.weight is None else self.weight


class Implementation(Protocol):
    """One way to compute the head. The `options` are those of the pool."""

    def forward(
        self, hidden: Tensor, boundaries: Tensor, cu_boundaries: Tensor, weights: Weights, options: Sequence[Any]
    ) -> tuple[Tensor, Saved]:
        """reward [B], and the other outputs."""
        ...

    def backward(
        self,
        flowing: Flowing,
        saved: Saved,
        boundaries: Tensor,
        cu_boundaries: Tensor,
        order: tuple[Tensor, Tensor] | None,
        weights: Weights,
        num_tokens: int,
        needed: Sequence[bool],
        options: Sequence[Any],
    ) -> list[Tensor | None]:
        """Gradients of `hidden` and of the weights, each in its tensor's dtype; None where `needed`, one for each of them, is False."""
        ...

    def empty_kept(
        self, hidden: Tensor, num: int, num_responses: int, width: int, rope_theta: float | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """`Saved.row` and `Saved.kept` with nothing in them, for fake tensors; `width` is A, 0 without attention, `dtype` the outputs'."""
        ...
