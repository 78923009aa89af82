"""Providers as CUDA graphs: what a call costs the device where the host no longer submits it launch by launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import timing
import torch
from op_cases import Case, Provider
from op_check import Expected, compare, gradients
from torch import Tensor

__all__ = ["capture", "name_of"]

Out = TypeVar("Out")


def name_of(provider: str) -> str:
    """The row of `provider` as a graph."""
    return f"{provider}, CUDA graph"


def capture(provider: Provider, case: Case, expected: Expected, *, required: bool) -> tuple[dict[str, Any], dict[str, timing.Job]]:
    """A graph of the forward pass and one of both; what a replay leaves in outputs that were poisoned before it is verified like any.

    Args:
        required: that it cannot be captured is a failure; otherwise it is left out.

    Returns:
        The record of the provider, and its jobs by mode: none where there is a problem.
    """

    def both() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        outputs = provider.run(**case.floats)
        return outputs, gradients(outputs, case, expected[2])

    try:
        replay_forward, outputs = _captured(lambda: provider.run(**case.floats))
        replay_both, (outputs_too, grads) = _captured(both)
    except Exception as failure:
        # No memory, a wait for the device, or whatever else a capture refuses.
        first = (str(failure).strip().splitlines() or [""])[0]
        return {"problem": f"cannot be captured: {type(failure).__name__}: {first}", "left_out": not required}, {}
    _poison(*outputs, *outputs_too, *grads)
    replay_forward()
    replay_both()
    records = [compare(provider, outputs, None, expected), compare(provider, outputs_too, grads, expected)]
    record = max(records, key=lambda record: record["max_error"])
    if record["problem"]:
        return record, {}
    return record, {"forward": timing.Job(run=lambda _: replay_forward()), "both": timing.Job(run=lambda _: replay_both())}


@torch.no_grad()
def _poison(*tensors: Tensor) -> None:
    for x in tensors:
        x.fill_(torch.nan)


def _captured(run: Callable[[], Out]) -> tuple[Callable[[], None], Out]:
    """What replays `run`, and the tensors that a replay fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # What compiles or asks for workspaces at its first calls must not do so while it is captured.
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs
