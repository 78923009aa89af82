"""A loss that is not a number stops the run, without making the host wait for the device at every step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from srm.errors import UserError

__all__ = ["LossGuard", "require_finite_logs"]

_SELF_HELP = "Lower --learning_rate or --max_grad_norm, look for extreme margins in the data, or use --bf16 instead of --fp16"


class LossGuard:
    """Watches each forward pass's loss. On CUDA the answer comes back while the next steps run, on other devices at once."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event]] = deque()

    def watch(self, loss: Tensor, step: int) -> None:
        """Check `loss` (a scalar) of optimizer step `step`, or queue it, and check those queued whose answer is there.

        Raises:
            UserError: one of them is NaN or infinite.
        """
        if loss.device.type != "cuda":
            _require_finite(loss.item(), step)
            return
        value = torch.empty((), dtype=loss.dtype, pin_memory=True)
        value.copy_(loss.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((step, value, event))
        while self._pending and self._pending[0][2].query():
            self._check_oldest()

    def settle(self) -> None:
        """Wait for what is queued; call before anything is saved.

        Raises:
            UserError: as `watch`.
        """
        while self._pending:
            self._pending[0][2].synchronize()
            self._check_oldest()

    def _check_oldest(self) -> None:
        step, value, _ = self._pending.popleft()
        _require_finite(value.item(), step)


def require_finite_logs(logs: Mapping[str, float], where: str) -> None:
    """Refuse metrics that are NaN or infinite.

    Args:
        logs: by name.
        where: what the message calls the place.

    Raises:
        UserError: one of them is.
    """
    for name, value in logs.items():
        if not math.isfinite(value):
            raise UserError(f"{where}: {name} became {value}. {_SELF_HELP}")


def _require_finite(loss: float, step: int) -> None:
    if loss - loss != 0:
        raise UserError(f"the loss became {loss} at step {step}. {_SELF_HELP}")
