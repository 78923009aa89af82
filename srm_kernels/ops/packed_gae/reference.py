"""packed_gae in plain PyTorch: the definition, and what runs on the CPU.

Shape letters: `T` tokens, `S` sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..segments import accumulate_dtype, first_of_segment, segment_of, segment_sum

__all__ = ["packed_gae_backward_reference", "packed_gae_reference"]


def packed_gae_reference(
    reward: Tensor, value: Tensor, cu_seqlens: Tensor, gamma: float, lam: float, bootstrap_value: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, differentiable as often as you like.

    Args:
        reward: [T].
        value: [T].
        cu_seqlens: int [S + 1].
        gamma: discount a token.
        lam: weight of longer looks ahead.
        bootstrap_value: [S], `V` after a sequence's last token; 0 if None. `A` is 0 there.

    Returns:
        Advantages [T] and returns [T], in fp32 (fp64 if any input is).
    """
    dtype = accumulate_dtype(reward, value, bootstrap_value)
    reward_T, value_T = reward.to(dtype), value.to(dtype)
    if value_T.numel() == 0:
        return value_T.clone(), value_T.clone()
    last_T = _last_of_segment(cu_seqlens, value_T.numel())
    next_T = value_T.roll(-1).masked_fill(last_T, 0)
    if bootstrap_value is not None:
        segment_T = segment_of(cu_seqlens, value_T.numel())
        next_T = torch.where(last_T, bootstrap_value.to(dtype)[segment_T], next_T)
    delta_T = reward_T + _scaled(gamma, next_T) - value_T
    decay_T = torch.full_like(delta_T, gamma * lam).masked_fill(last_T, 0)
    advantage_T = _scan(delta_T.flip(0), decay_T.flip(0)).flip(0)
    return advantage_T, advantage_T + value_T


def packed_gae_backward_reference(
    grad_advantage: Tensor, grad_return: Tensor, cu_seqlens: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `reward` [T], `value` [T] and `bootstrap_value` [S]."""
    num = grad_advantage.numel()
    if num == 0:
        return grad_advantage.clone(), grad_advantage.clone(), grad_advantage.new_zeros(cu_seqlens.numel() - 1)
    first_T, last_T = first_of_segment(cu_seqlens, num), _last_of_segment(cu_seqlens, num)
    decay_T = torch.full_like(grad_advantage, gamma * lam).masked_fill(first_T, 0)
    # The transpose of a reverse scan is the same scan forwards.
    grad_delta_T = _scan(grad_advantage + grad_return, decay_T)
    grad_value_T = _scaled(gamma, grad_delta_T.roll(1).masked_fill(first_T, 0)) - grad_delta_T + grad_return
    at_end_T = _scaled(gamma, grad_delta_T).masked_fill(~last_T, 0)
    return grad_delta_T, grad_value_T, segment_sum(at_end_T, segment_of(cu_seqlens, num), cu_seqlens.numel() - 1)


def _scan(x: Tensor, decay: Tensor) -> Tensor:
    """`y_t = x_t + decay_t · y_{t-1}` with `decay_0 = 0`, by doubling: log2(T) vector steps instead of a Python loop over tokens."""
    step, num = 1, x.numel()
    while step < num:
        # Not a bare product: 0 · NaN would carry one sequence's NaN into the next.
        carried = torch.where(decay[step:] == 0, 0, decay[step:] * x[:-step])
        x = torch.cat((x[:step], x[step:] + carried))
        decay = torch.cat((decay[:step], decay[step:] * decay[:-step]))
        step *= 2
    return x


def _scaled(factor: float, x: Tensor) -> Tensor:
    """`factor · x`, and 0 for the factor 0 whatever `x` holds."""
    return factor * x if factor else torch.zeros_like(x)


def _last_of_segment(cu_seqlens: Tensor, num: int) -> Tensor:
    """bool [T]: whether each element is the last of its segment. Element 0 is always first, so the roll brings the end round."""
    return first_of_segment(cu_seqlens, num).roll(-1)
