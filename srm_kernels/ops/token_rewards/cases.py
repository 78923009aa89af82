"""Every configuration of the token_rewards kernels."""

from __future__ import annotations

from collections.abc import Iterator

from ..compile_case import ACC, ACC_NAME, DTYPES, INDEX, CompileCase
from ..device import WAYS_LOG2
from . import kernels as k
from .reference import ESTIMATORS

__all__ = ["cases"]


def cases() -> Iterator[CompileCase]:
    """Dtypes x estimators. The mask is a count that is not specialised on, which rules out wide accesses."""
    for dtype in DTYPES:
        for code, estimator in enumerate(ESTIMATORS):
            data, wider, index = f"*{dtype}", f"*{ACC_NAME[dtype]}", f"*{INDEX[dtype]}"
            label, block = f"{dtype} {estimator}", {"BLOCK": k.BLOCK, "WAYS_LOG2": WAYS_LOG2}
            constants = {"ACC": ACC[dtype], "ESTIMATOR": code, **block}
            shared = {"boundary_ptr": index, "cu_boundaries_ptr": index, "logprob_ptr": data, "ref_logprob_ptr": data}
            shared |= {"kl_high": "fp32", "kl_low": "fp32", **dict.fromkeys(("num", "num_offsets", "num_tokens", "shift"), "i32")}
            penalty = {**shared, "payee_ptr": index, "count_ptr": "*i32", "out_ptr": wider}
            yield CompileCase(kernel=k.penalty_kernel, label=label, signature=penalty, constants=constants)
            backward = {**shared, "grad_ptr": wider, **dict.fromkeys(("grad_reward_ptr", "grad_logprob_ptr", "grad_ref_logprob_ptr"), data)}
            yield CompileCase(kernel=k.token_rewards_backward_kernel, label=label, signature=backward, constants=constants)
        pay = {"reward_ptr": data, "payee_ptr": index, "count_ptr": "*i32", "out_ptr": wider, "num": "i32"}
        constants = {"ACC": ACC[dtype], "BLOCK": k.BLOCK, "TILE": k.TILE}
        yield CompileCase(kernel=k.pay_kernel, label=dtype, signature=pay, constants=constants)
