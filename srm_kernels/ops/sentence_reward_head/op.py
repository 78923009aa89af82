"""The head: hidden states and a layout in, rewards out. What most callers want.

Shape letters: `T` tokens, `N` boundaries, `B` responses, `D` hidden, `A` attention width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...backend import Backend, check_backend, choose_backend
from ...layout import SentenceLayout
from ...pooling import ATTENTION_POOLINGS, POOLINGS, Pooling, check_pooling
from ..registration import (
    check_float,
    check_offsets,
    check_positions,
    check_same_device,
    check_shape,
    kept_order,
    order_of,
    register_backward_op,
    register_op,
)
from ..segments import accumulate_dtype
from ..sentence_attention_pool.op import check_width
from ..sentence_attention_pool.reference import pooling_of
from .implementation import Flowing, Implementation, Saved, Weights
from .parts import PARTS
from .tensor_cores import TENSOR_CORES

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
        TypeError: a tensor of another dtype, or something else in the place of a tensor, of the layout or of a number.
        ValueError: another pooling, attention without a query and a key, shapes or devices that do not match, or a layout that does
            not fit.
        IndexError: a boundary outside [0, T), on the CPU and in debug mode; undefined behaviour on a GPU otherwise.
        RuntimeError: `backend="triton"` where it cannot run, or a second or forward-mode derivative.
    """
    op = "sentence_reward_head"
    check_backend(op, backend)
    check_pooling(op, pooling, POOLINGS)
    if not isinstance(layout, SentenceLayout):
        raise TypeError(
            f"{op}: `layout` must be a SentenceLayout, got {type(layout).__name__}. Make one: `SentenceLayout(boundaries, cu_boundaries)`."
        )
    attends = pooling in ATTENTION_POOLINGS
    check_float(op, hidden=hidden, value_weight=value_weight, value_bias=value_bias)
    if hidden.dim() != 2:
        raise ValueError(f"{op}: `hidden` must have shape [T, D], got {list(hidden.shape)}. Flatten batch and length first.")
    if value_weight.dim() not in (1, 2) or value_weight.shape[-1] != hidden.shape[1] or value_weight.numel() != hidden.shape[1]:
        raise ValueError(f"{op}: `value_weight` must have shape [1, D] or [D] with D={hidden.shape[1]}, got {list(value_weight.shape)}.")
    if value_bias.numel() != 1:  # N of them would be added to the N values without a word.
        raise ValueError(f"{op}: `value_bias` must have one element, got shape {list(value_bias.shape)}.")
    if attends:
        if query_weight is None or query_bias is None or key_weight is None or key_bias is None:
            raise ValueError(f'{op}: `pooling="{pooling}"` needs the weights and biases of query and key, got None.')
        _check_attention(hidden.shape[1], query_weight, query_bias, key_weight, key_bias, rope_theta)
    else:
        query_weight = query_bias = key_weight = key_bias = rope_theta = None
    weights = Weights(value_weight, value_bias, query_weight, query_bias, key_weight, key_bias)
    boundaries, cu_boundaries = layout.boundaries, layout.cu_boundaries
    check_same_device(op, hidden=hidden, boundaries=boundaries, cu_boundaries=cu_boundaries, **weights._asdict())
    check_positions(op, "boundaries", boundaries, hidden.shape[0])
    check_offsets(op, "cu_boundaries", cu_boundaries, boundaries.numel(), "len(boundaries)")
    # The gradients alone ask for the order.
    order = order_of(layout if torch.is_grad_enabled() else None, backend)
    options = (rope_theta, include_prompt, difference, pooling_of(pooling, difference), backend)
    return SentenceRewardHeadOutput(*_head_op(hidden, boundaries, cu_boundaries, *order, *weights, *options)[:4])


def _check_attention(
    width: int, query_weight: Tensor, query_bias: Tensor, key_weight: Tensor, key_bias: Tensor, rope_theta: float | None
) -> None:
    op = "sentence_reward_head"
    for name, weight, bias in (("query", query_weight, query_bias), ("key", key_weight, key_bias)):
        check_float(op, **{f"{name}_weight": weight, f"{name}_bias": bias})
        check_shape(op, f"{name}_weight", weight, (query_bias.numel(), width), "[A, D]")
        check_shape(op, f"{name}_bias", bias, (query_bias.numel(),), "[A]")
    check_width(op, "query_bias", query_bias.numel(), rope_theta)


def _head(
    hidden: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    positions: Tensor | None,
    indices: Tensor | None,
    version: int | None,
    value_weight: Tensor,
    value_bias: Tensor,
    query_weight: Tensor | None,
    query_bias: Tensor | None,
    key_weight: Tensor | None,
    key_bias: Tensor | None,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The four public outputs, and for the backward rows, queries [B, A], keys [N, A] and what else is kept; empty where there is none."""
    weights = Weights(value_weight, value_bias, query_weight, query_bias, key_weight, key_bias)
    with _without_autocast(hidden.device):
        reward, saved = _implementation(backend, hidden, value_weight).forward(
            hidden, boundaries, cu_boundaries, weights, (rope_theta, include_prompt, difference, pooling)
        )
    query, key = (hidden.new_empty(0) if x is None else x for x in (saved.query, saved.key))
    return reward, saved.sentence_reward, saved.weight, saved.value, saved.row, query, key, saved.kept


def _fake_head(
    hidden: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    positions: Tensor | None,
    indices: Tensor | None,
    version: int | None,
    value_weight: Tensor,
    value_bias: Tensor,
    query_weight: Tensor | None,
    query_bias: Tensor | None,
    key_weight: Tensor | None,
    key_bias: Tensor | None,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    num, num_responses, dtype = boundaries.shape[0], cu_boundaries.shape[0] - 1, accumulate_dtype(hidden, value_weight)
    width = 0 if query_bias is None else query_bias.shape[0]
    row, kept = _implementation(backend, hidden, value_weight).empty_kept(hidden, num, num_responses, width, rope_theta, dtype)
    return (
        hidden.new_empty(num_responses, dtype=dtype),
        hidden.new_empty(num, dtype=dtype),
        hidden.new_empty(num, dtype=dtype),
        hidden.new_empty(num, dtype=dtype),
        row,
        hidden.new_empty(0) if query_bias is None else hidden.new_empty(num_responses, width, dtype=dtype),
        hidden.new_empty(0) if query_bias is None else hidden.new_empty(num, width, dtype=dtype),
        kept,
    )


def _head_backward(
    grad_reward: Tensor | None,
    grad_sentence_reward: Tensor | None,
    grad_weight: Tensor | None,
    grad_value: Tensor | None,
    sentence_reward: Tensor,
    weight: Tensor,
    value: Tensor,
    row: Tensor,
    query: Tensor,
    key: Tensor,
    kept: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    positions: Tensor | None,
    indices: Tensor | None,
    version: int | None,
    value_weight: Tensor,
    value_bias: Tensor,
    query_weight: Tensor | None,
    query_bias: Tensor | None,
    key_weight: Tensor | None,
    key_bias: Tensor | None,
    num_tokens: int,
    needed: Sequence[bool],
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `hidden` [T, D] and of the six weights, empty where they are not needed."""
    weights = Weights(value_weight, value_bias, query_weight, query_bias, key_weight, key_bias)
    none = query_weight is None
    saved = Saved(sentence_reward, weight, value, row, None if none else query, None if none else key, kept)
    with _without_autocast(row.device):
        grads = _implementation(backend, row, value_weight).backward(
            Flowing(grad_reward, grad_sentence_reward, grad_weight, grad_value),
            saved,
            boundaries,
            cu_boundaries,
            kept_order(boundaries, positions, indices, version),
            weights,
            num_tokens,
            needed,
            (rope_theta, include_prompt, difference, pooling),
        )
    hidden, first, second, third, fourth, fifth, sixth = (row.new_empty(0) if grad is None else grad for grad in grads)
    return hidden, first, second, third, fourth, fifth, sixth


def _fake_head_backward(
    grad_reward: Tensor | None,
    grad_sentence_reward: Tensor | None,
    grad_weight: Tensor | None,
    grad_value: Tensor | None,
    sentence_reward: Tensor,
    weight: Tensor,
    value: Tensor,
    row: Tensor,
    query: Tensor,
    key: Tensor,
    kept: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    positions: Tensor | None,
    indices: Tensor | None,
    version: int | None,
    value_weight: Tensor,
    value_bias: Tensor,
    query_weight: Tensor | None,
    query_bias: Tensor | None,
    key_weight: Tensor | None,
    key_bias: Tensor | None,
    num_tokens: int,
    needed: Sequence[bool],
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = (value_weight, value_bias, query_weight, query_bias, key_weight, key_bias)
    first, second, third, fourth, fifth, sixth = (
        x.new_empty(x.shape) if x is not None and need else row.new_empty(0) for x, need in zip(weights, needed[1:], strict=True)
    )
    hidden = row.new_empty(num_tokens, value_weight.numel()) if needed[0] else row.new_empty(0)
    return hidden, first, second, third, fourth, fifth, sixth


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    hidden, boundaries, cu_boundaries, positions, indices, ctx.version, *weights = inputs[:12]
    # Not `hidden` itself: its [T, D] would be kept for a shape.
    ctx.num_tokens, ctx.options = hidden.shape[0], inputs[12:]
    ctx.set_materialize_grads(False)  # Zeros for whatever nobody differentiates, rows among them.
    ctx.mark_non_differentiable(*outputs[4:])
    ctx.save_for_backward(*outputs[1:], boundaries, cu_boundaries, positions, indices, *weights)


def _backward(ctx: Any, *flowing: Tensor | None) -> tuple[Tensor | None, ...]:
    needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[6:12]]
    # Asked for once: a checkpoint that is not reentrant computes them anew, and once only.
    tensors = ctx.saved_tensors
    grads = _head_backward_op(*flowing[:4], *tensors[:11], ctx.version, *tensors[11:], ctx.num_tokens, needed, *ctx.options)
    hidden, *of_weights = (grad if need else None for grad, need in zip(grads, needed, strict=True))
    return (hidden, None, None, None, None, None, *of_weights, None, None, None, None, None)


_head_op = register_op("sentence_reward_head", _head, _fake_head, save=_save, backward=_backward)
_head_backward_op = register_backward_op("sentence_reward_head", _head_backward, _fake_head_backward)


def _implementation(backend: str, rows: Tensor, value_weight: Tensor) -> Implementation:
    """What runs on `rows`, or on a `hidden`, of this dtype."""
    chosen = choose_backend("sentence_reward_head", backend, rows.device)
    if chosen == "triton" and rows.dtype == torch.bfloat16 and value_weight.dtype != torch.float64:
        return TENSOR_CORES
    return PARTS[chosen]


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The products are those of fp32, whatever is asked of the model around them."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device_type=device.type, enabled=False)
    return contextlib.nullcontext()
