"""What other packages offer for our ops: FBGEMM's jagged tensors, pyg-lib's and PyTorch Geometric's segments. Left out where they are not.

Shape letters: `N` boundaries, `B` responses, `H` heads, `L` longest response.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LeftOut", "differences", "installed", "softmaxes"]

One = Callable[[Tensor], Tensor]


class LeftOut(Exception):
    """Why a provider is not here."""


def installed(makers: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the makers of the packages at hand give, by name, and the reason of each that gives nothing."""
    made: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except ImportError as error:
            left_out[name] = f"not installed ({error})"
        except (LeftOut, OSError) as error:  # OSError: a library that was built for another release of torch
            left_out[name] = str(error).splitlines()[0]
    return made, left_out


def softmaxes(cu_seqlens: Tensor) -> dict[str, Callable[[], One]]:
    """Softmax over segments of [N] or [N, H], in fp32."""
    longest = int(cu_seqlens.diff().max())

    def fbgemm() -> One:
        op = _fbgemm().jagged_softmax
        return lambda score: op(score.reshape(score.shape[0], -1), cu_seqlens, longest)[0].reshape(score.shape)

    def pyg_lib() -> One:
        import pyg_lib

        kind = cu_seqlens.device.type
        if not torch._C._dispatch_has_kernel_for_dispatch_key("pyg::softmax_csr", kind.upper()):
            raise LeftOut(f"has no kernel for {kind}")
        # Its kernel reads the offsets as int64.
        ptr = cu_seqlens.long()
        return lambda score: pyg_lib.ops.softmax_csr(score, ptr)

    def pyg() -> One:
        from torch_geometric.utils import softmax

        ptr = cu_seqlens.long()
        return lambda score: softmax(score, ptr=ptr)

    return {"FBGEMM jagged_softmax": fbgemm, "pyg-lib softmax_csr": pyg_lib, "PyG softmax": pyg}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """run: value [N] to its output. finish: the output to differences [N]. backward: whether it has one."""

    run: One
    finish: One = lambda output: output
    backward: bool = True


def differences(cu_boundaries: Tensor) -> dict[str, Callable[[], Difference]]:
    """Of each value and the one before it in its response; the first stays."""
    longest = int(cu_boundaries.diff().max())
    offsets = cu_boundaries.long()

    def through_dense() -> Difference:
        ops = _fbgemm()

        def run(value: Tensor) -> Tensor:
            dense_BL = ops.jagged_to_padded_dense(value[:, None], [offsets], [longest], 0.0).squeeze(2)
            before_BL = torch.nn.functional.pad(dense_BL[:, :-1], (1, 0))
            return ops.dense_to_jagged((dense_BL - before_BL)[:, :, None], [offsets], value.shape[0])[0].squeeze(1)

        return Difference(run=run)

    def self_subtraction() -> Difference:
        op = getattr(_fbgemm(), "sll_jagged_self_substraction_jagged_out", None)
        if op is None:
            raise LeftOut("this release has no jagged self-subtraction")
        steps_B = (offsets.diff() - 1).clamp(min=0)
        squares = torch.nn.functional.pad((steps_B * steps_B).cumsum(0), (1, 0))
        # It subtracts every value but the first from every one but the last: ours are its diagonals, with the other sign.
        segment, step = _within(steps_B)
        diagonal, place = squares[segment] + step * (steps_B[segment] + 1), offsets[segment] + step + 1
        first = offsets[:-1][offsets.diff() > 0]
        kept: list[Tensor] = []

        def run(value: Tensor) -> Tensor:
            kept[:] = [value.detach()]
            return op(value.detach(), offsets, squares, longest)

        def finish(output: Tensor) -> Tensor:
            (value,) = kept
            found = torch.empty_like(value)
            found[first], found[place] = value[first], -output[diagonal]
            return found

        return Difference(run=run, finish=finish, backward=False)

    return {"FBGEMM, dense and back": through_dense, "FBGEMM jagged self-subtraction": self_subtraction}


def _within(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Of each element of segments of `lengths`, its segment and its place in it."""
    segment = torch.repeat_interleave(lengths)
    return segment, torch.arange(segment.numel(), device=lengths.device) - (lengths.cumsum(0) - lengths)[segment]


def _fbgemm() -> Any:
    with _quiet():
        import fbgemm_gpu
        import fbgemm_gpu.sll  # noqa: F401
    return torch.ops.fbgemm


@contextmanager
def _quiet() -> Iterator[None]:
    """FBGEMM warns once a module that it does not know this torch; whether it is right is checked before it is timed."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
