"""What a file in examples/ begins with: the command that runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sh", ".yaml", ".ipynb"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(EXAMPLES).as_posix())
def test_a_file_opens_with_its_command(path: Path) -> None:
    name = re.escape(path.relative_to(EXAMPLES.parent).as_posix())
    # As many lines as a reader sees at once.
    opening = path.read_text(encoding="utf-8").splitlines()[:12]
    assert any(re.search(rf"(python|bash|jupyter lab|accelerate launch|serve run|srm-\w+) (.* )?{name}", line) for line in opening)
