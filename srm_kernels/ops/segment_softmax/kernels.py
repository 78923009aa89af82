"""segment_softmax in Triton: a program owns one segment and a block of heads, and loops over the segment's elements.

Shape letters: `N` elements, `B` segments, `H` heads.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import acc_type, aligned, blocks_of, device_of, num_warps
from ..segments import accumulate_dtype

__all__ = ["segment_softmax_backward", "segment_softmax_forward"]


NUM_THREADS = 64  # One warp of the widest GPU.


def softmax_config(num_heads: int) -> dict[str, Any]:
    """Tiles of 256 elements, so that a typical segment of a dozen sentences fits one and a long one loops."""
    block = 1 if num_heads == 1 else 16
    return {"H": num_heads, "BLOCK_H": block, "BLOCK_N": 256 // block}


@triton.jit
def segment_softmax_kernel(
    score_ptr, cu_seqlens_ptr, out_ptr, ACC: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr
):
    """out [N, H] = softmax of score [N, H] inside each segment."""
    pid = tl.program_id(0).to(tl.int64)
    head_blocks: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    head = pid % head_blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    begin = tl.load(cu_seqlens_ptr + pid // head_blocks).to(tl.int64)
    end = tl.load(cu_seqlens_ptr + (pid // head_blocks + 1)).to(tl.int64)
    # Every lane keeps its own running max and sum; lanes meet once, after the loop.
    peak = tl.full((BLOCK_N, BLOCK_H), float("-inf"), ACC)
    total = tl.zeros((BLOCK_N, BLOCK_H), ACC)
    start = begin
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & (head < H)[None, :]
        score = tl.load(score_ptr + (n[:, None] * H + head[None, :]), mask=mask, other=float("-inf")).to(ACC)
        new_peak = tl.maximum(peak, score)
        anchor = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # exp(-inf - -inf) would be NaN.
        total = total * tl.exp(peak - anchor) + tl.exp(score - anchor)
        peak = new_peak
        start += BLOCK_N
    top = tl.max(peak, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    total_H = tl.sum(total * tl.exp(peak - top[None, :]), 0)
    total_H = tl.where(total_H == 0, 1.0, total_H)  # All masked: weights are 0, not 0 / 0.
    start = begin
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & (head < H)[None, :]
        offset = n[:, None] * H + head[None, :]
        score = tl.load(score_ptr + offset, mask=mask, other=float("-inf")).to(ACC)
        tl.store(out_ptr + offset, tl.exp(score - top[None, :]) / total_H[None, :], mask=mask)
        start += BLOCK_N


@triton.jit
def segment_softmax_backward_kernel(
    grad_ptr, weight_ptr, cu_seqlens_ptr, out_ptr, ACC: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr
):
    """out [N, H] = weight · (grad - Σ weight · grad), the sum inside each segment."""
    pid = tl.program_id(0).to(tl.int64)
    head_blocks: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    head = pid % head_blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    begin = tl.load(cu_seqlens_ptr + pid // head_blocks).to(tl.int64)
    end = tl.load(cu_seqlens_ptr + (pid // head_blocks + 1)).to(tl.int64)
    product = tl.zeros((BLOCK_N, BLOCK_H), ACC)
    start = begin
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & (head < H)[None, :]
        offset = n[:, None] * H + head[None, :]
        weight = tl.load(weight_ptr + offset, mask=mask, other=0).to(ACC)
        product += weight * tl.load(grad_ptr + offset, mask=mask, other=0).to(ACC)
        start += BLOCK_N
    mean = tl.sum(product, 0)
    start = begin
    while start < end:
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < end)[:, None] & (head < H)[None, :]
        offset = n[:, None] * H + head[None, :]
        weight = tl.load(weight_ptr + offset, mask=mask, other=0).to(ACC)
        grad = tl.load(grad_ptr + offset, mask=mask, other=0).to(ACC)
        tl.store(out_ptr + offset, weight * (grad - mean[None, :]), mask=mask)
        start += BLOCK_N


def segment_softmax_forward(score: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Weights in the shape and dtype of `score`."""
    score, cu_seqlens = aligned(score), aligned(cu_seqlens)
    out = torch.empty_like(score)
    if out.numel():
        config = softmax_config(1 if score.dim() == 1 else score.shape[1])
        with device_of(score):
            segment_softmax_kernel[_grid(cu_seqlens, config)](
                score, cu_seqlens, out, ACC=acc_type(accumulate_dtype(score)), **config, num_warps=num_warps(NUM_THREADS)
            )
    return out


def segment_softmax_backward(grad: Tensor, weight: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Gradient of the scores."""
    grad, weight, cu_seqlens = aligned(grad), aligned(weight), aligned(cu_seqlens)
    out = torch.empty_like(weight)
    if out.numel():
        config = softmax_config(1 if weight.dim() == 1 else weight.shape[1])
        with device_of(weight):
            segment_softmax_backward_kernel[_grid(cu_seqlens, config)](
                grad, weight, cu_seqlens, out, ACC=acc_type(accumulate_dtype(weight, grad)), **config, num_warps=num_warps(NUM_THREADS)
            )
    return out


def _grid(cu_seqlens: Tensor, config: dict[str, Any]) -> tuple[int]:
    return ((cu_seqlens.numel() - 1) * blocks_of(config["H"], config["BLOCK_H"]),)
