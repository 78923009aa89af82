"""Every configuration of the bradley_terry_loss kernel."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from ..compile_case import ACC, ACC_NAME, DTYPES, INDEX, CompileCase
from . import kernels as k

__all__ = ["cases"]


def cases() -> Iterator[CompileCase]:
    """Dtypes, with and without margin and weight. Rewards are read at random, so nothing is wide."""
    for dtype in DTYPES:
        wider = f"*{ACC_NAME[dtype]}"
        for has_margin, has_weight in product((False, True), repeat=2):
            signature = {"reward_ptr": f"*{dtype}", "pair_ptr": f"*{INDEX[dtype]}", "loss_ptr": wider, "grad_ptr": wider}
            signature |= {"num_rewards": "i32", "num_pairs": "i32"}
            signature |= dict.fromkeys(("smoothing_high", "smoothing_low", "centering_high", "centering_low"), "fp32")
            constants = {"ACC": ACC[dtype], "HAS_MARGIN": has_margin, "HAS_WEIGHT": has_weight}
            constants |= {"BLOCK_B": k.BLOCK_B, "BLOCK_P": k.BLOCK_P, "TILE_P": k.TILE_P}
            for name, kind, given in (("margin_ptr", wider, has_margin), ("weight_ptr", "*fp32", has_weight)):
                if given:
                    signature[name] = kind
                else:
                    constants[name] = None
            yield CompileCase(
                kernel=k.bradley_terry_kernel,
                label=f"{dtype}{' margin' if has_margin else ''}{' weight' if has_weight else ''}",
                signature=signature,
                constants=constants,
            )
