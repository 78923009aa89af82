"""Every configuration of the segment_softmax kernels."""

from __future__ import annotations

from collections.abc import Iterator

from ..compile_case import ACC, DTYPES, INDEX, CompileCase
from . import kernels as k

__all__ = ["cases"]


def cases() -> Iterator[CompileCase]:
    """Dtypes x numbers of heads, one for each block of heads. Segments begin anywhere, so nothing is aligned."""
    for dtype in DTYPES:
        for num_heads in (1, 16):
            constants = {"ACC": ACC[dtype], **k.softmax_config(num_heads)}
            label, data, cu_seqlens = f"{dtype} H={num_heads}", f"*{dtype}", f"*{INDEX[dtype]}"
            forward = {"score_ptr": data, "cu_seqlens_ptr": cu_seqlens, "out_ptr": data}
            yield CompileCase(
                kernel=k.segment_softmax_kernel, label=label, signature=forward, constants=constants, num_threads=k.NUM_THREADS
            )
            backward = {"grad_ptr": data, "weight_ptr": data, "cu_seqlens_ptr": cu_seqlens, "out_ptr": data}
            yield CompileCase(
                kernel=k.segment_softmax_backward_kernel, label=label, signature=backward, constants=constants, num_threads=k.NUM_THREADS
            )
