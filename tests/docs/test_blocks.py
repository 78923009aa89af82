"""Every Python block of README.md and docs/ runs, and in docs/tutorials every shell block too: in order, as a reader would paste them.

A block that cannot run here has `<!-- skip: next "why" -->` above it, and is listed among the tests that were skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Document, Example, Lexeme
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if "```python" in page.read_text(encoding="utf-8")]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
MARKED = [
    pytest.param(reason.strip().strip('"'), id=f"{page.relative_to(ROOT)}-{number}")
    for page in sorted({*PAGES, *TUTORIALS})
    for number, reason in enumerate(re.findall(r"^<!-- skip: next(.*?)-->$", page.read_text(encoding="utf-8"), re.MULTILINE))
]


def run_page(page: Path, server: str, *, shell: bool = False) -> None:
    """Run the blocks of a page in one namespace; the server that they know as localhost:8000 is `server`."""

    def with_server(example: Example) -> Lexeme:
        code = example.parsed
        return Lexeme(code.replace("localhost:8000", server), code.offset, code.line_offset)

    def run_python(example: Example) -> None:
        example.parsed = with_server(example)
        PythonEvaluator()(example)

    def run_shell(example: Example) -> None:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", with_server(example)], capture_output=True, text=True)
        assert done.returncode == 0, f"{page.name}:{example.line}: {done.stdout}{done.stderr}"

    parsers = [CodeBlockParser("python", run_python), SkipParser(), *([CodeBlockParser("bash", run_shell)] if shell else [])]
    for example in Document.parse(str(page), *parsers):
        try:
            example.evaluate()
        except SkipTest:
            continue


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TUTORIALS], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, reader: Path, server: str) -> None:
    if 'output_dir="outputs/reward"' in page.read_text(encoding="utf-8"):
        # It trains what other pages load, and would not replace it.
        shutil.rmtree(reader / "outputs" / "reward")
    run_page(page, server)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs(page: Path, reader: Path, server: str, commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    run_page(page, server, shell=True)


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


def test_a_command_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```bash\ntrue\nfalse | cat\ntrue\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:3"):
        run_page(page, "", shell=True)
