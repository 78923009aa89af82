"""Every configuration of the difference_rewards kernels."""

from __future__ import annotations

from collections.abc import Iterator

from ..compile_case import ACC, DTYPES, INDEX, CompileCase
from ..device import WAYS_LOG2
from . import kernels as k

__all__ = ["cases"]


def cases() -> Iterator[CompileCase]:
    """Dtypes. The mask is a count that is not specialised on, which rules out wide accesses."""
    for dtype in DTYPES:
        data, sizes = f"*{dtype}", {"num": "i32", "num_offsets": "i32", "shift": "i32"}
        constants = {"ACC": ACC[dtype], "BLOCK_N": k.BLOCK_N, "WAYS_LOG2": WAYS_LOG2}
        for kernel, name in ((k.difference_kernel, "value_ptr"), (k.difference_backward_kernel, "grad_ptr")):
            signature = {name: data, "cu_boundaries_ptr": f"*{INDEX[dtype]}", "out_ptr": data, **sizes}
            yield CompileCase(kernel=kernel, label=dtype, signature=signature, constants=constants)
