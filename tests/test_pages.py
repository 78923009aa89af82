"""What the pages point to is there: scripts, modules and results of bench/ and research/, and every file and heading that a link names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "research" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Not the end of a longer path, such as allenai/reward-bench/x.
_PATH = re.compile(r"(?<![\w/-])(?:\.\./)?((?:bench|research)/[\w./-]*\w)")
_MODULE = re.compile(r"python -m ((?:bench|research)\.[a-z_.]*[a-z_])")
_LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def missing(page: Path, text: str) -> Iterator[str]:
    """What `text` of `page` names and the tree does not have."""
    yield from (name for name in _PATH.findall(text) if not (ROOT / name).exists())
    paths = ((name, ROOT / name.replace(".", "/")) for name in _MODULE.findall(text))
    yield from (name for name, path in paths if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()))
    for name, anchor in _LINK.findall(text):
        target = page.parent / name if name else page
        if not target.exists():
            yield name
        elif anchor and anchor not in anchors(text if target == page else target.read_text(encoding="utf-8")):
            yield f"{name}#{anchor}"


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    assert list(missing(page, page.read_text(encoding="utf-8"))) == []


def test_what_is_not_there_is_found() -> None:
    text = "`bench/gone.py`, [x](../bench/results/gone.png), python -m research.gone --json research/gone.json, reward-bench/fine.py"
    text += ", [y](data.md#gone), [z](#gone)"
    assert set(missing(ROOT / "docs" / "results.md", text)) == {
        "bench/gone.py",
        "bench/results/gone.png",
        "../bench/results/gone.png",
        "research.gone",
        "research/gone.json",
        "data.md#gone",
        "#gone",
    }
    there = "`bench/gpu.py`, python -m research.demo, [x](data.md#rows-for-scoring), [y](#here)\n## Here"
    assert list(missing(ROOT / "docs" / "results.md", there)) == []
