"""packed_gae in Triton: a segmented scan, parallel inside sequences too.

Shape letters: `T` tokens, `S` sequences.

The recurrence y_s = x_s + d_s · y_{s-1} is a scan over pairs (d, x). Three passes over fixed chunks, so that no program waits for another:
each chunk is scanned to its last pair; one program scans those; each chunk is scanned again, now with what comes in. The scan always runs
upwards: going back in time, place s is token T - 1 - s. The decay d is 0 where a sequence begins, so chunks need not know sequences.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Kernel arguments have no Python types: Triton compiles these functions, nothing calls them.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import (
    WAYS_LOG2,
    acc_type,
    aligned,
    blocks_of,
    device_of,
    joined,
    num_warps,
    search_shift,
    segment_of_each,
    split_float,
    strided,
)
from ..segments import accumulate_dtype

__all__ = ["packed_gae_backward", "packed_gae_forward"]

CHUNK = 1024


@triton.jit
def combine(decay_a, x_a, decay_b, x_b):
    """First a, then b. Not a bare product: 0 · NaN would carry one sequence's NaN into the next."""
    return decay_a * decay_b, tl.where(decay_b == 0, x_b, x_b + decay_b * x_a)


@triton.jit
def scaled(factor, x):
    """factor · x, and 0 for the factor 0 whatever x holds."""
    return tl.where(factor == 0, 0.0, factor * x)


@triton.jit
def advantage_step(
    reward_ptr,
    value_ptr,
    bootstrap_ptr,
    cu_seqlens_ptr,
    start,
    num,
    num_offsets,
    shift,
    gamma,
    lam,
    ACC: tl.constexpr,
    HAS_BOOTSTRAP: tl.constexpr,
    CHUNK: tl.constexpr,
    WAYS_LOG2: tl.constexpr,
):
    """(decay, δ) and the value of the tokens at places from `start` on, backwards in time; the identity (1, 0) past the end."""
    s = start + strided(CHUNK)
    mask = s < num
    token = tl.where(mask, num - 1 - s, 0)
    sequence = segment_of_each(cu_seqlens_ptr, num_offsets, token, tl.maximum(num - start - CHUNK, 0), num - start, shift, WAYS_LOG2)
    end = tl.load(cu_seqlens_ptr + (sequence + 1), mask=mask, other=0).to(tl.int64)
    is_last = token == end - 1
    following = tl.load(value_ptr + (token + 1), mask=mask & (token + 1 < end), other=0).to(ACC)
    if HAS_BOOTSTRAP:
        following += tl.load(bootstrap_ptr + sequence, mask=mask & is_last, other=0).to(ACC)
    reward = tl.load(reward_ptr + token, mask=mask, other=0).to(ACC)
    value = tl.load(value_ptr + token, mask=mask, other=0).to(ACC)
    decay = tl.where(is_last, 0.0, gamma * lam)
    return tl.where(mask, decay, 1.0), tl.where(mask, reward + scaled(gamma, following) - value, 0.0), value


@triton.jit
def gradient_step(
    grad_advantage_ptr,
    grad_return_ptr,
    cu_seqlens_ptr,
    start,
    num,
    num_offsets,
    shift,
    gamma,
    lam,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    WAYS_LOG2: tl.constexpr,
):
    """(decay, gradient) of the tokens from `start` on, forwards in time."""
    token = start + strided(CHUNK)
    mask = token < num
    sequence = segment_of_each(cu_seqlens_ptr, num_offsets, token, start, start + CHUNK, shift, WAYS_LOG2)
    begin = tl.load(cu_seqlens_ptr + sequence, mask=mask, other=0).to(tl.int64)
    grad = tl.load(grad_advantage_ptr + token, mask=mask, other=0).to(ACC) + tl.load(grad_return_ptr + token, mask=mask, other=0).to(ACC)
    decay = tl.where(token == begin, 0.0, gamma * lam)
    return tl.where(mask, decay, 1.0), tl.where(mask, grad, 0.0)


@triton.jit(do_not_specialize=["num", "num_offsets", "shift"])
def chunk_kernel(
    a_ptr,
    b_ptr,
    bootstrap_ptr,
    cu_seqlens_ptr,
    decay_ptr,
    carry_ptr,
    num,
    num_offsets,
    shift,
    gamma_high,
    gamma_low,
    lam_high,
    lam_low,
    ACC: tl.constexpr,
    BACKWARD: tl.constexpr,
    HAS_BOOTSTRAP: tl.constexpr,
    CHUNK: tl.constexpr,
    WAYS_LOG2: tl.constexpr,
):
    """decay, carry [chunks]: the last pair of each chunk's scan. a, b are rewards and values, or in the backward the two gradients."""
    gamma = joined(gamma_high, gamma_low, ACC)
    lam = joined(lam_high, lam_low, ACC)
    chunk = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, CHUNK)
    start = chunk * CHUNK
    if BACKWARD:
        decay, x = gradient_step(a_ptr, b_ptr, cu_seqlens_ptr, start, num, num_offsets, shift, gamma, lam, ACC, CHUNK, WAYS_LOG2)
    else:
        decay, x, _ = advantage_step(
            a_ptr, b_ptr, bootstrap_ptr, cu_seqlens_ptr, start, num, num_offsets, shift, gamma, lam, ACC, HAS_BOOTSTRAP, CHUNK, WAYS_LOG2
        )
    decay, x = tl.associative_scan((decay, x), 0, combine)
    # A masked store picks the last place without a sum, which a NaN elsewhere in the chunk would spoil.
    place = chunk + tl.zeros_like(i)
    tl.store(decay_ptr + place, decay, mask=i == CHUNK - 1)
    tl.store(carry_ptr + place, x, mask=i == CHUNK - 1)


@triton.jit(do_not_specialize=["num_chunks"])
def carry_kernel(decay_ptr, carry_ptr, out_ptr, num_chunks, ACC: tl.constexpr, CHUNK: tl.constexpr):
    """out [chunks] = the scan's value at the end of each chunk. One program; the value between its blocks goes through `out`."""
    i = tl.arange(0, CHUNK)
    start = tl.zeros((), tl.int64)
    while start < num_chunks:
        chunk = start + i
        mask = chunk < num_chunks
        decay = tl.load(decay_ptr + chunk, mask=mask, other=1.0)
        x = tl.load(carry_ptr + chunk, mask=mask, other=0.0)
        decay, x = tl.associative_scan((decay, x), 0, combine)
        incoming = tl.load(out_ptr + (start - 1), mask=start > 0, other=0.0)
        tl.store(out_ptr + chunk, tl.where(decay == 0, x, x + decay * incoming), mask=mask)
        tl.debug_barrier()  # The next block reads what another thread wrote.
        start += CHUNK


@triton.jit(do_not_specialize=["num", "num_offsets", "shift"])
def apply_kernel(
    a_ptr,
    b_ptr,
    bootstrap_ptr,
    cu_seqlens_ptr,
    carry_ptr,
    out_ptr,
    return_ptr,
    num,
    num_offsets,
    shift,
    gamma_high,
    gamma_low,
    lam_high,
    lam_low,
    ACC: tl.constexpr,
    BACKWARD: tl.constexpr,
    HAS_BOOTSTRAP: tl.constexpr,
    CHUNK: tl.constexpr,
    WAYS_LOG2: tl.constexpr,
):
    """out [T] = the scan with the carry of the chunk before; forward, return [T] = out + values as well."""
    gamma = joined(gamma_high, gamma_low, ACC)
    lam = joined(lam_high, lam_low, ACC)
    chunk = tl.program_id(0).to(tl.int64)
    start = chunk * CHUNK
    s = start + strided(CHUNK)
    if BACKWARD:
        decay, x = gradient_step(a_ptr, b_ptr, cu_seqlens_ptr, start, num, num_offsets, shift, gamma, lam, ACC, CHUNK, WAYS_LOG2)
    else:
        decay, x, value = advantage_step(
            a_ptr, b_ptr, bootstrap_ptr, cu_seqlens_ptr, start, num, num_offsets, shift, gamma, lam, ACC, HAS_BOOTSTRAP, CHUNK, WAYS_LOG2
        )
    decay, x = tl.associative_scan((decay, x), 0, combine)
    incoming = tl.load(carry_ptr + (chunk - 1), mask=chunk > 0, other=0.0)
    x = tl.where(decay == 0, x, x + decay * incoming)
    if BACKWARD:
        tl.store(out_ptr + s, x, mask=s < num)
    else:
        tl.store(out_ptr + (num - 1 - s), x, mask=s < num)
        tl.store(return_ptr + (num - 1 - s), x + value, mask=s < num)


@triton.jit(do_not_specialize=["num", "num_offsets", "shift"])
def value_gradient_kernel(
    grad_delta_ptr,
    grad_return_ptr,
    cu_seqlens_ptr,
    grad_value_ptr,
    grad_bootstrap_ptr,
    num,
    num_offsets,
    shift,
    gamma_high,
    gamma_low,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    WAYS_LOG2: tl.constexpr,
):
    """With g = grad_delta: grad_value [T] = gamma·g_{t-1} - g_t + grad_return_t, grad_bootstrap [S] = gamma·g at the sequence's end."""
    gamma = joined(gamma_high, gamma_low, ACC)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    t = start + strided(BLOCK)
    mask = t < num
    sequence = segment_of_each(cu_seqlens_ptr, num_offsets, t, start, start + BLOCK, shift, WAYS_LOG2)
    begin = tl.load(cu_seqlens_ptr + sequence, mask=mask, other=0).to(tl.int64)
    previous = tl.load(grad_delta_ptr + (t - 1), mask=mask & (t > begin), other=0)
    grad_return = tl.load(grad_return_ptr + t, mask=mask, other=0).to(ACC)
    tl.store(grad_value_ptr + t, scaled(gamma, previous) - tl.load(grad_delta_ptr + t, mask=mask, other=0) + grad_return, mask=mask)
    if start < num_offsets - 1:
        s = t
        is_sequence = s < num_offsets - 1
        begin = tl.load(cu_seqlens_ptr + s, mask=is_sequence, other=0).to(tl.int64)
        end = tl.load(cu_seqlens_ptr + (s + 1), mask=is_sequence, other=0).to(tl.int64)
        at_end = tl.load(grad_delta_ptr + (end - 1), mask=is_sequence & (end > begin), other=0)
        tl.store(grad_bootstrap_ptr + s, scaled(gamma, at_end), mask=is_sequence)


def packed_gae_forward(
    reward: Tensor, value: Tensor, cu_seqlens: Tensor, gamma: float, lam: float, bootstrap_value: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Advantages and returns [T]."""
    dtype = accumulate_dtype(reward, value, bootstrap_value)
    advantages, returns = (torch.empty(reward.shape, dtype=dtype, device=reward.device) for _ in range(2))
    bootstrap = None if bootstrap_value is None else aligned(bootstrap_value)
    _scan(reward, value, bootstrap, cu_seqlens, gamma, lam, advantages, returns, backward=False)
    return advantages, returns


def packed_gae_backward(
    grad_advantage: Tensor, grad_return: Tensor, cu_seqlens: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of reward [T], value [T], bootstrap_value [S]."""
    num, dtype, device, cu_seqlens = grad_advantage.numel(), grad_advantage.dtype, grad_advantage.device, aligned(cu_seqlens)
    grad_return = aligned(grad_return)
    grad_delta, grad_value = (torch.empty(num, dtype=dtype, device=device) for _ in range(2))
    grad_bootstrap = torch.empty(cu_seqlens.numel() - 1, dtype=dtype, device=device)
    _scan(grad_advantage, grad_return, None, cu_seqlens, gamma, lam, grad_delta, None, backward=True)
    blocks = blocks_of(max(num, grad_bootstrap.numel()), CHUNK)
    if blocks:
        with device_of(grad_delta):
            value_gradient_kernel[(blocks,)](
                grad_delta,
                grad_return,
                cu_seqlens,
                grad_value,
                grad_bootstrap,
                num,
                cu_seqlens.numel(),
                search_shift(cu_seqlens.numel()),
                *split_float(gamma),
                ACC=acc_type(dtype),
                BLOCK=CHUNK,
                WAYS_LOG2=WAYS_LOG2,
                num_warps=num_warps(),
            )
    return grad_delta, grad_value, grad_bootstrap


def _scan(
    a: Tensor,
    b: Tensor,
    bootstrap: Tensor | None,
    cu_seqlens: Tensor,
    gamma: float,
    lam: float,
    out: Tensor,
    returns: Tensor | None,
    *,
    backward: bool,
) -> None:
    num, a, b, cu_seqlens = a.numel(), aligned(a), aligned(b), aligned(cu_seqlens)
    if num == 0:
        return
    num_chunks = blocks_of(num, CHUNK)
    sizes = (num, cu_seqlens.numel(), search_shift(cu_seqlens.numel()), *split_float(gamma), *split_float(lam))
    constants = {
        "ACC": acc_type(out.dtype),
        "BACKWARD": backward,
        "HAS_BOOTSTRAP": bootstrap is not None,
        "CHUNK": CHUNK,
        "WAYS_LOG2": WAYS_LOG2,
        "num_warps": num_warps(),
    }
    # Rows of one tensor would be aligned for some counts only, and each alignment is a compilation of its own.
    decay, carry, incoming = (torch.empty(num_chunks, dtype=out.dtype, device=out.device) for _ in range(3))
    with device_of(out):
        if num_chunks > 1:
            chunk_kernel[(num_chunks,)](a, b, bootstrap, cu_seqlens, decay, carry, *sizes, **constants)
            carry_kernel[(1,)](decay, carry, incoming, num_chunks, ACC=constants["ACC"], CHUNK=CHUNK, num_warps=num_warps())
        apply_kernel[(num_chunks,)](a, b, bootstrap, cu_seqlens, incoming, out, returns, *sizes, **constants)
