"""The head: hidden states and a layout in, rewards out. What most callers want.

Shape letters: `T` tokens, `N` boundaries, `B` responses, `D` hidden, `A` attention width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...backend import Backend
from ...layout import SentenceLayout
from ..gather_boundaries.op import gather_boundaries
from ..registration import check_float, check_shape
from ..segments import accumulate_dtype
from ..sentence_attention_pool.op import ATTENTION_POOLINGS, sentence_attention_pool, sentence_pool

__all__ = ["POOLINGS", "Pooling", "SentenceRewardOutput", "sentence_reward_head"]

Pooling = Literal["attention", "value_attention", "mean", "sum", "last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


class SentenceRewardOutput(NamedTuple):
    """What the head returns, in fp32 (fp64 for fp64 input).

    reward: [B], `Σ attention · sentence_reward` over each response.
    sentence_reward: [N]; index 0 of each response is the prompt's.
    attention: [N], the weight of each sentence reward.
    value: [N], the value head's output at each boundary.
    """

    reward: Tensor
    sentence_reward: Tensor
    attention: Tensor
    value: Tensor


def sentence_reward_head(
    hidden: Tensor,
    layout: SentenceLayout,
    value_weight: Tensor,
    value_bias: Tensor,
    query_weight: Tensor | None = None,
    query_bias: Tensor | None = None,
    key_weight: Tensor | None = None,
    key_bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    pooling: Pooling = "attention",
    rope_theta: float | None = 1e4,
    include_prompt: bool = True,
    difference: bool = True,
    backend: Backend = "auto",
) -> SentenceRewardOutput:
    """Scores every sentence and response of a packed batch (arXiv 2503.04793, section 3).

    hidden: [T, D] final hidden states, fp16 / bf16 / fp32 / fp64. With `norm_weight` [D] they are the states *before* the backbone's
        final RMS norm, which then runs on the N boundary rows only.
    layout: where the sentences end.
    value_weight, value_bias: [1, D] or [D], and [1] or a scalar: `v = w·h + c`.
    query_*, key_*: [A, D] and [A]; needed where the pooling is "attention" or "value_attention".
    pooling: how sentence rewards become the response's reward: softmax attention, softmax attention over values (see
        `sentence_attention_pool`), their mean, their sum, or the last one.
    rope_theta: base of the rotary embedding on the sentence index; None turns it off.
    include_prompt: whether index 0 (the prompt) takes part in pooling.
    difference: sentence reward = difference of consecutive values; False: the value itself.

    Arithmetic is fp32 (fp64 where `hidden` or `value_weight` is) whatever the autocast state or the dtype of `hidden`.
    """
    op = "sentence_reward_head"
    if pooling not in POOLINGS:
        raise ValueError(f"{op}: `pooling` must be one of {', '.join(POOLINGS)}, got {pooling!r}.")
    check_float(op, hidden=hidden, value_weight=value_weight, value_bias=value_bias)
    if value_weight.numel() != hidden.shape[-1]:
        raise ValueError(f"{op}: `value_weight` must have shape [1, D] or [D] with D={hidden.shape[-1]}, got {list(value_weight.shape)}.")
    if value_bias.numel() != 1:  # N of them would be added to the N values without a word.
        raise ValueError(f"{op}: `value_bias` must have one element, got shape {list(value_bias.shape)}.")
    dtype = accumulate_dtype(hidden, value_weight)
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        row_ND = gather_boundaries(hidden, layout.boundaries, norm_weight, eps, out_dtype=dtype, backend=backend)
        value_N = row_ND @ value_weight.to(dtype).flatten() + value_bias.to(dtype).reshape(())
        if pooling not in ATTENTION_POOLINGS:
            pooled = sentence_pool(value_N, layout.cu_boundaries, pooling, include_prompt, difference=difference, backend=backend)
            return SentenceRewardOutput(*pooled, value_N)
        if query_weight is None or query_bias is None or key_weight is None or key_bias is None:
            raise ValueError(f'{op}: `pooling="{pooling}"` needs the weights and biases of query and key, got None.')
        for name, weight, bias in (("query", query_weight, query_bias), ("key", key_weight, key_bias)):
            check_float(op, **{f"{name}_weight": weight, f"{name}_bias": bias})
            check_shape(op, f"{name}_weight", weight, (query_bias.numel(), hidden.shape[1]), "[A, D]")
            check_shape(op, f"{name}_bias", bias, (query_bias.numel(),), "[A]")
        query_BA = linear(_last_rows(row_ND, layout), query_weight.to(dtype), query_bias.to(dtype))
        key_NA = linear(row_ND, key_weight.to(dtype), key_bias.to(dtype))
        pooled = sentence_attention_pool(
            query_BA,
            key_NA,
            value_N,
            layout.cu_boundaries,
            rope_theta,
            include_prompt,
            difference=difference,
            pooling=pooling,
            backend=backend,
        )
    return SentenceRewardOutput(*pooled, value_N)


def _last_rows(row: Tensor, layout: SentenceLayout) -> Tensor:
    """Row [B, D] of each response's last boundary. A response without any gets another's row, and nothing of it is used."""
    if row.shape[0] == 0:
        return row.new_zeros(layout.num_responses, row.shape[1])
    return row.index_select(0, (layout.cu_boundaries[1:] - 1).clamp(min=0))
