"""The names in the table of docs/evaluation.md exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "evaluation.md"


def test_names_exist() -> None:
    rows = re.findall(r"^\| `(srm\.evaluation\.\w+)`[^|]*\| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(rows) >= 8
    for module, names in rows:
        found = importlib.import_module(module)
        for name in re.findall(r"`(\w+)`", names):
            assert name in found.__all__, f"{module} has no {name}"
