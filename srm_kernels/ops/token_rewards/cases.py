"""Every configuration of the token_rewards kernels."""

from __future__ import annotations

from collections.abc import Iterator

from ..compile_case import ACC, ACC_NAME, DTYPES, INDEX, CompileCase
from ..device import NUM_THREADS, WAYS_LOG2
from . import kernels as k
from .reference import ESTIMATORS

__all__ = ["cases"]


def cases() -> Iterator[CompileCase]:
    """Dtypes x estimators. The mask is a count that is not specialised on, which rules out wide accesses."""
    for dtype in DTYPES:
        for code, estimator in enumerate(ESTIMATORS):
            data, wider, index = f"*{dtype}", f"*{ACC_NAME[dtype]}", f"*{INDEX[dtype]}"
            constants = {"ACC": ACC[dtype], "ESTIMATOR": code, "BLOCK": k.BLOCK, "WAYS_LOG2": WAYS_LOG2}
            shared = {"cu_boundaries_ptr": index, "logprob_ptr": data, "ref_logprob_ptr": data, "kl_high": "fp32", "kl_low": "fp32"}
            shared |= dict.fromkeys(("num", "num_offsets", "num_tokens", "shift"), "i32")
            forward = {**shared, "reward_ptr": data, "sorted_ptr": "*i32", "order_ptr": "*i64", "out_ptr": wider, "earned_ptr": wider}
            label = f"{dtype} {estimator}"
            yield CompileCase(kernel=k.token_rewards_kernel, label=label, signature=forward, constants={**constants, "LANES": NUM_THREADS})
            backward = {**shared, "grad_ptr": wider, "boundary_ptr": index}
            backward |= dict.fromkeys(("grad_reward_ptr", "grad_logprob_ptr", "grad_ref_logprob_ptr"), data)
            yield CompileCase(kernel=k.token_rewards_backward_kernel, label=label, signature=backward, constants=constants)
