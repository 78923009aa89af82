"""Every Python block of README.md and docs/ runs, those of a page one after the other, as a reader would paste them.

A block that cannot run here has `<!-- skip: next "why" -->` above it, and is listed among the tests that were skipped.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Document, Example, Lexeme
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if "```python" in page.read_text(encoding="utf-8")]
MARKED = [
    pytest.param(reason.strip().strip('"'), id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, reason in enumerate(re.findall(r"^<!-- skip: next(.*?)-->$", page.read_text(encoding="utf-8"), re.MULTILINE))
]


def run_page(page: Path, server: str) -> None:
    """Run the blocks of a page in one namespace; the server that they know as localhost:8000 is `server`."""
    run = PythonEvaluator()

    def evaluate(example: Example) -> None:
        code = example.parsed
        example.parsed = Lexeme(code.replace("localhost:8000", server), code.offset, code.line_offset)
        run(example)

    for example in Document.parse(str(page), CodeBlockParser("python", evaluate), SkipParser()):
        try:
            example.evaluate()
        except SkipTest:
            continue


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, reader: Path, server: str) -> None:
    if 'output_dir="outputs/reward"' in page.read_text(encoding="utf-8"):
        # It trains what other pages load, and would not replace it.
        shutil.rmtree(reader / "outputs" / "reward")
    run_page(page, server)


@pytest.mark.parametrize("reason", MARKED)
def test_a_block_that_does_not_run_says_why(reason: str) -> None:
    assert len(reason.split()) > 1
    pytest.skip(reason)


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('```python\nx = 1\n```\n<!-- skip: next "no time" -->\n```python\nx = 1 / 0\n```\n```python\nassert x == 2\n```\n')
    with pytest.raises(AssertionError) as raised:
        run_page(page, "")
    assert raised.traceback[-1].lineno == 8
