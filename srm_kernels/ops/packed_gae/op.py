"""packed_gae: generalised advantage estimation on packed sequences.

Shape letters: `T` tokens, `S` sequences.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...backend import Backend, check_backend, choose_backend
from ..registration import check_finite, check_float, check_offsets, check_same_device, check_shape, register_backward_op, register_op
from ..segments import accumulate_dtype
from .reference import packed_gae_backward_reference, packed_gae_reference

__all__ = ["packed_gae"]


def packed_gae(
    reward: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    *,
    bootstrap_value: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`A_t = δ_t + gamma·lam·A_{t+1}` with `δ_t = r_t + gamma·V_{t+1} - V_t`, inside each sequence (arXiv 1506.02438, section 3).

    Args:
        reward: [T], `r_t`; fp16, bf16, fp32 or fp64.
        value: [T], `V_t`; any of these dtypes.
        cu_seqlens: int32 or int64 [S + 1], offsets in tokens: sequence `s` is `cu_seqlens[s]:cu_seqlens[s + 1]`.
        gamma: discount a token. With 0 no value of a later token takes part, whatever it holds.
        lam: weight of longer looks ahead; with `gamma` 1, a `lam` of 1 gives the rewards to go.
        bootstrap_value: [S], the value after the last token of a sequence that was cut off; 0 (the default) for one that ended.
        backend: what runs: `"auto"`, `"triton"` or `"torch"`.

    Returns:
        Advantages [T] and returns [T] = advantages + values, in fp32 (fp64 if any input is), differentiable in `reward`, `value` and
        `bootstrap_value`; detach where they are targets. A NaN stays inside its sequence.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: shapes or devices that do not match, offsets that do not fit, or a `gamma` or `lam` that is not finite.
        RuntimeError: `backend="triton"` where it cannot run, or a second or forward-mode derivative.
    """
    op = "packed_gae"
    check_backend(op, backend)
    check_float(op, reward=reward, value=value)
    if bootstrap_value is not None:
        check_float(op, bootstrap_value=bootstrap_value)
    if reward.dim() != 1:
        raise ValueError(f"{op}: `reward` must have shape [T], got {list(reward.shape)}.")
    check_offsets(op, "cu_seqlens", cu_seqlens, reward.shape[0], "len(reward)")
    check_shape(op, "value", value, (reward.shape[0],), "[T]")
    check_shape(op, "bootstrap_value", bootstrap_value, (cu_seqlens.numel() - 1,), "[S]")
    check_finite(op, gamma=gamma, lam=lam)
    check_same_device(op, reward=reward, value=value, cu_seqlens=cu_seqlens, bootstrap_value=bootstrap_value)
    return _packed_gae_op(reward, value, cu_seqlens, bootstrap_value, gamma, lam, backend)


def _packed_gae(
    reward: Tensor, value: Tensor, cu_seqlens: Tensor, bootstrap_value: Tensor | None, gamma: float, lam: float, backend: str
) -> tuple[Tensor, Tensor]:
    if choose_backend("packed_gae", backend, reward.device) == "triton":
        from .kernels import packed_gae_forward

        return packed_gae_forward(reward, value, cu_seqlens, gamma, lam, bootstrap_value)
    return packed_gae_reference(reward, value, cu_seqlens, gamma, lam, bootstrap_value)


def _fake(
    reward: Tensor, value: Tensor, cu_seqlens: Tensor, bootstrap_value: Tensor | None, gamma: float, lam: float, backend: str
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(reward, value, bootstrap_value)
    return reward.new_empty(reward.shape, dtype=dtype), reward.new_empty(reward.shape, dtype=dtype)


def _packed_gae_backward(
    grad_advantage: Tensor, grad_return: Tensor, cu_seqlens: Tensor, gamma: float, lam: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `reward` [T], `value` [T] and `bootstrap_value` [S], in the dtype of the incoming ones."""
    if choose_backend("packed_gae", backend, grad_advantage.device) == "triton":
        from .kernels import packed_gae_backward as run
    else:
        run = packed_gae_backward_reference
    return run(grad_advantage, grad_return, cu_seqlens, gamma, lam)


def _fake_backward(
    grad_advantage: Tensor, grad_return: Tensor, cu_seqlens: Tensor, gamma: float, lam: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    shape = grad_advantage.shape
    return grad_advantage.new_empty(shape), grad_advantage.new_empty(shape), grad_advantage.new_empty(cu_seqlens.shape[0] - 1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    reward, value, cu_seqlens, bootstrap_value, ctx.gamma, ctx.lam, ctx.backend = inputs
    ctx.dtypes = reward.dtype, value.dtype, None if bootstrap_value is None else bootstrap_value.dtype
    ctx.save_for_backward(cu_seqlens)


def _backward(ctx: Any, grad_advantage: Tensor, grad_return: Tensor) -> tuple[Tensor | None, ...]:
    (cu_seqlens,) = ctx.saved_tensors
    grads = _packed_gae_backward_op(grad_advantage, grad_return, cu_seqlens, ctx.gamma, ctx.lam, ctx.backend)
    grad_reward, grad_value, grad_bootstrap = (
        None if dtype is None else grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)
    )
    return grad_reward, grad_value, None, grad_bootstrap, None, None, None


_packed_gae_op = register_op("packed_gae", _packed_gae, _fake, save=_save, backward=_backward)
_packed_gae_backward_op = register_backward_op("packed_gae", _packed_gae_backward, _fake_backward)
