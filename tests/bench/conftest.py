"""How the tests import a script of bench/."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def bench() -> Path:
    """The folder of the scripts."""
    return Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def load(bench: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """load("throughput"): the script as a module, its neighbours importable as they are when it runs."""
    monkeypatch.syspath_prepend(str(bench))

    def load(name: str) -> Any:
        module = importlib.import_module(name)
        gc.freeze()  # or each batch that is measured would look for garbage among all imports
        return module

    return load
