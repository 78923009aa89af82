"""packed_gae: generalised advantage estimation on packed sequences.

Shape letters: `T` tokens, `S` sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backend import Backend, choose_backend
from ..registration import check_finite, check_float, check_offsets, check_same_device, check_shape, refuse_double_backward
from ..segments import accumulate_dtype
from .reference import packed_gae_backward_reference, packed_gae_reference

__all__ = ["packed_gae"]


def packed_gae(
    rewards: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    *,
    bootstrap_value: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`A_t = δ_t + gamma·lam·A_{t+1}` with `δ_t = r_t + gamma·V_{t+1} - V_t`, inside each sequence (arXiv 1506.02438).

    rewards, values: [T], fp16 / bf16 / fp32 / fp64.
    cu_seqlens: [S + 1] int32 or int64 offsets; sequence `s` is `cu[s]:cu[s + 1]`.
    gamma, lam: discount, and the weight of longer looks ahead; 1 and 1 give the rewards to go.
    bootstrap_value: [S], the value after the last token of a sequence that was cut off; 0 (the default) for one that ended.

    Returns advantages [T] and returns [T] = advantages + values, in fp32 (fp64 if any input is). Differentiable in `rewards`, `values`
    and `bootstrap_value`; detach where they are targets. A NaN stays inside its sequence.
    """
    op = "packed_gae"
    check_float(op, rewards=rewards, values=values, bootstrap_value=bootstrap_value)
    if rewards.dim() != 1:
        raise ValueError(f"{op}: `rewards` must have shape [T], got {list(rewards.shape)}.")
    check_offsets(op, "cu_seqlens", cu_seqlens, rewards.shape[0], "len(rewards)")
    check_shape(op, "values", values, (rewards.shape[0],), "[T]")
    check_shape(op, "bootstrap_value", bootstrap_value, (cu_seqlens.numel() - 1,), "[S]")
    check_finite(op, gamma=gamma, lam=lam)
    check_same_device(op, rewards=rewards, values=values, cu_seqlens=cu_seqlens, bootstrap_value=bootstrap_value)
    return _packed_gae(rewards, values, cu_seqlens, bootstrap_value, gamma, lam, backend)


@torch.library.custom_op("srm_kernels::packed_gae", mutates_args=())
def _packed_gae(
    rewards: Tensor, values: Tensor, cu_seqlens: Tensor, bootstrap_value: Tensor | None, gamma: float, lam: float, backend: str
) -> tuple[Tensor, Tensor]:
    if choose_backend("packed_gae", backend, rewards.device) == "triton":
        from .kernels import packed_gae_forward

        return packed_gae_forward(rewards, values, cu_seqlens, gamma, lam, bootstrap_value)
    return packed_gae_reference(rewards, values, cu_seqlens, gamma, lam, bootstrap_value)


@_packed_gae.register_fake
def _(
    rewards: Tensor, values: Tensor, cu_seqlens: Tensor, bootstrap_value: Tensor | None, gamma: float, lam: float, backend: str
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(rewards, values, bootstrap_value)
    return rewards.new_empty(rewards.shape, dtype=dtype), rewards.new_empty(rewards.shape, dtype=dtype)


@torch.library.custom_op("srm_kernels::packed_gae_backward", mutates_args=())
def _packed_gae_backward(
    grad_advantage: Tensor, grad_return: Tensor, cu_seqlens: Tensor, gamma: float, lam: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `rewards` [T], `values` [T] and `bootstrap_value` [S], in the dtype of the incoming ones."""
    if choose_backend("packed_gae", backend, grad_advantage.device) == "triton":
        from .kernels import packed_gae_backward as run
    else:
        run = packed_gae_backward_reference
    return run(grad_advantage, grad_return, cu_seqlens, gamma, lam)


@_packed_gae_backward.register_fake
def _(
    grad_advantage: Tensor, grad_return: Tensor, cu_seqlens: Tensor, gamma: float, lam: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    shape = grad_advantage.shape
    return grad_advantage.new_empty(shape), grad_advantage.new_empty(shape), grad_advantage.new_empty(cu_seqlens.shape[0] - 1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rewards, values, cu_seqlens, bootstrap_value, ctx.gamma, ctx.lam, ctx.backend = inputs
    ctx.dtypes = rewards.dtype, values.dtype, None if bootstrap_value is None else bootstrap_value.dtype
    ctx.save_for_backward(cu_seqlens)


def _backward(ctx: Any, grad_advantage: Tensor, grad_return: Tensor) -> tuple[Tensor | None, ...]:
    (cu_seqlens,) = ctx.saved_tensors
    grads = _packed_gae_backward(grad_advantage, grad_return, cu_seqlens, ctx.gamma, ctx.lam, ctx.backend)
    grad_rewards, grad_values, grad_bootstrap = (
        None if dtype is None else grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)
    )
    return grad_rewards, grad_values, None, grad_bootstrap, None, None, None


_packed_gae.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(_packed_gae_backward, "packed_gae")
