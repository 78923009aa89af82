"""The head: hidden states and a layout in, rewards out. What most callers want.

Shape letters: `T` tokens, `N` boundaries, `B` responses, `D` hidden, `A` attention width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...backend import Backend
from ...layout import SentenceLayout
from ...pooling import ATTENTION_POOLINGS, POOLINGS, Pooling, check_pooling
from ..gather_boundaries.op import gather_boundaries
from ..registration import check_float, check_shape
from ..segments import accumulate_dtype
from ..sentence_attention_pool.op import sentence_attention_pool, sentence_pool

__all__ = ["SentenceRewardHeadOutput", "sentence_reward_head"]


class SentenceRewardHeadOutput(NamedTuple):
    """What the head returns, in fp32 (fp64 for fp64 input).

    Attributes:
        reward: [B], `R = Σ weight · sentence_reward` over each response.
        sentence_reward: [N], `r_i`; index 0 of each response is the prompt's.
        weight: [N], `w_i`, the weight of each sentence reward in its response's reward.
        value: [N], `v_i`, the value head's output at each boundary.
    """

    reward: Tensor
    sentence_reward: Tensor
    weight: Tensor
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
    pooling: Pooling = "value_attention",
    rope_theta: float | None = 1e4,
    include_prompt: bool = True,
    difference: bool = True,
    backend: Backend = "auto",
) -> SentenceRewardHeadOutput:
    """Scores every sentence and response of a packed batch (arXiv 2503.04793, section 3).

    Arithmetic is fp32 (fp64 where `hidden` or `value_weight` is) whatever the autocast state or the dtype of `hidden`.

    Args:
        hidden: [T, D], final hidden states; fp16, bf16, fp32 or fp64.
        layout: where the sentences end.
        value_weight: [1, D] or [D], `w` of the value `v = w·h + c`.
        value_bias: [1] or a scalar, `c`.
        query_weight: [A, D]; this and the next three are needed where `pooling` is an attention, and not read elsewhere.
        query_bias: [A].
        key_weight: [A, D].
        key_bias: [A].
        pooling: how sentence rewards become the response's reward; see `Pooling`.
        rope_theta: base of the rotary embedding on the sentence index; None turns it off.
        include_prompt: whether index 0 (the prompt) takes part in pooling.
        difference: sentence reward = difference of consecutive values; False: the value itself.
        backend: what runs: `"auto"`, `"triton"` or `"torch"`.

    Returns:
        `SentenceRewardHeadOutput`, differentiable in `hidden` and all weights.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: another pooling, attention without a query and a key, shapes or devices that do not match, or a layout that does
            not fit.
        IndexError: a boundary outside [0, T), on the CPU and in debug mode; undefined behaviour on a GPU otherwise.
        RuntimeError: `backend="triton"` where it cannot run, or a second or forward-mode derivative.
    """
    op = "sentence_reward_head"
    check_pooling(op, pooling, POOLINGS)
    check_float(op, hidden=hidden, value_weight=value_weight, value_bias=value_bias)
    if value_weight.numel() != hidden.shape[-1]:
        raise ValueError(f"{op}: `value_weight` must have shape [1, D] or [D] with D={hidden.shape[-1]}, got {list(value_weight.shape)}.")
    if value_bias.numel() != 1:  # N of them would be added to the N values without a word.
        raise ValueError(f"{op}: `value_bias` must have one element, got shape {list(value_bias.shape)}.")
    dtype = accumulate_dtype(hidden, value_weight)
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        row_ND = gather_boundaries(hidden, layout, out_dtype=dtype, backend=backend)
        value_N = row_ND @ value_weight.to(dtype).flatten() + value_bias.to(dtype).reshape(())
        if pooling not in ATTENTION_POOLINGS:
            pooled = sentence_pool(value_N, layout.cu_boundaries, pooling, include_prompt, difference=difference, backend=backend)
            return SentenceRewardHeadOutput(*pooled, value_N)
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
    return SentenceRewardHeadOutput(*pooled, value_N)


def _last_rows(row: Tensor, layout: SentenceLayout) -> Tensor:
    """Row [B, D] of each response's last boundary. A response without any gets another's row, and nothing of it is used."""
    if row.shape[0] == 0:
        return row.new_zeros(layout.num_responses, row.shape[1])
    return row.index_select(0, (layout.cu_boundaries[1:] - 1).clamp(min=0))
