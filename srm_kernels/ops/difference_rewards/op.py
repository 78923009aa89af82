"""difference_rewards: what each sentence added to the value.

Shape letters: `N` boundaries, `B` responses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backend import Backend, choose_backend
from ..registration import check_float, check_offsets, check_same_device, refuse_double_backward
from .reference import difference_rewards_backward_reference, difference_rewards_reference

__all__ = ["difference_rewards"]


def difference_rewards(values: Tensor, cu: Tensor, *, backend: Backend = "auto") -> Tensor:
    """`r_0 = v_0` and `r_i = v_i - v_{i-1}` inside each segment (arXiv 2503.04793, the sentence reward).

    values: [N], fp16 / bf16 / fp32 / fp64.
    cu: [B + 1] int32 or int64 offsets; segment `b` is `values[cu[b]:cu[b + 1]]`.

    Returns [N] in `values`' dtype. Inverse: a cumulative sum inside each segment.
    """
    op = "difference_rewards"
    check_float(op, values=values)
    if values.dim() != 1:
        raise ValueError(f"{op}: `values` must have shape [N], got {list(values.shape)}.")
    check_offsets(op, "cu", cu, values.shape[0], "len(values)")
    check_same_device(op, values=values, cu=cu)
    return _difference_rewards(values, cu, backend)


@torch.library.custom_op("srm_kernels::difference_rewards", mutates_args=())
def _difference_rewards(values: Tensor, cu: Tensor, backend: str) -> Tensor:
    if choose_backend("difference_rewards", backend, values.device) == "triton":
        from .kernels import difference_rewards_forward

        return difference_rewards_forward(values, cu)
    return difference_rewards_reference(values, cu)


@torch.library.custom_op("srm_kernels::difference_rewards_backward", mutates_args=())
def _difference_rewards_backward(grad: Tensor, cu: Tensor, backend: str) -> Tensor:
    if choose_backend("difference_rewards", backend, grad.device) == "triton":
        from .kernels import difference_rewards_backward

        return difference_rewards_backward(grad, cu)
    return difference_rewards_backward_reference(grad, cu)


@_difference_rewards.register_fake
@_difference_rewards_backward.register_fake
def _(values: Tensor, cu: Tensor, backend: str) -> Tensor:
    return values.new_empty(values.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cu, ctx.backend = inputs
    ctx.save_for_backward(cu)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (cu,) = ctx.saved_tensors
    return _difference_rewards_backward(grad, cu, ctx.backend), None, None


_difference_rewards.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(_difference_rewards_backward, "difference_rewards")
