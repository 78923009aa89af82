"""bradley_terry_loss: the preference loss, its gradient computed in the same pass.

Shape letters: `B` responses, `P` pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backend import Backend, check_backend, choose_backend
from ...layout import INDEX_DTYPES, values_readable
from ..registration import (
    check_finite,
    check_float,
    check_number,
    check_positions,
    check_same_device,
    check_shape,
    register_backward_op,
    register_op,
)
from ..segments import accumulate_dtype
from .reference import bradley_terry_loss_with_grad_reference

__all__ = ["bradley_terry_loss"]


def bradley_terry_loss(
    reward: Tensor,
    pairs: Tensor,
    margin: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
    *,
    weight: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Weighted mean over pairs of `(1-ε) softplus(-d) + ε softplus(d) + λ(R_c + R_r)²` with `d = R_c - R_r - margin`.

    softplus(-d) is -log sigmoid(d): the preference loss of arXiv 2503.04793, section 3, with the options in docs/method.md.

    Args:
        reward: [B], one a response; fp16, bf16, fp32 or fp64.
        pairs: int32 or int64 [P, 2], (chosen, rejected) as indices into `reward`. A response may be in many pairs: a ranking of K
            responses is its K(K-1)/2 ordered pairs.
        margin: by how much the chosen reward should win; a number or [P], in units of `reward`.
        label_smoothing: ε in [0, 1), the chance that a label is wrong.
        centering: λ ≥ 0, pulls the rewards of a pair towards a sum of 0.
        weight: [P], not negative, which is checked where indices are; the result is `Σ weight · loss / Σ weight`, and a pair of weight 0
            may hold anything. `margin` and `weight` are data, no gradient flows into them.
        backend: what runs: `"auto"`, `"triton"` or `"torch"`.

    Returns:
        A scalar in fp32 (fp64 for fp64), differentiable in `reward`: 0 where there are no pairs or all weights are 0.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: shapes or devices that do not match, a number out of range, or a `margin` or `weight` that requires a gradient.
        IndexError: a pair outside [0, B), on the CPU and in debug mode; undefined behaviour on a GPU otherwise.
        RuntimeError: `backend="triton"` where it cannot run, or a second or forward-mode derivative.
    """
    op = "bradley_terry_loss"
    check_backend(op, backend)
    check_float(op, reward=reward)
    if reward.dim() != 1:
        raise ValueError(f"{op}: `reward` must have shape [B], got {list(reward.shape)}.")
    if not isinstance(pairs, Tensor) or pairs.dtype not in INDEX_DTYPES:
        raise TypeError(f"{op}: `pairs` must be an int32 or int64 tensor, got {getattr(pairs, 'dtype', type(pairs).__name__)}.")
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"{op}: `pairs` must have shape [P, 2], (chosen, rejected), got {list(pairs.shape)}.")
    check_number(op, label_smoothing=label_smoothing)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{op}: `label_smoothing` must be in [0, 1), got {label_smoothing}.")
    check_finite(op, centering=centering)
    if centering < 0:
        raise ValueError(f"{op}: `centering` must not be negative, got {centering}.")
    if margin is not None and not isinstance(margin, Tensor):
        check_finite(op, margin=margin)
        margin = torch.full((pairs.shape[0],), float(margin), dtype=accumulate_dtype(reward), device=reward.device)
    for name, x in (("margin", margin), ("weight", weight)):
        if x is None:
            continue
        check_float(op, **{name: x})
        check_shape(op, name, x, (pairs.shape[0],), "[P]")
        if x.requires_grad:
            raise ValueError(f"{op}: `{name}` is data and gets no gradient, but requires one. Pass `{name}.detach()`.")
    check_same_device(op, reward=reward, pairs=pairs, margin=margin, weight=weight)
    check_positions(op, "pairs", pairs, reward.numel())
    if weight is not None and weight.numel() and values_readable(weight) and weight.min() < 0:
        raise ValueError(f"{op}: `weight` must not be negative, got {float(weight.min())} (pair {int(weight.argmin())}).")
    return _bradley_terry_op(reward, pairs, margin, weight, label_smoothing, centering, backend)[0]


def _bradley_terry(
    reward: Tensor,
    pairs: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    centering: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient [B] in the dtype of the loss."""
    if choose_backend("bradley_terry_loss", backend, reward.device) == "triton":
        from .kernels import bradley_terry_loss_with_grad

        return bradley_terry_loss_with_grad(reward, pairs, margin, weight, label_smoothing, centering)
    return bradley_terry_loss_with_grad_reference(reward, pairs, margin, weight, label_smoothing, centering)


def _fake(
    reward: Tensor,
    pairs: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    centering: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(reward)
    return reward.new_empty((), dtype=dtype), reward.new_empty(reward.shape, dtype=dtype)


def _bradley_terry_backward(grad: Tensor, grad_reward: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient is known since the forward: scale it. An op of its own, so that a second derivative is refused, not wrong."""
    return (grad * grad_reward).to(dtype)


def _fake_backward(grad: Tensor, grad_reward: Tensor, dtype: torch.dtype) -> Tensor:
    return grad_reward.new_empty(grad_reward.shape, dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _bradley_terry_backward_op(grad, *ctx.saved_tensors, ctx.dtype), None, None, None, None, None, None


_bradley_terry_op = register_op("bradley_terry_loss", _bradley_terry, _fake, save=_save, backward=_backward)
_bradley_terry_backward_op = register_backward_op("bradley_terry_loss", _bradley_terry_backward, _fake_backward)
