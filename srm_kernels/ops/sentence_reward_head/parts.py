"""The head as a gather, PyTorch's products on the gathered rows, and a pool: forward, and the backward written out.

Shape letters: `T` tokens, `N` boundaries, `B` responses, `D` hidden, `A` attention width, `J` = A / 2 rotary pairs.

Products are in the dtype that is accumulated in. Autograd over the same lines would fill an [N, D] with zeros for the sake of B rows and
add three such tensors; here terms are added in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..gather_boundaries.reference import gather_boundaries_backward_reference, gather_boundaries_reference
from ..segments import accumulate_dtype
from ..sentence_attention_pool.reference import pool_and_rotation, sentence_attention_pool_backward_reference
from .implementation import Flowing, Implementation, Saved, Weights

__all__ = ["PARTS"]

Pooled = tuple[Tensor, Tensor, Tensor]
PoolGradients = tuple[Tensor | None, Tensor | None, Tensor]


class Parts(ABC):
    """An `Implementation`, with what differs between backends left open."""

    @abstractmethod
    def gather(self, hidden: Tensor, boundaries: Tensor) -> Tensor:
        """Rows [N, D]."""

    @abstractmethod
    def gather_backward(
        self, grad: Tensor, boundaries: Tensor, num_tokens: int, dtype: torch.dtype, order: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Gradient of `hidden` [T, D]."""

    @abstractmethod
    def pool(self, *inputs: Any) -> tuple[Pooled, Tensor]:
        """The pool's outputs, and what its backward takes besides."""

    @abstractmethod
    def pool_backward(self, kept: Tensor, *inputs: Any) -> PoolGradients:
        """Gradients of query, key and value."""

    @abstractmethod
    def empty_kept(
        self, hidden: Tensor, num: int, num_responses: int, width: int, rope_theta: float | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """As in `Implementation`."""

    def forward(
        self, hidden: Tensor, boundaries: Tensor, cu_boundaries: Tensor, weights: Weights, options: Sequence[Any]
    ) -> tuple[Tensor, Saved]:
        """As in `Implementation`."""
        w = _to(accumulate_dtype(hidden, weights.value_weight), weights)
        row_ND = self.gather(hidden, boundaries)
        wide_ND = row_ND.to(w.value_weight.dtype)
        value_N = torch.addmv(w.value_bias.reshape(1).expand(len(wide_ND)), wide_ND, w.value_weight.flatten())
        query_BA = key_NA = None
        if w.query_weight is not None and w.query_bias is not None and w.key_weight is not None and w.key_bias is not None:
            query_BA = torch.addmm(w.query_bias, _last_rows(wide_ND, cu_boundaries), w.query_weight.t())
            key_NA = torch.addmm(w.key_bias, wide_ND, w.key_weight.t())
        (reward_B, reward_N, weight_N), kept = self.pool(query_BA, key_NA, value_N, cu_boundaries, *options)
        return reward_B, Saved(reward_N, weight_N, value_N, row_ND, query_BA, key_NA, kept)

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
        """As in `Implementation`."""
        to_pool = (*flowing.into_pool(saved, cu_boundaries.numel() - 1), saved.query, saved.key, saved.value, cu_boundaries)
        grads = self.pool_backward(saved.kept, *to_pool, saved.sentence_reward, saved.weight, *options)
        if flowing.value is not None:
            grads = (*grads[:2], grads[2] + flowing.value)
        grad_hidden = None
        if needed[0]:
            grad_ND = _row_gradient(*grads, _to(saved.value.dtype, weights), cu_boundaries)
            grad_hidden = self.gather_backward(grad_ND, boundaries, num_tokens, saved.row.dtype, order)
        of_weights = _weight_gradients(*grads, saved.row, cu_boundaries, needed[1:])
        shaped = (
            None if grad is None or weight is None else grad.to(weight.dtype).reshape(weight.shape)
            for grad, weight in zip(of_weights, weights, strict=True)
        )
        return [grad_hidden, *shaped]


class TorchParts(Parts):
    """The references. They keep the rotation: its cosines and sines cost a CPU more than anything else in the backward."""

    def gather(self, hidden: Tensor, boundaries: Tensor) -> Tensor:
        """As in `Parts`."""
        return gather_boundaries_reference(hidden, boundaries)

    def gather_backward(
        self, grad: Tensor, boundaries: Tensor, num_tokens: int, dtype: torch.dtype, order: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """As in `Parts`."""
        return gather_boundaries_backward_reference(grad, boundaries, num_tokens, dtype)

    def pool(self, *inputs: Any) -> tuple[Pooled, Tensor]:
        """As in `Parts`."""
        pooled, rotation = pool_and_rotation(*inputs)
        return pooled, pooled[0].new_empty(0) if rotation is None else rotation.numbers()

    def pool_backward(self, kept: Tensor, *inputs: Any) -> PoolGradients:
        """As in `Parts`."""
        run: Callable[..., PoolGradients] = sentence_attention_pool_backward_reference
        return run(*inputs, rotation=kept if kept.dim() == 2 else None)

    def empty_kept(
        self, hidden: Tensor, num: int, num_responses: int, width: int, rope_theta: float | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """As in `Parts`."""
        rows = hidden.new_empty(num, hidden.shape[1])
        if not width or rope_theta is None:
            return rows, hidden.new_empty(0, dtype=dtype)
        return rows, hidden.new_empty(num, width // 2, dtype=dtype.to_complex())


class TritonParts(Parts):
    """The kernels."""

    def gather(self, hidden: Tensor, boundaries: Tensor) -> Tensor:
        """As in `Parts`."""
        from ..gather_boundaries.kernels import gather_boundaries_forward

        return gather_boundaries_forward(hidden, boundaries, hidden.dtype)

    def gather_backward(
        self, grad: Tensor, boundaries: Tensor, num_tokens: int, dtype: torch.dtype, order: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """As in `Parts`."""
        from ..gather_boundaries.kernels import gather_boundaries_backward

        return gather_boundaries_backward(grad, boundaries, num_tokens, dtype, order)

    def pool(self, *inputs: Any) -> tuple[Pooled, Tensor]:
        """As in `Parts`."""
        from ..sentence_attention_pool.kernels import sentence_attention_pool_forward

        pooled = sentence_attention_pool_forward(*inputs)
        return pooled, pooled[0].new_empty(0)

    def pool_backward(self, kept: Tensor, *inputs: Any) -> PoolGradients:
        """As in `Parts`."""
        from ..sentence_attention_pool.kernels import sentence_attention_pool_backward

        return sentence_attention_pool_backward(*inputs)

    def empty_kept(
        self, hidden: Tensor, num: int, num_responses: int, width: int, rope_theta: float | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """As in `Parts`."""
        return hidden.new_empty(num, hidden.shape[1]), hidden.new_empty(0, dtype=dtype)


PARTS: dict[str, Implementation] = {"torch": TorchParts(), "triton": TritonParts()}


def _row_gradient(grad_query: Tensor | None, grad_key: Tensor | None, grad_value: Tensor, w: Weights, cu_boundaries: Tensor) -> Tensor:
    """[N, D], each term added in place."""
    value_D = w.value_weight.flatten()
    if grad_query is None or grad_key is None or w.query_weight is None or w.key_weight is None:
        return torch.outer(grad_value, value_D)
    grad_ND = torch.mm(grad_key, w.key_weight).addr_(grad_value, value_D)
    if grad_ND.shape[0]:
        # No two responses share a row here, but for those without boundaries, whose gradients are zero: the order does not matter.
        grad_ND.index_add_(0, _last(cu_boundaries), torch.mm(grad_query, w.query_weight))
    return grad_ND


def _weight_gradients(
    grad_query: Tensor | None, grad_key: Tensor | None, grad_value: Tensor, row: Tensor, cu_boundaries: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Of the `Weights` that are needed, in the dtype of the products."""
    wide_ND = row.to(grad_value.dtype) if any(needed[::2]) else row
    grads: list[Tensor | None] = [
        torch.mv(wide_ND.t(), grad_value) if needed[0] else None,
        grad_value.sum() if needed[1] else None,
    ]
    if grad_query is None or grad_key is None:
        return [*grads, None, None, None, None]
    return [
        *grads,
        torch.mm(grad_query.t(), _last_rows(wide_ND, cu_boundaries)) if needed[2] else None,
        grad_query.sum(0) if needed[3] else None,
        torch.mm(grad_key.t(), wide_ND) if needed[4] else None,
        grad_key.sum(0) if needed[5] else None,
    ]


def _to(dtype: torch.dtype, weights: Weights) -> Weights:
    value_weight, value_bias, *others = weights
    return Weights(value_weight.to(dtype), value_bias.to(dtype), *(None if x is None else x.to(dtype) for x in others))


def _last(cu_boundaries: Tensor) -> Tensor:
    """Index [B] of each response's last boundary. A response without any gets another's, and nothing of it is used."""
    return (cu_boundaries[1:] - 1).clamp_(min=0)


def _last_rows(row: Tensor, cu_boundaries: Tensor) -> Tensor:
    """Their rows [B, D]."""
    if row.shape[0] == 0:
        return row.new_zeros(cu_boundaries.numel() - 1, row.shape[1])
    return row.index_select(0, _last(cu_boundaries))
