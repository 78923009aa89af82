"""sentence_attention_pool: RoPE, scores, softmax, differencing and pooling in one kernel each way.

Shape letters: `N` boundaries, `B` responses, `A` attention width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...backend import Backend, check_backend, choose_backend
from ...pooling import ATTENTION_POOLINGS, PLAIN_POOLINGS, Pooling, check_pooling
from ..registration import check_finite, check_float, check_offsets, check_same_device, check_shape, register_backward_op, register_op
from ..segments import accumulate_dtype
from .reference import pooling_of, sentence_attention_pool_backward_reference, sentence_attention_pool_reference

__all__ = ["check_width", "sentence_attention_pool", "sentence_pool"]


def sentence_attention_pool(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_boundaries: Tensor,
    rope_theta: float | None = 1e4,
    include_prompt: bool = True,
    *,
    difference: bool = True,
    pooling: Pooling = "value_attention",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotary scores, softmax, sentence rewards, their weights, and the response reward (arXiv 2503.04793, section 3).

    With `s_i = q · k_i / √A` of the rotated query and keys and `a = softmax(s)` inside a response, `pooling` decides what `a` weighs:
    the values, `R = Σ a_i v_i`, or the sentence rewards, `R = Σ a_i r_i`, as in the paper. Over values, a sentence reward counts with
    all the attention from its index on. Without `difference` the two are the same.

    Args:
        query: [B, A], one a response; fp16, bf16, fp32 or fp64. The kernels take A up to 8,192, in fp64 4,096.
        key: [N, A], one a boundary; any of these dtypes, as is `value`'s.
        value: [N], `v_i`.
        cu_boundaries: int32 or int64 [B + 1], offsets in boundaries: response `b` owns `cu_boundaries[b]:cu_boundaries[b + 1]`, index 0
            being its prompt's.
        rope_theta: base of the rotary embedding on the boundary's index, pairs (2j, 2j + 1); the query sits on the last index. None: none.
        include_prompt: whether index 0 takes part in the softmax.
        difference: sentence reward `v_i - v_{i-1}` (`v_0` at index 0); False: `v_i`.
        pooling: `"value_attention"` or `"attention"`; `sentence_pool` has the others.
        backend: what runs: `"auto"`, `"triton"` or `"torch"`.

    Returns:
        `reward` [B], `sentence_reward` [N] and `weight` [N], all differentiable, in fp32 (fp64 if any input is).
        `reward` = `Σ weight · sentence_reward`; 0 where a response has nothing to attend to. `weight` is
        `Σ_{j ≥ i} a_j` for `"value_attention"`, and `a_i` for `"attention"` and without `difference`.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: another pooling, shapes that do not match, an odd A with `rope_theta`, or offsets that do not fit.
        RuntimeError: `backend="triton"` where it cannot run, or a second or forward-mode derivative.
    """
    op = "sentence_attention_pool"
    check_backend(op, backend)
    check_pooling(op, pooling, ATTENTION_POOLINGS, " `sentence_pool` has the others.")
    check_float(op, query=query, key=key, value=value)
    if query.dim() != 2:
        raise ValueError(f"{op}: `query` must have shape [B, A], got {list(query.shape)}.")
    width = query.shape[1]
    check_width(op, "query", width, rope_theta)
    _check(op, value, cu_boundaries)
    check_shape(op, "query", query, (cu_boundaries.numel() - 1, width), "[B, A]")
    check_shape(op, "key", key, (value.shape[0], width), "[N, A]")
    check_same_device(op, query=query, key=key, value=value, cu_boundaries=cu_boundaries)
    of = pooling_of(pooling, difference)
    return _pool_op(query, key, value, cu_boundaries, rope_theta, include_prompt, difference, of, backend)


def sentence_pool(
    value: Tensor,
    cu_boundaries: Tensor,
    pooling: Pooling,
    include_prompt: bool = True,
    *,
    difference: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Sentence rewards, their weights, and the response reward without attention.

    Args:
        value: [N], `v_i`; fp16, bf16, fp32 or fp64.
        cu_boundaries: int32 or int64 [B + 1], offsets in boundaries: response `b` owns `cu_boundaries[b]:cu_boundaries[b + 1]`, index 0
            being its prompt's.
        pooling: `"mean"`, `"sum"` or `"last"`; `sentence_attention_pool` has the others.
        include_prompt: whether index 0 takes part: whether the mean and the sum count it, and whether a response of a prompt alone
            has a last one.
        difference: sentence reward `v_i - v_{i-1}` (`v_0` at index 0); False: `v_i`.
        backend: what runs: `"auto"`, `"triton"` or `"torch"`.

    Returns:
        `reward` [B] = `Σ weight · sentence_reward`, `sentence_reward` [N] and `weight` [N], in fp32 (fp64 for fp64). The first two are
        differentiable in `value`.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: another pooling, shapes that do not match, or offsets that do not fit.
        RuntimeError: `backend="triton"` where it cannot run, or a second or forward-mode derivative.
    """
    op = "sentence_pool"
    check_backend(op, backend)
    check_pooling(op, pooling, PLAIN_POOLINGS, " `sentence_attention_pool` has the others.")
    check_float(op, value=value)
    _check(op, value, cu_boundaries)
    check_same_device(op, value=value, cu_boundaries=cu_boundaries)
    return _pool_op(None, None, value, cu_boundaries, None, include_prompt, difference, pooling, backend)


def check_width(op: str, name: str, width: int, rope_theta: float | None) -> None:
    """The attention width A, which is that of `name`, is one that can be attended with and rotated."""
    if width < 1:
        raise ValueError(f"{op}: the width A of `{name}` must be at least 1, got {width}.")
    if rope_theta is None:
        return
    check_finite(op, rope_theta=rope_theta)
    if rope_theta <= 0:
        raise ValueError(f"{op}: `rope_theta` must be positive, got {rope_theta}. None turns the rotation off.")
    if width % 2:
        raise ValueError(f"{op}: the width A of `{name}` must be even for rotary pairs, got {width}. `rope_theta=None` turns them off.")


def _check(op: str, value: Tensor, cu_boundaries: Tensor) -> None:
    if value.dim() != 1:
        raise ValueError(f"{op}: `value` must have shape [N], got {list(value.shape)}.")
    check_offsets(op, "cu_boundaries", cu_boundaries, value.shape[0], "len(value)")


def _pool(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu_boundaries: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if choose_backend("sentence_attention_pool", backend, value.device) == "triton":
        from .kernels import sentence_attention_pool_forward

        return sentence_attention_pool_forward(query, key, value, cu_boundaries, rope_theta, include_prompt, difference, pooling)
    return sentence_attention_pool_reference(query, key, value, cu_boundaries, rope_theta, include_prompt, difference, pooling)


def _fake(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu_boundaries: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(query, key, value)
    reward_B = value.new_empty(cu_boundaries.shape[0] - 1, dtype=dtype)
    return reward_B, value.new_empty(value.shape, dtype=dtype), value.new_empty(value.shape, dtype=dtype)


def _pool_backward(
    grad_reward: Tensor,
    grad_sentence_reward: Tensor,
    grad_weight: Tensor,
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu_boundaries: Tensor,
    sentence_reward: Tensor,
    weight: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `query` [B, A], `key` [N, A] (empty without attention) and `value` [N]."""
    grads = (grad_reward, grad_sentence_reward, grad_weight)
    if choose_backend("sentence_attention_pool", backend, value.device) == "triton":
        from .kernels import sentence_attention_pool_backward as run
    else:
        run = sentence_attention_pool_backward_reference
    grad_query, grad_key, grad_value = run(
        *grads, query, key, value, cu_boundaries, sentence_reward, weight, rope_theta, include_prompt, difference, pooling
    )
    if grad_query is None or grad_key is None:
        return value.new_empty(0), value.new_empty(0), grad_value
    return grad_query, grad_key, grad_value


def _fake_backward(
    grad_reward: Tensor,
    grad_sentence_reward: Tensor,
    grad_weight: Tensor,
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    cu_boundaries: Tensor,
    sentence_reward: Tensor,
    weight: Tensor,
    rope_theta: float | None,
    include_prompt: bool,
    difference: bool,
    pooling: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if query is None or key is None:
        return value.new_empty(0), value.new_empty(0), value.new_empty(value.shape)
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, cu_boundaries, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, cu_boundaries, output[1], output[2])


def _backward(ctx: Any, grad_reward: Tensor, grad_sentence_reward: Tensor, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
    query, *_ = saved = ctx.saved_tensors
    grad_query, grad_key, grad_value = _pool_backward_op(grad_reward, grad_sentence_reward, grad_weight, *saved, *ctx.options)
    if query is None:
        return None, None, grad_value, None, None, None, None, None, None
    return grad_query, grad_key, grad_value, None, None, None, None, None, None


_pool_op = register_op("sentence_attention_pool", _pool, _fake, save=_save, backward=_backward)
_pool_backward_op = register_backward_op("sentence_attention_pool", _pool_backward, _fake_backward)
