"""The head on bf16 rows where kernels run: its products on tensor cores, without rounding weights to bf16.

Shape letters: `N` boundaries, `B` responses, `D` hidden, `A` attention width, `E` = D + 1 in eights, `P` and `Q`: see `Columns`.

bf16 numbers have 8 bits, so the fp32 weights are split into three terms; what is multiplied is bf16 and what is accumulated fp32. fp32 rows
would need six products and fp16 rows five, at twice the bytes: those are left to the fp32 products of `parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .implementation import Flowing, Implementation, Saved, Weights

__all__ = ["TENSOR_CORES", "product"]


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`a @ b` of bf16 matrices, accumulated in fp32, in `dtype`: fp32 or bf16."""
    if a.device.type == "cpu":  # No tensor cores, but the same sums.
        return torch.mm(a.float(), b.float()).to(dtype)
    return torch.mm(a, b) if dtype == a.dtype else torch.mm(a, b, out_dtype=dtype)


class TensorCores:
    """An `Implementation`. It keeps the terms of the weights, and rows of E columns, those of the last boundaries behind the others."""

    def forward(
        self, hidden: Tensor, boundaries: Tensor, cu_boundaries: Tensor, weights: Weights, options: Sequence[Any]
    ) -> tuple[Tensor, Saved]:
        """As in `Implementation`: operands, products, the sums of their terms, pool."""
        from ..sentence_attention_pool.kernels import sentence_attention_pool_forward
        from .kernels import Columns, operands, outputs_of_terms

        num, c = boundaries.numel(), Columns.of(0 if weights.query_bias is None else weights.query_bias.numel())
        row, term = operands(hidden, boundaries, cu_boundaries, weights, c)
        of_rows = product(row[:num], term[: 3 * c.P].t(), torch.float32)
        of_last = product(row[num:], term[4 * c.P + c.Q :].t(), torch.float32) if c.A else None
        value, query, key = outputs_of_terms(of_rows, of_last, c)
        reward, sentence_reward, weight = sentence_attention_pool_forward(query, key, value, cu_boundaries, *options)
        return reward, Saved(sentence_reward, weight, value, row, query, key, term)

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
        """As in `Implementation`, but of the weights all or none: one product has them."""
        from ..device import sort_positions
        from ..gather_boundaries.kernels import gather_boundaries_backward
        from ..sentence_attention_pool.kernels import sentence_attention_pool_backward
        from .kernels import Columns, split_gradients, weight_gradients_of_terms

        num, width = boundaries.numel(), weights.value_weight.numel()
        c = Columns.of(0 if saved.key is None else saved.key.shape[1])
        to_pool = (*flowing.into_pool(saved, cu_boundaries.numel() - 1), saved.query, saved.key, saved.value, cu_boundaries)
        grad_query, grad_key, grad_value = sentence_attention_pool_backward(*to_pool, saved.sentence_reward, saved.weight, *options)
        order = order or sort_positions(boundaries, num_tokens)
        for_rows, for_weights = split_gradients(
            grad_value, flowing.value, grad_query, grad_key, order, cu_boundaries, c, for_rows=needed[0], for_weights=any(needed[1:])
        )
        grads: list[Tensor | None] = [None] * len(needed)
        if for_rows is not None:
            # Siblings are added up already, so this rounds once.
            grad_ND = product(for_rows, saved.kept[c.P : 4 * c.P + 3 * c.Q, :width], torch.bfloat16)
            grads[0] = gather_boundaries_backward(grad_ND, boundaries, num_tokens, torch.bfloat16, order)
        if for_weights is not None:
            grads[1:] = weight_gradients_of_terms(product(for_weights.t(), saved.row[:num], torch.float32), weights, width, c)
        return grads

    def empty_kept(
        self, hidden: Tensor, num: int, num_responses: int, width: int, rope_theta: float | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """As in `Implementation`."""
        from .kernels import Columns, in_eights

        c, columns = Columns.of(width), in_eights(hidden.shape[1] + 1)
        return hidden.new_empty(num + (num_responses if width else 0), columns), hidden.new_empty(4 * (c.P + c.Q), columns)


TENSOR_CORES: Implementation = TensorCores()
