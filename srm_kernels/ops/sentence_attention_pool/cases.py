"""Every configuration of the sentence_attention_pool kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...pooling import ATTENTION_POOLINGS, POOLINGS, Pooling
from ..compile_case import ACC, ACC_NAME, DTYPES, INDEX, ITEMSIZE, CompileCase
from . import kernels as k

__all__ = ["cases"]

LOG2_THETA = math.log2(1e4)
# One for each shape of tile, from 64 rows to one.
WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def cases() -> Iterator[CompileCase]:
    """Dtypes x attention widths; no rotation, odd width; the poolings without attention."""
    for dtype in DTYPES:
        for width in WIDTHS if dtype == "fp64" else (*WIDTHS, 8192):
            yield from _forward(dtype, width, rope=True)
            yield from _backward(dtype, width, rope=True)
            yield from _forward(dtype, width, rope=True, pooling="value_attention")
            yield from _backward(dtype, width, rope=True, of_values=True)
        yield from _forward(dtype, 255, rope=False, include_prompt=False, difference=False)
        yield from _backward(dtype, 255, rope=False, difference=False)
        yield from _forward(dtype, 256, rope=True, include_prompt=False, pooling="value_attention")
        yield from _backward(dtype, 256, rope=True, include_prompt=False, of_values=True)
        for pooling in ("mean", "sum", "last"):
            yield from _forward(dtype, 2, rope=False, pooling=pooling)
        yield from _backward(dtype, 2, rope=False, has_attention=False)


def _constants(dtype: str, width: int, rope: bool) -> dict[str, object]:
    config = k.pool_config(width, ITEMSIZE[ACC_NAME[dtype]])
    return {"ACC": ACC[dtype], "ROPE": rope, "LOG2_THETA": LOG2_THETA if rope else 0.0, **config}


def _label(dtype: str, width: int, *, rope: bool, of_values: bool, include_prompt: bool) -> str:
    of = "" if not of_values else " of values" if include_prompt else " of values, no prompt"
    return f"{dtype} A={width}{' rope' if rope else ''}{of}"


def _forward(
    dtype: str, width: int, *, rope: bool, include_prompt: bool = True, difference: bool = True, pooling: Pooling = "attention"
) -> Iterator[CompileCase]:
    data, wider = f"*{dtype}", f"*{ACC_NAME[dtype]}"
    attends, of_values = pooling in ATTENTION_POOLINGS, pooling == "value_attention"
    constants = _constants(dtype, width, rope)
    constants |= {"INCLUDE_PROMPT": include_prompt, "DIFFERENCE": difference, "POOLING": POOLINGS.index(pooling)}
    signature = {"value_ptr": data, "cu_boundaries_ptr": f"*{INDEX[dtype]}"}
    signature |= {"reward_ptr": wider, "sentence_reward_ptr": wider, "weight_ptr": wider}
    if attends:
        signature |= {"query_ptr": data, "key_ptr": data}
    else:
        constants |= {"query_ptr": None, "key_ptr": None}
    yield CompileCase(
        kernel=k.pool_kernel,
        label=_label(dtype, width, rope=rope, of_values=of_values, include_prompt=include_prompt) if attends else f"{dtype} {pooling}",
        signature=signature,
        constants=constants,
        num_threads=k.pool_threads(k.pool_config(width, ITEMSIZE[ACC_NAME[dtype]])["BLOCK_A"]),
        wide_load=attends and width * ITEMSIZE[dtype] % 16 == 0,
    )


def _backward(
    dtype: str,
    width: int,
    *,
    rope: bool,
    include_prompt: bool = True,
    difference: bool = True,
    has_attention: bool = True,
    of_values: bool = False,
) -> Iterator[CompileCase]:
    data, wider = f"*{dtype}", f"*{ACC_NAME[dtype]}"
    constants = _constants(dtype, width, rope)
    constants |= {"INCLUDE_PROMPT": include_prompt, "DIFFERENCE": difference, "HAS_ATTENTION": has_attention, "OF_VALUES": of_values}
    signature = {f"grad_{name}_ptr": wider for name in ("reward", "sentence_reward", "weight")}
    signature |= {"cu_boundaries_ptr": f"*{INDEX[dtype]}", "sentence_reward_ptr": wider, "weight_ptr": wider, "grad_value_ptr": data}
    attention_pointers = ("query_ptr", "key_ptr", "grad_query_ptr", "grad_key_ptr")
    if has_attention:
        signature |= dict.fromkeys(attention_pointers, data) | {"grad_score_ptr": wider}
    else:
        constants |= dict.fromkeys((*attention_pointers, "grad_score_ptr"))
    yield CompileCase(
        kernel=k.pool_backward_kernel,
        label=_label(dtype, width, rope=rope, of_values=of_values, include_prompt=include_prompt)
        if has_attention
        else f"{dtype} no attention",
        signature=signature,
        constants=constants,
        num_threads=k.pool_threads(k.pool_config(width, ITEMSIZE[ACC_NAME[dtype]])["BLOCK_A"]),
        wide_load=has_attention and width * ITEMSIZE[dtype] % 16 == 0,
        wide_store=has_attention and width * ITEMSIZE[dtype] % 16 == 0,
    )
