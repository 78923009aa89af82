"""Every configuration of the sentence_reward_head kernels."""

from __future__ import annotations

from collections.abc import Iterator

from ..compile_case import INDEX, CompileCase
from ..gather_boundaries.cases import STRIDES, UNALIGNED, WIDTHS
from . import kernels as k

__all__ = ["cases"]

# Without, and with.
ATTENTION = (0, 256)
PARAMETERS = tuple(f"{of}_{kind}_ptr" for of in ("value", "query", "key") for kind in ("weight", "bias"))


def cases() -> Iterator[CompileCase]:
    """Hidden is bf16 throughout; dtypes of the weights x attention x hidden sizes."""
    for dtype in ("fp32", "bf16"):
        for attention in ATTENTION:
            for width in (*WIDTHS, *STRIDES):
                yield _operands(dtype, width, attention)
            for width in UNALIGNED:
                yield _operands(dtype, width, attention, unaligned=True)
            for width in WIDTHS:
                yield _weight_gradients(dtype, width, attention)
    for attention in ATTENTION:
        yield _outputs(attention)
        for has_value in (False, True):
            for wanted in ("rows", "weights", "rows and weights"):
                yield from (_split_gradients(attention, has_value, wanted, index) for index in ("i32", "i64"))


def _parameters(dtype: str, attention: int) -> tuple[dict[str, str], dict[str, None]]:
    """Signature and constants."""
    used = PARAMETERS if attention else PARAMETERS[:2]
    return dict.fromkeys(used, f"*{dtype}"), dict.fromkeys(set(PARAMETERS) - set(used))


def _operands(dtype: str, width: int, attention: int, *, unaligned: bool = False) -> CompileCase:
    parameters, missing = _parameters(dtype, attention)
    signature = {"hidden_ptr": "*bf16", "boundaries_ptr": f"*{INDEX[dtype]}", "cu_boundaries_ptr": f"*{INDEX[dtype]}", **parameters}
    signature |= {"row_ptr": "*bf16", "term_ptr": "*bf16", "num": "i32", "num_responses": "i32"}
    constants = {**missing, **k.tile_config(width, not unaligned), **k.Columns.of(attention)._asdict()}
    if width == 1:  # Triton makes an integer argument of 1 a constant.
        constants["stride"] = 1
    else:
        signature["stride"] = "i32"
    return CompileCase(
        kernel=k.operands_kernel,
        label=f"bf16, {dtype} weights D={width} A={attention}{' unaligned' if unaligned else ''}",
        signature=signature,
        constants=constants,
        divisible=("stride",) if width % 16 == 0 else (),
        unaligned=("hidden_ptr",) if unaligned else (),
        wide_load=width % 16 == 0 and not unaligned,
        wide_store=constants["ROWS"] > 1,
    )


def _outputs(attention: int) -> CompileCase:
    signature, constants = {"of_rows_ptr": "*fp32", "value_ptr": "*fp32"}, k.Columns.of(attention)._asdict() | k.OUTPUTS_TILE
    of_attention = ("of_last_ptr", "query_ptr", "key_ptr")
    if attention:
        signature |= dict.fromkeys(of_attention, "*fp32")
    else:
        constants |= dict.fromkeys(of_attention)
    return CompileCase(
        kernel=k.outputs_kernel,
        label=f"A={attention}",
        signature={**signature, "num": "i32", "num_responses": "i32"},
        constants=constants,
    )


def _split_gradients(attention: int, has_value: bool, wanted: str, index: str) -> CompileCase:
    present = {"grad_value_ptr": "*fp32", "positions_ptr": f"*{index}", "indices_ptr": "*i64", "cu_boundaries_ptr": f"*{index}"}
    absent = []
    for name, kind, is_there in (
        ("flowing_value_ptr", "*fp32", has_value),
        ("grad_query_ptr", "*fp32", attention > 0),
        ("grad_key_ptr", "*fp32", attention > 0),
        ("for_rows_ptr", "*bf16", "rows" in wanted),
        ("for_weights_ptr", "*bf16", "weights" in wanted),
    ):
        if is_there:
            present[name] = kind
        else:
            absent.append(name)
    return CompileCase(
        kernel=k.split_gradients_kernel,
        label=f"A={attention} for {wanted}{', values too' if has_value else ''}",
        signature={**present, "num": "i32", "num_responses": "i32"},
        constants={**dict.fromkeys(absent), **k.Columns.of(attention)._asdict(), "BLOCK_A": k.BLOCK},
    )


def _weight_gradients(dtype: str, width: int, attention: int) -> CompileCase:
    parameters, missing = _parameters(dtype, attention)
    return CompileCase(
        kernel=k.weight_gradients_kernel,
        label=f"{dtype} weights D={width} A={attention}",
        signature={"term_ptr": "*fp32", **parameters},
        constants={**missing, **k.tile_config(width, True), **k.Columns.of(attention)._asdict()},
        wide_load=True,
    )
