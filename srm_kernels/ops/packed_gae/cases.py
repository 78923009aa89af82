"""Every configuration of the packed_gae kernels."""

from __future__ import annotations

from collections.abc import Iterator

from ..compile_case import ACC, ACC_NAME, DTYPES, INDEX, CompileCase
from ..device import WAYS_LOG2
from . import kernels as k

__all__ = ["cases"]

FACTORS = ("gamma_high", "gamma_low", "lam_high", "lam_low")


def cases() -> Iterator[CompileCase]:
    """Dtypes x (with bootstrap values, without, backward). Tokens are read backwards in time, which rules out wide accesses."""
    for dtype in DTYPES:
        yield from _scan_cases(dtype, "bootstrap", backward=False, has_bootstrap=True)
        yield from _scan_cases(dtype, "no bootstrap", backward=False, has_bootstrap=False)
    for dtype in ("fp32", "fp64"):  # Gradients come in the accumulation dtype.
        yield from _scan_cases(dtype, "backward", backward=True, has_bootstrap=False)
        pointers = ("grad_delta_ptr", "grad_return_ptr", "grad_value_ptr", "grad_bootstrap_ptr")
        signature = {
            **dict.fromkeys(pointers, f"*{dtype}"),
            "cu_seqlens_ptr": f"*{INDEX[dtype]}",
            **_sizes(),
            **dict.fromkeys(FACTORS[:2], "fp32"),
        }
        constants = {"ACC": ACC[dtype], "BLOCK": k.CHUNK, "WAYS_LOG2": WAYS_LOG2}
        yield CompileCase(kernel=k.value_gradient_kernel, label=dtype, signature=signature, constants=constants)
        signature = {**dict.fromkeys(("decay_ptr", "carry_ptr", "out_ptr"), f"*{dtype}"), "num_chunks": "i32"}
        constants = {"ACC": ACC[dtype], "CHUNK": k.CHUNK}
        yield CompileCase(kernel=k.carry_kernel, label=dtype, signature=signature, constants=constants)


def _scan_cases(dtype: str, what: str, *, backward: bool, has_bootstrap: bool) -> Iterator[CompileCase]:
    data, wider = f"*{dtype}", f"*{ACC_NAME[dtype]}"
    shared = {
        "a_ptr": data,
        "b_ptr": data,
        "cu_seqlens_ptr": f"*{INDEX[dtype]}",
        "carry_ptr": wider,
        **_sizes(),
        **dict.fromkeys(FACTORS, "fp32"),
    }
    constants = {"ACC": ACC[dtype], "BACKWARD": backward, "HAS_BOOTSTRAP": has_bootstrap, "CHUNK": k.CHUNK, "WAYS_LOG2": WAYS_LOG2}
    if has_bootstrap:
        shared["bootstrap_ptr"] = data
    else:
        constants["bootstrap_ptr"] = None
    label = f"{dtype} {what}"
    yield CompileCase(kernel=k.chunk_kernel, label=label, signature={**shared, "decay_ptr": wider}, constants=constants)
    apply = {**shared, "out_ptr": wider}
    if backward:
        yield CompileCase(kernel=k.apply_kernel, label=label, signature=apply, constants={**constants, "return_ptr": None})
    else:
        yield CompileCase(kernel=k.apply_kernel, label=label, signature={**apply, "return_ptr": wider}, constants=constants)


def _sizes() -> dict[str, str]:
    return dict.fromkeys(("num", "num_offsets", "shift"), "i32")
