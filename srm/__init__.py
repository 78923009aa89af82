"""Sentence-level reward models: train, score, evaluate and serve them (arXiv 2503.04793).

Each name is imported when it is first asked for: `Client` needs httpx alone.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from srm.extras import name_the_extra

if TYPE_CHECKING:
    from srm.client import AsyncClient, Client
    from srm.errors import UserError
    from srm.modeling import SentenceRewardConfig, SentenceRewardModel
    from srm.scoring.results import ScoredResponse, ScoredSentence
    from srm_kernels import __version__

__all__ = [
    "AsyncClient",
    "Client",
    "ScoredResponse",
    "ScoredSentence",
    "SentenceRewardConfig",
    "SentenceRewardModel",
    "UserError",
    "__version__",
]

_HOMES = {
    "AsyncClient": "srm.client",
    "Client": "srm.client",
    "ScoredResponse": "srm.scoring.results",
    "ScoredSentence": "srm.scoring.results",
    "SentenceRewardConfig": "srm.modeling",
    "SentenceRewardModel": "srm.modeling",
    "UserError": "srm.errors",
    "__version__": "srm_kernels",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with name_the_extra(f"srm.{name}"):
        value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _register() -> None:
    """`srm.modeling` enters the model into transformers' AutoConfig and AutoModel, so that these load one after `import srm`."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        return
    try:
        import_module("srm.modeling")
    except ImportError as error:
        # Who installed transformers for something else, and only wants the client, must not be stopped.
        logging.getLogger(__name__).warning("transformers' AutoModel will not know the reward model: %s", error)


_register()
