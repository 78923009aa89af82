"""token_rewards in plain PyTorch: the definition, and what runs on the CPU.

Shape letters: `T` tokens, `N` boundaries, `B` responses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..segments import accumulate_dtype, first_of_segment

__all__ = ["ESTIMATORS", "token_rewards_backward_reference", "token_rewards_reference"]

ESTIMATORS = ("k1", "k2", "k3")


def token_rewards_reference(
    sentence_reward: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float,
    estimator: str = "k1",
) -> Tensor:
    """`r_i` on the last token of sentence `i ≥ 1`, minus the KL penalty of each token; differentiable as often as you like.

    Args:
        sentence_reward: [N].
        boundaries: int [N].
        cu_boundaries: int [B + 1].
        logprobs: [T].
        ref_logprobs: [T].
        kl_coef: factor of the penalty.
        estimator: k1, k2 or k3.

    Returns:
        [T] in fp32 (fp64 if any input is).
    """
    dtype = accumulate_dtype(sentence_reward, logprobs, ref_logprobs)
    # Index 0 sits on the prompt's last token, which the policy did not write: it earns nothing.
    earned_N = sentence_reward.to(dtype).masked_fill(first_of_segment(cu_boundaries, sentence_reward.shape[0]), 0)
    log_ratio_T = _log_ratio(logprobs.to(dtype), ref_logprobs.to(dtype))
    # Without a price the penalty does not take part: 0 · inf is NaN.
    paid_T = -kl_coef * _kl(log_ratio_T, estimator) if kl_coef else torch.zeros_like(log_ratio_T)
    return paid_T.index_add(0, boundaries, earned_N)


def token_rewards_backward_reference(
    grad: Tensor,
    boundaries: Tensor,
    cu_boundaries: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float,
    estimator: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sentence rewards [N], in `dtype`, of `logprobs` [T] and `ref_logprobs` [T]."""
    grad_N = grad.index_select(0, boundaries).masked_fill(first_of_segment(cu_boundaries, boundaries.shape[0]), 0)
    policy_T, reference_T = logprobs.to(grad.dtype), ref_logprobs.to(grad.dtype)
    grad_T = torch.zeros_like(policy_T)
    if kl_coef:
        grad_T = -kl_coef * _kl_slope(_log_ratio(policy_T, reference_T), estimator) * grad
        grad_T = grad_T.masked_fill(_impossible(policy_T, reference_T), 0)
    return grad_N.to(dtype), grad_T.to(logprobs.dtype), (-grad_T).to(ref_logprobs.dtype)


def _log_ratio(policy: Tensor, reference: Tensor) -> Tensor:
    """[T] log policy - log reference; 0, not -inf - -inf, where both say that the token cannot be."""
    return (policy - reference).masked_fill(_impossible(policy, reference), 0)


def _impossible(policy: Tensor, reference: Tensor) -> Tensor:
    return (policy == reference) & policy.isinf()


def _kl(log_ratio: Tensor, estimator: str) -> Tensor:
    """Schulman's estimators of KL(policy || reference) from `log_ratio` = log policy - log reference of a sampled token."""
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    # expm1 keeps the digits that exp(-x) - 1 loses near 0.
    return (-log_ratio).expm1() + log_ratio


def _kl_slope(log_ratio: Tensor, estimator: str) -> Tensor:
    if estimator == "k1":
        return log_ratio.new_ones(log_ratio.shape)
    if estimator == "k2":
        return log_ratio
    return -(-log_ratio).expm1()
