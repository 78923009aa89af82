"""One module per kind of packed attention, chosen by what a call needs.

A backend is a module, or an object, with `NAME`, `REASON`, `refuse(need)`, which says why it cannot do the call or gives None, and
`attend(query, key, value, plan, *, scaling, dropout, window, softcap, sinks)`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from srm.errors import UserError
from srm.packing.backends import cascade, flex, sdpa, varlen
from srm.packing.backends.flash import FLASH_2, FLASH_3, FLASH_4
from srm.packing.backends.need import Need

__all__ = ["BACKENDS", "AttentionBackend", "Choice", "Need", "NoBackendError", "choose"]

logger = logging.getLogger(__name__)


class AttentionBackend(Protocol):
    """What the modules of this folder offer: a name, how it computes, why it cannot do a call, and the call itself."""

    @property
    def NAME(self) -> str: ...

    @property
    def REASON(self) -> str: ...

    @property
    def refuse(self) -> Callable[[Need], str | None]: ...

    @property
    def attend(self) -> Callable[..., Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What runs, and what does not. `str()` of it is one line for a log.

    Args:
        backend: the one that runs.
        passed_over: those before it, with why they cannot.
    """

    backend: AttentionBackend
    passed_over: tuple[str, ...]

    def __str__(self) -> str:
        names: dict[str, list[str]] = {}
        for name, reason in (line.split(": ", 1) for line in self.passed_over):
            names.setdefault(reason, []).append(name)
        # On a CPU all that need a GPU have one reason, and their names say nothing.
        groups = [f"{', '.join(same) if len(same) < 3 else f'{len(same)} others'}: {reason}" for reason, same in names.items()]
        why_not = f" (passed over {'; '.join(groups)})" if groups else ""
        return f"{self.backend.NAME}: {self.backend.REASON}{why_not}"


class NoBackendError(Exception):
    """No backend does what an attention call needs. The text gives the reason of each."""


# What should be fastest first, not measured on a GPU yet: who installs a flash_attn made for the GPU at hand wants it.
# SDPA per segment runs everywhere and in every dtype; cascade runs what has sinks, and where it is asked for by name.
BACKENDS: tuple[AttentionBackend, ...] = (FLASH_4, FLASH_3, varlen, FLASH_2, flex, sdpa, cascade)
# Names the one backend that may run.
VARIABLE = "SRM_PACKED_ATTENTION"


def choose(need: Need) -> Choice:
    """The first backend that can do `need`, or the one that the environment variable `SRM_PACKED_ATTENTION` names.

    Each new choice is logged once, with what was passed over.

    Args:
        need: what the call needs.

    Returns:
        The backend, and why none of those before it.

    Raises:
        NoBackendError: none can, or the named one cannot.
        UserError: the variable names no backend.
    """
    return _choose(need, os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=256)
def _choose(need: Need, name: str) -> Choice:
    backends = [backend for backend in BACKENDS if name in ("", backend.NAME)]
    if not backends:
        raise UserError(f"{VARIABLE} must be one of {', '.join(b.NAME for b in BACKENDS)}, or not set, got {name!r}.")
    passed_over: list[str] = []
    for backend in backends:
        reason = backend.refuse(need)
        if reason is None:
            choice = Choice(backend=backend, passed_over=tuple(passed_over))
            logger.info("packed attention in %s on %s: %s", str(need.dtype).removeprefix("torch."), need.device, choice)
            return choice
        passed_over.append(f"{backend.NAME}: {reason}")
    raise NoBackendError("; ".join(passed_over) + (f"; {VARIABLE} allows no other" if name else ""))
