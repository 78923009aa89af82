"""bradley_terry_loss in plain PyTorch: the definition, and what runs on the CPU.

Shape letters: `B` responses, `P` pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..segments import accumulate_dtype

__all__ = ["bradley_terry_loss_reference", "bradley_terry_loss_with_grad_reference"]


def bradley_terry_loss_reference(
    reward: Tensor,
    pairs: Tensor,
    margin: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """The loss of `bradley_terry_loss`, differentiable as often as you like.

    Args:
        reward: [B].
        pairs: int [P, 2], (chosen, rejected).
        margin: a number or [P].
        label_smoothing: ε.
        centering: λ.
        weight: [P].

    Returns:
        A scalar in fp32 (fp64 for fp64).
    """
    return _terms(reward, pairs, margin, label_smoothing, centering, weight)[0]


def bradley_terry_loss_with_grad_reference(
    reward: Tensor, pairs: Tensor, margin: Tensor | None, weight: Tensor | None, label_smoothing: float, centering: float
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient [B] in fp32 (fp64 for fp64)."""
    loss, d_P, sum_P, share_P = _terms(reward, pairs, margin, label_smoothing, centering, weight)
    slope_P = (label_smoothing - (-d_P).sigmoid()) * share_P
    pull_P = 2 * centering * sum_P * share_P if centering else torch.zeros_like(slope_P)
    chosen_P, rejected_P = pairs.long().unbind(1)
    grad_B = loss.new_zeros(reward.shape)
    return loss, grad_B.index_add_(0, chosen_P, pull_P + slope_P).index_add_(0, rejected_P, pull_P - slope_P)


def _terms(
    reward: Tensor, pairs: Tensor, margin: Tensor | float | None, label_smoothing: float, centering: float, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and of each pair `d = R_c - R_r - margin`, `R_c + R_r`, and the share in the loss; [P] each."""
    reward_B = reward.to(accumulate_dtype(reward))
    chosen_P, rejected_P = (reward_B[index_P] for index_P in pairs.long().unbind(1))
    weight_P = torch.ones_like(chosen_P) if weight is None else weight.to(chosen_P.dtype)
    # What has the factor 0 does not take part: 0 · NaN and 0 · inf are NaN.
    ignored_P = weight_P == 0
    sum_P = (chosen_P + rejected_P).masked_fill(ignored_P, 0)
    d_P = chosen_P - rejected_P - (margin.to(reward_B.dtype) if isinstance(margin, Tensor) else margin or 0.0)
    d_P = d_P.masked_fill(ignored_P, 0)
    # softplus(-d) = -log sigmoid(d), without the overflow.
    loss_P = (1 - label_smoothing) * softplus(-d_P, threshold=50)
    if label_smoothing:
        loss_P = loss_P + label_smoothing * softplus(d_P, threshold=50)
    if centering:
        loss_P = loss_P + centering * sum_P.square()
    total = weight_P.sum()
    share_P = weight_P / total.masked_fill(total == 0, 1)
    return (share_P * loss_P).sum(), d_P, sum_P, share_P
