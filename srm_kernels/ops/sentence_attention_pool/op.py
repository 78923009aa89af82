"""sentence_attention_pool: RoPE, scores, softmax, differencing and pooling in one kernel each way.

Shape letters: `N` boundaries, `B` responses, `A` attention width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...backend import Backend, choose_backend
from ..registration import check_float, check_offsets, check_same_device, check_shape, refuse_double_backward
from ..segments import accumulate_dtype
from .reference import sentence_attention_pool_backward_reference, sentence_attention_pool_reference

__all__ = ["ATTENTION_POOLINGS", "sentence_attention_pool", "sentence_pool"]

# The poolings that need a query and keys; `sentence_pool` has the others.
ATTENTION_POOLINGS = ("attention", "value_attention")


def sentence_attention_pool(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu: Tensor,
    rope_theta: float | None = 1e4,
    include_prompt: bool = True,
    *,
    difference: bool = True,
    pooling: str = "attention",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Sentence rewards, their attention, and the response reward (arXiv 2503.04793, the aggregation).

    query: [B, A], one a response. key: [N, A]. value: [N]. fp16 / bf16 / fp32 / fp64, in any mixture. The kernels take A up to 8,192,
        in fp64 4,096.
    cu: [B + 1] int32 or int64 offsets; response `b` owns boundaries `cu[b]:cu[b + 1]`, index 0 being its prompt's.
    rope_theta: base of the rotary embedding on the boundary's index, pairs (2j, 2j + 1); the query sits on the last index. None: none.
    include_prompt: whether index 0 takes part in the softmax.
    difference: sentence reward `v_i - v_{i-1}` (`v_0` at index 0); False: `v_i`.
    pooling: "attention", the paper's: `R = Σ a_i r_i`, a softmax over sentence rewards. "value_attention": `R = Σ a_i v_i`, one over the
        values. A sentence reward then counts with all the attention from its index on, `Σ_{j ≥ i} a_j`, and that is what `attention` has.
        Without `difference` the two are the same.

    Returns `reward` [B] = `Σ attention · sentence_reward`, `sentence_reward` [N], `attention` [N], all differentiable, in fp32 (fp64 if
    any input is). A response with nothing to attend to has reward 0.
    """
    op = "sentence_attention_pool"
    if pooling not in ATTENTION_POOLINGS:
        raise ValueError(f"{op}: `pooling` must be attention or value_attention, got {pooling!r}. `sentence_pool` has the others.")
    check_float(op, query=query, key=key, value=value)
    if query.dim() != 2:
        raise ValueError(f"{op}: `query` must have shape [B, A], got {list(query.shape)}.")
    width = query.shape[1]
    if width == 0:
        raise ValueError(f"{op}: `query` must have at least one column, got shape {list(query.shape)}.")
    if rope_theta is not None and (width % 2 or not 0 < rope_theta < math.inf):
        raise ValueError(
            f"{op}: `rope_theta` must be positive and finite and A even for rotary pairs, got {rope_theta} and A={width}. "
            "`rope_theta=None` turns them off."
        )
    _check(op, value, cu)
    check_shape(op, "query", query, (cu.numel() - 1, width), "[B, A]")
    check_shape(op, "key", key, (value.shape[0], width), "[N, A]")
    check_same_device(op, query=query, key=key, value=value, cu=cu)
    if not difference:
        pooling = "attention"
    reward_B, reward_N, attention_N = _pool(query, key, value, cu, rope_theta, include_prompt, difference, pooling, backend)
    return reward_B, reward_N, attention_N


def sentence_pool(
    value: Tensor, cu: Tensor, pooling: str, include_prompt: bool = True, *, difference: bool = True, backend: Backend = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without attention: `pooling` is "mean", "sum" or "last", and `attention` the weight this gives each sentence."""
    op = "sentence_pool"
    if pooling not in ("mean", "sum", "last"):
        raise ValueError(f"{op}: `pooling` must be mean, sum or last, got {pooling!r}.")
    check_float(op, value=value)
    _check(op, value, cu)
    check_same_device(op, value=value, cu=cu)
    return _pool(None, None, value, cu, None, include_prompt, difference, pooling, backend)


def _check(op: str, value: Tensor, cu: Tensor) -> None:
    if value.dim() != 1:
        raise ValueError(f"{op}: `value` must have shape [N], got {list(value.shape)}.")
    check_offsets(op, "cu", cu, value.shape[0], "len(value)")


@torch.library.custom_op("srm_kernels::sentence_attention_pool", mutates_args=())
def _pool(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if choose_backend("sentence_attention_pool", backend, value.device) == "triton":
        from .kernels import sentence_attention_pool_forward

        return sentence_attention_pool_forward(query, key, value, cu, rope_theta, include_prompt, difference, pooling)
    return sentence_attention_pool_reference(query, key, value, cu, rope_theta, include_prompt, difference, pooling)


@_pool.register_fake
def _(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(query, key, value)
    reward_B = value.new_empty(cu.shape[0] - 1, dtype=dtype)
    return reward_B, value.new_empty(value.shape, dtype=dtype), value.new_empty(value.shape, dtype=dtype)


@torch.library.custom_op("srm_kernels::sentence_attention_pool_backward", mutates_args=())
def _pool_backward(
    grad_reward: Tensor,
    grad_sentence_reward: Tensor,
    grad_attention: Tensor,
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu: Tensor,
    sentence_reward: Tensor,
    attention: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `query` [B, A], `key` [N, A] (empty without attention) and `value` [N]."""
    grads = (grad_reward, grad_sentence_reward, grad_attention)
    if choose_backend("sentence_attention_pool", backend, value.device) == "triton":
        from .kernels import sentence_attention_pool_backward as run
    else:
        run = sentence_attention_pool_backward_reference
    grad_query, grad_key, grad_value = run(
        *grads, query, key, value, cu, sentence_reward, attention, rope_theta, include_prompt, difference, pooling
    )
    if grad_query is None or grad_key is None:
        return value.new_empty(0), value.new_empty(0), grad_value
    return grad_query, grad_key, grad_value


@_pool_backward.register_fake
def _(
    grad_reward: Tensor,
    grad_sentence_reward: Tensor,
    grad_attention: Tensor,
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu: Tensor,
    sentence_reward: Tensor,
    attention: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if query is None or key is None:
        return value.new_empty(0), value.new_empty(0), value.new_empty(value.shape)
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, cu, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, cu, output[1], output[2])


def _backward(ctx: Any, grad_reward: Tensor, grad_sentence_reward: Tensor, grad_attention: Tensor) -> tuple[Tensor | None, ...]:
    query, *_ = saved = ctx.saved_tensors
    grad_query, grad_key, grad_value = _pool_backward(grad_reward, grad_sentence_reward, grad_attention, *saved, *ctx.options)
    if query is None:
        return None, None, grad_value, None, None, None, None, None, None
    return grad_query, grad_key, grad_value, None, None, None, None, None, None


_pool.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(_pool_backward, "sentence_attention_pool")
