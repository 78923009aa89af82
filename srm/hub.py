"""The Hugging Face hub, asked only where it can be reached.

huggingface_hub tries each file six times, with pauses, and so does what stands on it: a machine without a network is told so after minutes,
or finds what it had in its cache all along. Here one request says whether there is a way to the hub; where there is none, the cache alone
is looked at.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from srm.errors import UserError, first_line

__all__ = ["at_the_hub", "optional_file", "why_no_push", "why_not_there"]

logger = logging.getLogger(__name__)

_PATIENCE = 5.0
# A network that comes back is found again, and the files of one model are one question.
_VALID = 60.0
_OFFLINE = {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}


class _Way:
    """Whether there is a way to the hub: `problem` is None, or says what happened on it, as of `asked`."""

    problem: str | None = None
    asked = float("-inf")


@contextmanager
def at_the_hub(name: str, *, tell: bool = True) -> Iterator[None]:
    """For a block that loads `name` from a folder or the hub: without a way to the hub it sees its cache alone, at once.

    Args:
        name: of a model or a data set.
        tell: log that it came from the cache because there was no way.

    Raises:
        UserError: `name` is a path, and nothing is there.
    """
    from huggingface_hub import constants

    if os.path.exists(name):
        yield
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such folder. Check the path.")
    if constants.HF_HUB_OFFLINE or (problem := _problem()) is None:
        yield
        return
    # `datasets` looked at the first one's when it was imported.
    switches: list[Any] = [constants, *(module.config for kind, module in list(sys.modules.items()) if kind == "datasets")]
    try:
        for switch in switches:
            switch.HF_HUB_OFFLINE = True
        yield
    finally:
        for switch in switches:
            switch.HF_HUB_OFFLINE = False
    if tell:
        logger.warning("%s: read from the hub's cache as it is here, because %s cannot be reached (%s)", name, constants.ENDPOINT, problem)


def why_not_there(name: str, error: BaseException) -> str | None:
    """One sentence with the way out, where `error` means that `name` is neither here nor to be had from the hub; else None.

    Args:
        name: of a model or a data set.
        error: what loading it raised inside of `at_the_hub`, which has ended.
    """
    from huggingface_hub import constants

    kinds = set(_kinds(error))
    if kinds & _OFFLINE:
        missing = f"{name}: not found here or in the hub's cache"
        if constants.HF_HUB_OFFLINE:
            return f"{missing}, and the hub is not asked, because HF_HUB_OFFLINE is set. Unset it, or give a local path."
        problem = _Way.problem or first_line(error)
        return f"{missing}, and {constants.ENDPOINT} cannot be reached: no network ({problem}). Connect, or give a local path."
    if "GatedRepoError" in kinds:
        return f"{name}: gated at {constants.ENDPOINT}. Ask for access on its page there, then log in with `hf auth login`."
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return (
            f"{name}: not found here, and {constants.ENDPOINT} has no such repository, or a private one. Check the name; for a private "
            "one, log in with `hf auth login`."
        )
    return None


def optional_file(name: str, file: str, **hub_arguments: Any) -> str | None:
    """Where a file of a model lies, downloaded if need be; None where the model has none of this name.

    Args:
        name: a folder, or a name on the hub.
        file: its name there.
        **hub_arguments: those of `transformers.utils.cached_file`.

    Raises:
        OSError: nothing can be read under `name`.
        UserError: as `at_the_hub`.
    """
    from transformers.utils import cached_file

    with at_the_hub(name, tell=False):
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub_arguments)


def why_no_push(token: str | None) -> str | None:
    """One sentence with the way out, where nothing can be pushed to the hub from here; else None.

    Args:
        token: of the hub's; the one of `hf auth login` where None.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked, because HF_HUB_OFFLINE is set. Unset it."
    if (problem := _problem()) is not None:
        return f"{constants.ENDPOINT} cannot be reached: no network ({problem}). Connect."
    if not (token or get_token()):
        return "there is no token of the hub's here. Log in with `hf auth login`."
    return None


def _problem() -> str | None:
    """What stands between here and the hub, found by one request."""
    if time.monotonic() - _Way.asked < _VALID:
        return _Way.problem
    from huggingface_hub import constants, get_session

    try:
        # Any answer will do.
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:
        # Names that are not found, refused connections, proxies, certificates: each layer has exceptions of its own.
        _Way.problem = first_line(error)
    else:
        _Way.problem = None
    _Way.asked = time.monotonic()
    return _Way.problem


def _kinds(error: BaseException | None) -> Iterator[str]:
    """The names of the exceptions behind `error`; `datasets` writes one of them out and forgets it."""
    while error is not None:
        yield from (kind.__name__ for kind in type(error).__mro__)
        yield from (kind for kind in _OFFLINE if kind in str(error))
        if "Couldn't find cache for" in str(error):
            yield "LocalEntryNotFoundError"
        error = error.__cause__ or error.__context__
