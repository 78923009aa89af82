"""The files that the studies of research/claim read."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tiny import save_pairs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder with the four files, of generated pairs: 12 to train on, 24 to test, 16 of a suite in two sections and with marked errors."""
    folder = tmp_path / "data"
    save_pairs(folder)
    return folder
