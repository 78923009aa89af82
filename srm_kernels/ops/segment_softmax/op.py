"""segment_softmax: softmax inside each segment of a packed tensor.

Shape letters: `N` elements, `B` segments, `H` heads.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...backend import Backend, check_backend, choose_backend
from ..registration import check_float, check_offsets, check_same_device, register_backward_op, register_op
from .reference import segment_softmax_backward_reference, segment_softmax_reference

__all__ = ["segment_softmax"]


def segment_softmax(score: Tensor, cu_seqlens: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Softmax of `score` inside each segment of a packed tensor.

    Args:
        score: [N] or [N, H]; fp16, bf16, fp32 or fp64.
        cu_seqlens: int32 or int64 [B + 1], offsets in elements: segment `b` is `score[cu_seqlens[b]:cu_seqlens[b + 1]]`, of any length,
            empty included.
        backend: what runs: `"auto"`, `"triton"` or `"torch"`.

    Returns:
        The shape and dtype of `score`, accumulated in fp32 (fp64 for fp64), differentiable in `score`. A score of -inf gets 0; where all
        scores of a segment are -inf, all get 0.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: shapes or devices that do not match, or offsets that do not fit.
        RuntimeError: `backend="triton"` where it cannot run, or a second or forward-mode derivative.
    """
    op = "segment_softmax"
    check_backend(op, backend)
    check_float(op, score=score)
    if score.dim() not in (1, 2):
        raise ValueError(f"{op}: `score` must have shape [N] or [N, H], got {list(score.shape)}.")
    check_offsets(op, "cu_seqlens", cu_seqlens, score.shape[0], "len(score)")
    check_same_device(op, score=score, cu_seqlens=cu_seqlens)
    return _segment_softmax_op(score, cu_seqlens, backend)


def _segment_softmax(score: Tensor, cu_seqlens: Tensor, backend: str) -> Tensor:
    if choose_backend("segment_softmax", backend, score.device) == "triton":
        from .kernels import segment_softmax_forward

        return segment_softmax_forward(score, cu_seqlens)
    return segment_softmax_reference(score, cu_seqlens)


def _fake(score: Tensor, cu_seqlens: Tensor, backend: str) -> Tensor:
    return score.new_empty(score.shape)


def _segment_softmax_backward(grad: Tensor, weight: Tensor, cu_seqlens: Tensor, backend: str) -> Tensor:
    if choose_backend("segment_softmax", backend, grad.device) == "triton":
        from .kernels import segment_softmax_backward

        return segment_softmax_backward(grad, weight, cu_seqlens)
    return segment_softmax_backward_reference(grad, weight, cu_seqlens, weight.dtype)


def _fake_backward(grad: Tensor, weight: Tensor, cu_seqlens: Tensor, backend: str) -> Tensor:
    return weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cu_seqlens, ctx.backend = inputs
    ctx.save_for_backward(output, cu_seqlens)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, cu_seqlens = ctx.saved_tensors
    return _segment_softmax_backward_op(grad, weight, cu_seqlens, ctx.backend), None, None


_segment_softmax_op = register_op("segment_softmax", _segment_softmax, _fake, save=_save, backward=_backward)
_segment_softmax_backward_op = register_backward_op("segment_softmax", _segment_softmax_backward, _fake_backward)
