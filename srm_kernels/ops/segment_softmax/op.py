"""segment_softmax: softmax inside each segment of a packed tensor.

Shape letters: `N` elements, `B` segments, `H` heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backend import Backend, choose_backend
from ..registration import check_float, check_offsets, check_same_device, refuse_double_backward
from .reference import segment_softmax_backward_reference, segment_softmax_reference

__all__ = ["segment_softmax"]


def segment_softmax(scores: Tensor, cu: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Softmax of `scores` inside each segment.

    scores: [N] or [N, H], fp16 / bf16 / fp32 / fp64.
    cu: [B + 1] int32 or int64 offsets; segment `b` is `scores[cu[b]:cu[b + 1]]`, of any length, empty included.

    Returns the shape and dtype of `scores`, accumulated in fp32 (fp64 for fp64). A score of -inf gets weight 0; where all scores of a
    segment are -inf, all its weights are 0.
    """
    op = "segment_softmax"
    check_float(op, scores=scores)
    if scores.dim() not in (1, 2):
        raise ValueError(f"{op}: `scores` must have shape [N] or [N, H], got {list(scores.shape)}.")
    check_offsets(op, "cu", cu, scores.shape[0], "len(scores)")
    check_same_device(op, scores=scores, cu=cu)
    return _segment_softmax(scores, cu, backend)


@torch.library.custom_op("srm_kernels::segment_softmax", mutates_args=())
def _segment_softmax(scores: Tensor, cu: Tensor, backend: str) -> Tensor:
    if choose_backend("segment_softmax", backend, scores.device) == "triton":
        from .kernels import segment_softmax_forward

        return segment_softmax_forward(scores, cu)
    return segment_softmax_reference(scores, cu)


@_segment_softmax.register_fake
def _(scores: Tensor, cu: Tensor, backend: str) -> Tensor:
    return scores.new_empty(scores.shape)


@torch.library.custom_op("srm_kernels::segment_softmax_backward", mutates_args=())
def _segment_softmax_backward(grad: Tensor, weight: Tensor, cu: Tensor, backend: str) -> Tensor:
    if choose_backend("segment_softmax", backend, grad.device) == "triton":
        from .kernels import segment_softmax_backward

        return segment_softmax_backward(grad, weight, cu)
    return segment_softmax_backward_reference(grad, weight, cu, weight.dtype)


@_segment_softmax_backward.register_fake
def _(grad: Tensor, weight: Tensor, cu: Tensor, backend: str) -> Tensor:
    return weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cu, ctx.backend = inputs
    ctx.save_for_backward(output, cu)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, cu = ctx.saved_tensors
    return _segment_softmax_backward(grad, weight, cu, ctx.backend), None, None


_segment_softmax.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(_segment_softmax_backward, "segment_softmax")
