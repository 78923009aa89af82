"""Every configuration of the gather_boundaries kernels."""

from __future__ import annotations

from collections.abc import Iterator

from ..compile_case import ACC, ACC_NAME, DTYPES, INDEX, ITEMSIZE, CompileCase
from ..device import WAYS_LOG2
from . import kernels as k

__all__ = ["cases"]


# A hidden size that fills its tiles, one that does not, and one whose rows are not aligned.
WIDTHS = (4096, 576, 4097)
# Where the kernel that reads `hidden` differs by its stride alone: aligned rows whose stride is no multiple of 16, and a stride of 1.
STRIDES = (584, 1)
# The same for a `hidden` that begins in between multiples of 16 bytes.
UNALIGNED = (576, 4097, 1)


def cases() -> Iterator[CompileCase]:
    """Dtypes x widths, for each kernel."""
    for dtype in DTYPES:
        # Of the op's result and so of the gradient that comes back: the head asks for fp32 rows.
        for result in dict.fromkeys((dtype, ACC_NAME[dtype])):
            for width in (*WIDTHS, *STRIDES):
                yield _gather(dtype, result, width)
            for width in UNALIGNED:
                yield _gather(dtype, result, width, unaligned=True)
            for width in WIDTHS:
                yield _scatter(dtype, result, width)


def _gather(dtype: str, result: str, width: int, *, unaligned: bool = False) -> CompileCase:
    signature = {"hidden_ptr": f"*{dtype}", "boundaries_ptr": f"*{INDEX[dtype]}", "out_ptr": f"*{result}", "num": "i32"}
    constants = k.tile_config(width, ITEMSIZE[ACC_NAME[dtype]], not unaligned)
    if width == 1:  # Triton makes an integer argument of 1 a constant.
        constants["stride"] = 1
    else:
        signature["stride"] = "i32"
    return CompileCase(
        kernel=k.gather_rows_kernel,
        label=f"{_label(dtype, result, width)}{' unaligned' if unaligned else ''}",
        signature=signature,
        constants=constants,
        divisible=("stride",) if width % 16 == 0 else (),
        unaligned=("hidden_ptr",) if unaligned else (),
        wide_load=_rows_aligned(dtype, width) and not unaligned and width % 16 == 0,
        wide_store=_rows_aligned(dtype, width),
    )


def _scatter(dtype: str, result: str, width: int) -> CompileCase:
    signature = {"grad_ptr": f"*{result}", "sorted_ptr": "*i32", "order_ptr": "*i64", "grad_hidden_ptr": f"*{dtype}"}
    return CompileCase(
        kernel=k.scatter_rows_kernel,
        label=_label(dtype, result, width),
        signature={**signature, **dict.fromkeys(("num", "num_tokens", "shift"), "i32")},
        constants={"ACC": ACC[dtype], "WAYS_LOG2": WAYS_LOG2, **k.tile_config(width, ITEMSIZE[ACC_NAME[dtype]])},
        wide_load=_rows_aligned(dtype, width),
        wide_store=_rows_aligned(dtype, width),
    )


def _label(dtype: str, result: str, width: int) -> str:
    return f"{dtype if result == dtype else f'{dtype}, {result} rows'} D={width}"


def _rows_aligned(dtype: str, width: int) -> bool:
    return width * ITEMSIZE[dtype] % 16 == 0
