"""Policy and value losses, as sums over tokens: the caller divides by the number of tokens of the whole update.

Shape letters: `B` responses, `L` width of the padded responses.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["clipped_policy_loss", "clipped_value_loss", "reference_kl", "reinforce_loss"]


def reinforce_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """REINFORCE's loss, the sum over `mask` of `-A_t log p_t`.

    Args:
        logprobs, advantages: [B, L].
        mask: bool [B, L].

    Returns:
        A scalar.
    """
    # Padding may hold anything: what it multiplies must be 0 in the gradient, too.
    return -torch.where(mask, torch.where(mask, advantages, 0) * logprobs, 0).sum()


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, cliprange: float
) -> tuple[Tensor, Tensor]:
    """PPO's objective (arXiv 1707.06347, equation 7), negative: the sum over `mask` of `-min(w A, clip(w, 1 - c, 1 + c) A)`.

    `w` is the probability ratio of the policy to the one that wrote the tokens.

    Args:
        logprobs, old_logprobs, advantages: [B, L].
        mask: bool [B, L].
        cliprange: `c`.

    Returns:
        The loss, and the number of tokens where the clipped term is the smaller one, both scalar.
    """
    # Padding may hold anything; a ratio of 1 keeps infinities out of the gradient.
    ratio = torch.where(mask, logprobs - old_logprobs, 0).exp()
    advantages = torch.where(mask, advantages, 0)
    plain, clipped = ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages
    loss = -torch.where(mask, torch.minimum(plain, clipped), 0).sum()
    return loss, ((clipped < plain) & mask).sum()


def clipped_value_loss(value: Tensor, old_value: Tensor, returns: Tensor, mask: Tensor, *, cliprange: float) -> Tensor:
    """PPO's value loss: the sum over `mask` of half the larger squared error of `value` and of `value` clipped around `old_value`.

    Args:
        value, old_value, returns: [B, L].
        mask: bool [B, L].
        cliprange: how far `value` may be from `old_value`.

    Returns:
        A scalar.
    """
    # Padding may hold anything; without an error it has no gradient.
    value, old_value, returns = (torch.where(mask, x, 0) for x in (value, old_value, returns))
    clipped = old_value + (value - old_value).clamp(-cliprange, cliprange)
    return 0.5 * torch.maximum((value - returns).square(), (clipped - returns).square()).sum()


def reference_kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, estimator: Literal["k2", "k3"] = "k2") -> Tensor:
    """A penalty in the loss for moving away from the reference, summed over `mask`.

    Args:
        logprobs, ref_logprobs: [B, L].
        mask: bool [B, L].
        estimator: `k2` is half the square of `log(p / p_ref)`. On tokens of the policy its gradient is that of the KL from policy to
            reference, as k1's in the reward (arXiv 2510.01555). `k3`, `p_ref / p - log(p_ref / p) - 1`, is GRPO's (arXiv 2402.03300,
            equation 4). Its gradient is that of the KL from reference to policy, which holds on to all that the reference says.

    Returns:
        A scalar, in nats.
    """
    # Padding may hold anything; a ratio of 1 has no penalty.
    log_ratio = torch.where(mask, ref_logprobs - logprobs, 0)
    return (log_ratio.expm1() - log_ratio).sum() if estimator == "k3" else 0.5 * log_ratio.square().sum()
