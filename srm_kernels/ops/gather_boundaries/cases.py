"""Every configuration of the gather_boundaries kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..compile_case import ACC, ACC_NAME, DTYPES, INDEX, ITEMSIZE, CompileCase
from . import kernels as k

__all__ = ["cases"]


# A hidden size that fills its tiles, one that does not, and one whose rows are not aligned.
WIDTHS = (4096, 576, 4097)
# Where kernels that read `hidden` differ by its stride alone: aligned rows whose stride is no multiple of 16, and a stride of 1.
STRIDES = (584, 1)
# The same for a `hidden` that begins in between multiples of 16 bytes.
UNALIGNED = (576, 4097, 1)


def cases() -> Iterator[CompileCase]:
    """Dtypes x widths, for each kernel."""
    for dtype in DTYPES:
        for width in WIDTHS:
            yield from _width_cases(dtype, width)
        for width in STRIDES:
            yield from (case for case in _width_cases(dtype, width) if "stride" in case.kernel.arg_names)
        for width in UNALIGNED:
            yield from (case for case in _width_cases(dtype, width, "hidden_ptr") if "hidden_ptr" in case.signature)


def _width_cases(dtype: str, width: int, *unaligned: str) -> Iterator[CompileCase]:
    itemsize, acc, acc_name, index = ITEMSIZE[dtype], ACC[dtype], ACC_NAME[dtype], INDEX[dtype]
    data, wider = f"*{dtype}", f"*{acc_name}"
    aligned = width * itemsize % 16 == 0

    def case(kernel: Any, label: str, signature: dict[str, str], constants: dict[str, Any], wide_store: bool = aligned) -> CompileCase:
        has_stride = "stride" in signature
        if has_stride and width == 1:  # Triton makes an integer argument of 1 a constant.
            signature, constants = {name: kind for name, kind in signature.items() if name != "stride"}, {**constants, "stride": 1}
        return CompileCase(
            kernel=kernel,
            label=f"{label} D={width}{' unaligned' if unaligned else ''}",
            signature=signature,
            constants=constants,
            divisible=("stride",) if has_stride and width % 16 == 0 else (),
            unaligned=unaligned,
            wide_load=aligned and not unaligned and (width % 16 == 0 or not has_stride),
            wide_store=wide_store,
        )

    config = k.tile_config(width, ITEMSIZE[acc_name], not unaligned)
    compute = {"ACC": acc, **config}
    search = {"WAYS": k.SEARCH_WAYS, **compute}
    rows = {"hidden_ptr": data, "boundaries_ptr": f"*{index}", "num": "i32", "stride": "i32"}
    scatter = {"grad_hidden_ptr": data, "sorted_ptr": "*i32", "order_ptr": "*i64", "num": "i32", "num_tokens": "i32"}
    norm = {"weight_ptr": data, "rstd_ptr": wider}
    # Of the op's result and so of the gradient that comes back: the head asks for fp32 rows.
    for result in dict.fromkeys((data, wider)):
        label = dtype if result == data else f"{dtype}, {acc_name} rows"
        yield case(k.gather_rows_kernel, label, {**rows, "out_ptr": result}, config)
        yield case(k.gather_norm_kernel, label, {**rows, **norm, "out_ptr": result}, {"EPS": 1e-6, **compute})
        yield case(k.scatter_rows_kernel, label, {**scatter, "grad_ptr": result}, search)
        scatter_norm = {**scatter, **norm, "hidden_ptr": data, "grad_ptr": result, "stride": "i32"}
        yield case(k.scatter_norm_kernel, label, scatter_norm, search)
        partial = {**rows, "grad_ptr": result, "rstd_ptr": wider, "partial_ptr": wider}
        yield case(k.weight_partial_kernel, label, partial, {"CHUNK": k.WEIGHT_CHUNK, **compute}, wide_store=False)
    total = {"partial_ptr": wider, "out_ptr": data, "num_chunks": "i32"}
    yield case(k.weight_total_kernel, dtype, total, compute, wide_store=False)
