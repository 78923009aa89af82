"""examples/sentence_rewards.ipynb runs, and its outputs are those of its code, up to numbers and colours.

After a change: jupyter execute --inplace --NotebookClient.record_timing=False examples/sentence_rewards.ipynb
"""

from __future__ import annotations

import copy
import html
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed; it is in the extra `dev`")

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "sentence_rewards.ipynb"


def words(output: str) -> str:
    """The words of a text, a page or a picture: no markup, no numbers, no bars."""
    text = re.sub(r"<style>.*?</style>|<[^>]*>", "", output, flags=re.DOTALL)
    return re.sub(r"[\d.,+%█▏▎▍▌▋▊▉\s-]", "", html.unescape(text))


def shown(notebook: Any) -> list[list[tuple[str, str]]]:
    """Of each cell with code, the kinds of its outputs and their words. How printed text is cut into messages is chance."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            printed: dict[str, str] = {}
            rich: list[tuple[str, str]] = []
            for output in cell.outputs:
                if output.output_type == "stream":
                    printed[output.name] = printed.get(output.name, "") + output.text
                rich += [(kind, words(text)) for kind, text in output.get("data", {}).items() if kind != "text/plain"]
            cells.append([(name, words(text)) for name, text in printed.items()] + rich)
    return cells


@pytest.mark.slow
def test_outputs_are_those_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    committed = nbformat.read(NOTEBOOK, as_version=4)
    fresh = copy.deepcopy(committed)
    NotebookClient(fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    before, now = shown(committed), shown(fresh)
    assert now == before
    kinds = [kind for outputs in before for kind, _ in outputs]
    assert kinds.count("text/html") == 3
    assert kinds.count("image/svg+xml") == 1
    assert "stderr" not in kinds


def test_the_rude_sentences_are_the_lowest() -> None:
    """What a reader sees first must be right: of the marked pair's rejected answer, and of the last cell's."""
    committed = nbformat.read(NOTEBOOK, as_version=4)
    outputs = [output for cell in committed.cells for output in cell.get("outputs", ())]
    tables = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", ())]
    _, rejected, own = (re.findall(r">([+-][\d.]+)</td>.*?pre-wrap;[^>]*>([^<]*)</td>", table) for table in tables)
    assert {text for _, text in sorted(rejected, key=lambda row: float(row[0]))[:2]} == {
        "Nobody asked for your opinion, you arrogant brat.",
        "I hate talking to dull people like you, so be quiet now.",
    }
    assert min(own, key=lambda row: float(row[0]))[1] == "Wait eight minutes, you useless fool."
