"""The whole head in plain PyTorch: the definition and the test oracle.

Shape letters: `T` tokens, `N` boundaries, `B` responses, `D` hidden, `A` attention width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from ...layout import SentenceLayout
from ..gather_boundaries.reference import gather_boundaries_reference
from ..segments import accumulate_dtype
from ..sentence_attention_pool.reference import sentence_attention_pool_reference

__all__ = ["sentence_reward_head_reference"]


def sentence_reward_head_reference(
    hidden: Tensor,
    layout: SentenceLayout,
    value_weight: Tensor,
    value_bias: Tensor,
    query_weight: Tensor | None = None,
    query_bias: Tensor | None = None,
    key_weight: Tensor | None = None,
    key_bias: Tensor | None = None,
    *,
    pooling: str = "value_attention",
    rope_theta: float | None = 1e4,
    include_prompt: bool = True,
    difference: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The head, differentiable as often as you like.

    Args:
        hidden: [T, D].
        layout: where the sentences end.
        value_weight: [1, D] or [D].
        value_bias: [1] or a scalar.
        query_weight: [A, D]; None, as the next three, where `pooling` has no attention.
        query_bias: [A].
        key_weight: [A, D].
        key_bias: [A].
        pooling: one of `Pooling`.
        rope_theta: base of the rotary embedding on the sentence index, or None.
        include_prompt: whether index 0 takes part.
        difference: sentence reward `v_i - v_{i-1}`; False: `v_i`.

    Returns:
        `reward` [B], `sentence_reward` [N], `weight` [N] and `value` [N], in fp32 (fp64 where `hidden` or `value_weight` is).
    """
    dtype = accumulate_dtype(hidden, value_weight)
    row_ND = gather_boundaries_reference(hidden, layout.boundaries, dtype)
    value_N = row_ND @ value_weight.to(dtype).flatten() + value_bias.to(dtype)
    query_BA = key_NA = None
    if query_weight is not None and query_bias is not None and key_weight is not None and key_bias is not None:
        last_B = (layout.cu_boundaries[1:].long() - 1).clamp(min=0)  # A response without boundaries reads row 0 and uses nothing of it.
        row_BD = row_ND[last_B] if row_ND.shape[0] else row_ND.new_zeros(layout.num_responses, row_ND.shape[1])
        query_BA = linear(row_BD, query_weight.to(dtype), query_bias.to(dtype))
        key_NA = linear(row_ND, key_weight.to(dtype), key_bias.to(dtype))
    pooled = sentence_attention_pool_reference(
        query_BA, key_NA, value_N, layout.cu_boundaries, rope_theta, include_prompt, difference, pooling
    )
    return (*pooled, value_N)
