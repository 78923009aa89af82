"""bradley_terry_loss in plain PyTorch: the definition, and what runs on the CPU.

Shape letters: `B` responses, `P` pairs.
"""

from __future__ import annotations

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
    """Weighted mean over `pairs` [P, 2] of `(1-ε) softplus(-d) + ε softplus(d) + λ (R_c + R_r)²`, `d = R_c - R_r - margin`."""
    reward_B = reward.to(accumulate_dtype(reward))
    pair_P2 = pairs.long()
    chosen_P, rejected_P = reward_B[pair_P2[:, 0]], reward_B[pair_P2[:, 1]]
    d_P = chosen_P - rejected_P - (margin.to(reward_B.dtype) if isinstance(margin, Tensor) else margin or 0.0)
    # softplus(-d) = -log sigmoid(d), without the overflow.
    loss_P = (1 - label_smoothing) * softplus(-d_P, threshold=50) + label_smoothing * softplus(d_P, threshold=50)
    loss_P = loss_P + centering * (chosen_P + rejected_P).square()
    weight_P = loss_P.new_ones(loss_P.shape) if weight is None else weight.to(loss_P.dtype)
    total = weight_P.sum()
    return (weight_P * loss_P).sum() / total.masked_fill(total == 0, 1)


def bradley_terry_loss_with_grad_reference(
    reward: Tensor, pairs: Tensor, margin: Tensor | None, weight: Tensor | None, label_smoothing: float, centering: float
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient [B] in fp32 (fp64 for fp64)."""
    reward_B = reward.to(accumulate_dtype(reward))
    pair_P2 = pairs.long()
    chosen_P, rejected_P = reward_B[pair_P2[:, 0]], reward_B[pair_P2[:, 1]]
    d_P = chosen_P - rejected_P
    if margin is not None:
        d_P = d_P - margin.to(d_P.dtype)
    loss_P = (1 - label_smoothing) * softplus(-d_P, threshold=50) + label_smoothing * softplus(d_P, threshold=50)
    sum_P = chosen_P + rejected_P
    loss_P = loss_P + centering * sum_P.square()
    weight_P = loss_P.new_ones(loss_P.shape) if weight is None else weight.to(loss_P.dtype)
    total = weight_P.sum()
    weight_P = weight_P / total.masked_fill(total == 0, 1)
    slope_P = (label_smoothing - (-d_P).sigmoid()) * weight_P
    pull_P = 2 * centering * sum_P * weight_P
    grad_B = reward_B.new_zeros(reward_B.shape)
    grad_B.index_add_(0, pair_P2[:, 0], pull_P + slope_P).index_add_(0, pair_P2[:, 1], pull_P - slope_P)
    return (weight_P * loss_P).sum(), grad_B
