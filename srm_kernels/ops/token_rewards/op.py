"""token_rewards: what reinforcement learning pays each token.

Shape letters: `T` tokens, `N` boundaries, `B` responses.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ...backend import Backend, check_backend, choose_backend
from ...layout import check_index
from ..registration import (
    check_finite,
    check_float,
    check_offsets,
    check_positions,
    check_same_device,
    check_shape,
    register_backward_op,
    register_op,
)
from ..segments import accumulate_dtype
from .reference import ESTIMATORS, token_rewards_backward_reference, token_rewards_reference

__all__ = ["token_rewards"]


def token_rewards(
    sentence_reward: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float = 0.0,
    estimator: Literal["k1", "k2", "k3"] = "k1",
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Sentence rewards on their last token, minus the KL penalty of each token (arXiv 2503.04793, section 3, for RL).

    Args:
        sentence_reward: [N], `r_i` or `w_i · r_i`; fp16, bf16, fp32 or fp64. Index 0 of each response is the prompt's and earns nothing.
        boundaries: int32 or int64 [N] in [0, T), the token that closes each sentence; rewards that share a token sum.
        cu_boundaries: int32 or int64 [B + 1], offsets in boundaries: response `b` owns `cu_boundaries[b]:cu_boundaries[b + 1]`.
        logprobs: [T], log-probability of each token under the policy, in nats; any of these dtypes. A token at -inf under both is free.
        ref_logprobs: [T], the same under the reference. Make them equal (0, say) where no penalty is due, such as on prompts.
        kl_coef: factor of the penalty, in units of reward a nat. With 0 the log-probabilities take no part, whatever they hold.
        estimator: of the KL divergence, from `x = logprobs - ref_logprobs`: k1 `x`, k2 `x²/2`, k3 `exp(-x) - 1 + x`.
        backend: what runs: `"auto"`, `"triton"` or `"torch"`.

    Returns:
        Rewards [T] in fp32 (fp64 if any input is), differentiable in `sentence_reward`, `logprobs` and `ref_logprobs`.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: shapes or devices that do not match, offsets that do not fit, another estimator, or a `kl_coef` that is not finite.
        IndexError: a boundary outside [0, T), on the CPU and in debug mode; undefined behaviour on a GPU otherwise.
        RuntimeError: `backend="triton"` where it cannot run, or a second or forward-mode derivative.
    """
    op = "token_rewards"
    check_backend(op, backend)
    check_float(op, sentence_reward=sentence_reward, logprobs=logprobs, ref_logprobs=ref_logprobs)
    check_index(op, "boundaries", boundaries)
    check_offsets(op, "cu_boundaries", cu_boundaries, boundaries.numel(), "len(boundaries)")
    if estimator not in ESTIMATORS:
        raise ValueError(f"{op}: `estimator` must be one of {', '.join(ESTIMATORS)}, got {estimator!r}.")
    check_finite(op, kl_coef=kl_coef)
    if logprobs.dim() != 1:
        raise ValueError(f"{op}: `logprobs` must have shape [T], got {list(logprobs.shape)}.")
    check_shape(op, "sentence_reward", sentence_reward, (boundaries.numel(),), "[N]")
    check_shape(op, "ref_logprobs", ref_logprobs, (logprobs.numel(),), "[T]")
    check_same_device(
        op,
        sentence_reward=sentence_reward,
        boundaries=boundaries,
        cu_boundaries=cu_boundaries,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
    )
    check_positions(op, "boundaries", boundaries, logprobs.numel())
    return _token_rewards_op(sentence_reward, boundaries, cu_boundaries, logprobs, ref_logprobs, kl_coef, estimator, backend)


def _token_rewards(
    sentence_reward: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float,
    estimator: str,
    backend: str,
) -> Tensor:
    if choose_backend("token_rewards", backend, logprobs.device) == "triton":
        from .kernels import token_rewards_forward as run
    else:
        run = token_rewards_reference
    return run(sentence_reward, boundaries, cu_boundaries, logprobs, ref_logprobs, kl_coef, estimator)


def _fake(
    sentence_reward: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float,
    estimator: str,
    backend: str,
) -> Tensor:
    return logprobs.new_empty(logprobs.shape, dtype=accumulate_dtype(sentence_reward, logprobs, ref_logprobs))


def _token_rewards_backward(
    grad: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float,
    estimator: str,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sentence rewards [N], which were of `dtype`, of `logprobs` [T] and `ref_logprobs` [T]."""
    if choose_backend("token_rewards", backend, logprobs.device) == "triton":
        from .kernels import token_rewards_backward as run
    else:
        run = token_rewards_backward_reference
    return run(grad, boundaries, cu_boundaries, logprobs, ref_logprobs, kl_coef, estimator, dtype)


def _fake_backward(
    grad: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float,
    estimator: str,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_sentence_reward = grad.new_empty(boundaries.shape, dtype=dtype)
    return grad_sentence_reward, logprobs.new_empty(logprobs.shape), ref_logprobs.new_empty(ref_logprobs.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sentence_reward, *tensors, ctx.kl_coef, ctx.estimator, ctx.backend = inputs
    ctx.dtype = sentence_reward.dtype
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_sentence_reward, grad_logprobs, grad_ref_logprobs = _token_rewards_backward_op(
        grad, *ctx.saved_tensors, ctx.kl_coef, ctx.estimator, ctx.dtype, ctx.backend
    )
    return grad_sentence_reward, None, None, grad_logprobs, grad_ref_logprobs, None, None, None


_token_rewards_op = register_op("token_rewards", _token_rewards, _fake, save=_save, backward=_backward)
_token_rewards_backward_op = register_backward_op("token_rewards", _token_rewards_backward, _fake_backward)
