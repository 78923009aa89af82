"""difference_rewards: what each sentence added to the value.

Shape letters: `N` boundaries, `B` responses.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...backend import Backend, check_backend, choose_backend
from ..registration import check_float, check_offsets, check_same_device, register_backward_op, register_op
from .reference import difference_rewards_backward_reference, difference_rewards_reference

__all__ = ["difference_rewards"]


def difference_rewards(value: Tensor, cu_boundaries: Tensor, *, backend: Backend = "auto") -> Tensor:
    """`r_0 = v_0` and `r_i = v_i - v_{i-1}` inside each response (arXiv 2503.04793, section 3). Inverse: a cumulative sum.

    Args:
        value: [N], `v_i`, the value at each boundary; fp16, bf16, fp32 or fp64.
        cu_boundaries: int32 or int64 [B + 1], offsets in boundaries: response `b` owns `value[cu_boundaries[b]:cu_boundaries[b + 1]]`.
        backend: what runs: `"auto"`, `"triton"` or `"torch"`.

    Returns:
        The sentence rewards [N] in `value`'s dtype, differentiable in `value`.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: shapes or devices that do not match, or offsets that do not fit.
        RuntimeError: `backend="triton"` where it cannot run, or a second or forward-mode derivative.
    """
    op = "difference_rewards"
    check_backend(op, backend)
    check_float(op, value=value)
    if value.dim() != 1:
        raise ValueError(f"{op}: `value` must have shape [N], got {list(value.shape)}.")
    check_offsets(op, "cu_boundaries", cu_boundaries, value.shape[0], "len(value)")
    check_same_device(op, value=value, cu_boundaries=cu_boundaries)
    return _difference_rewards_op(value, cu_boundaries, backend)


def _difference_rewards(value: Tensor, cu_boundaries: Tensor, backend: str) -> Tensor:
    if choose_backend("difference_rewards", backend, value.device) == "triton":
        from .kernels import difference_rewards_forward

        return difference_rewards_forward(value, cu_boundaries)
    return difference_rewards_reference(value, cu_boundaries)


def _difference_rewards_backward(grad: Tensor, cu_boundaries: Tensor, backend: str) -> Tensor:
    if choose_backend("difference_rewards", backend, grad.device) == "triton":
        from .kernels import difference_rewards_backward

        return difference_rewards_backward(grad, cu_boundaries)
    return difference_rewards_backward_reference(grad, cu_boundaries)


def _fake(value: Tensor, cu_boundaries: Tensor, backend: str) -> Tensor:
    return value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cu_boundaries, ctx.backend = inputs
    ctx.save_for_backward(cu_boundaries)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (cu_boundaries,) = ctx.saved_tensors
    return _difference_rewards_backward_op(grad, cu_boundaries, ctx.backend), None, None


_difference_rewards_op = register_op("difference_rewards", _difference_rewards, _fake, save=_save, backward=_backward)
_difference_rewards_backward_op = register_backward_op("difference_rewards", _difference_rewards_backward, _fake)
