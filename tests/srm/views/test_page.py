"""What stands in the file: the data, escaped, one script, no address of another machine. test_html_browser.py looks at the page."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import srm.views.page as html
from srm.scoring.results import ScoredResponse
from srm.views.notebook import response_html
from srm.views.page import ReportPair, write_html

Scored = Callable[..., ScoredResponse]
HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> \"'& \u2028 $title ${data} \U0001f40d"


class Page(HTMLParser):
    """Start tags with their attributes, and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in self.texts and self.lasttag == self.tags[-1][0]:
            self.texts[self.lasttag][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(("/" + tag, {}))

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.texts["script"][0])


def pair(make_scored: Scored, **changes: Any) -> ReportPair:
    fields: dict[str, Any] = {
        "id": "p-1",
        "section": "Chat",
        "subset": "easy",
        "prompt": "Where is Paris?",
        "chosen": make_scored(("It is in France. ", 0.5, 0.4), ("It is large.\n", 1.5, 0.6)),
        "rejected": make_scored(("It is in Spain. ", -2.0, 0.7), ("It is large.", 0.25, 0.3)),
    }
    return ReportPair(**fields | changes)


def write(path: Path, *pairs: ReportPair, title: str = "T", **more: Any) -> Page:
    write_html(path, pairs, title=title, **more)
    return Page(path.read_text(encoding="utf-8"))


def test_data_come_back_as_they_were(make_scored: Scored, tmp_path: Path) -> None:
    tables = [("Accuracy", ["subset", "accuracy"], [["easy", 0.123456], ["all", 12]])]
    page = write(tmp_path / "new" / "page.html", pair(make_scored), tables=tables, plots=[("Plot", "A line", b"\x89PNG", "image/png")])
    (found,) = page.data["pairs"]
    assert (found["id"], found["section"], found["subset"], found["prompt"]) == ("p-1", "Chat", "easy", [["", "Where is Paris?"]])
    assert found["margin"] == pytest.approx(0.5 * 0.4 + 1.5 * 0.6 - (-2.0 * 0.7 + 0.25 * 0.3))
    assert found["length"] == 17 + 13 + 16 + 12
    assert [response["name"] for response in found["responses"]] == ["chosen", "rejected"]
    # White space behind a sentence is not shown.
    assert found["responses"][0]["sentences"] == [[0.5, 0.4, [["It is in France.", ""]]], [1.5, 0.6, [["It is large.", ""]]]]
    assert found["responses"][0]["prompt_reward"] == 0.1
    assert page.data["tables"] == [{"title": "Accuracy", "columns": ["subset", "accuracy"], "rows": [["easy", "0.1235"], ["all", "12"]]}]
    assert page.data["plots"] == [{"title": "Plot", "alt": "A line", "source": "data:image/png;base64,iVBORw=="}]


def test_hostile_text_stays_text(make_scored: Scored, tmp_path: Path) -> None:
    hostile = pair(
        make_scored,
        id=HOSTILE,
        section=HOSTILE,
        subset=HOSTILE,
        prompt=[{"role": HOSTILE, "content": HOSTILE}],
        rejected=make_scored((HOSTILE, -1.0, 1.0)),
        marked=[{"start": 0, "end": 3, "kind": HOSTILE}],
    )
    more = {"tables": [(HOSTILE, [HOSTILE], [[HOSTILE]])], "plots": [(HOSTILE, HOSTILE, HOSTILE.encode(), "image/svg+xml")]}
    page = write(tmp_path / "page.html", hostile, title=HOSTILE, **more)
    tame = write(tmp_path / "tame.html", pair(make_scored))
    # The same tags in the same order as a page without hostile text: nothing broke out.
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in tame.tags]
    assert len(page.texts["script"]) == 2
    (found,) = page.data["pairs"]
    assert found["prompt"] == [[HOSTILE, HOSTILE]]
    assert "".join(text for text, _ in found["responses"][1]["sentences"][0][2]) == HOSTILE
    assert page.data["tables"][0]["title"] == HOSTILE
    assert "alert(1)" not in page.texts["script"][1]


def test_nothing_is_loaded_from_elsewhere(make_scored: Scored, tmp_path: Path) -> None:
    page = write(tmp_path / "page.html", pair(make_scored))
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "action", "srcset")]
    assert links
    assert all(link is not None and link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?:", page.texts["style"][0] + page.texts["script"][1])


def test_the_policy_allows_our_script_and_style_alone(make_scored: Scored, tmp_path: Path) -> None:
    page = write(tmp_path / "page.html", pair(make_scored))
    (policy,) = (attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes)
    for text, directive in ((page.texts["script"][1], "script-src"), (page.texts["style"][0], "style-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_script_makes_no_markup_from_text() -> None:
    script = Path(html.__file__).with_name("report.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|setHTML", script)


def test_marks_cut_sentences_into_parts(make_scored: Scored, tmp_path: Path) -> None:
    # A snake is one character in Python and two in JavaScript: offsets must be used before the text leaves Python.
    rejected = make_scored(("\U0001f40d is wrong. ", -1.0, 0.5), ("So is it.  ", -2.0, 0.5), ("Fine.", 1.0, 0.1))
    marked = [
        {"start": 2, "end": 10, "kind": "wrong_fact"},
        {"start": 5, "end": 14, "kind": "rude"},
        {"start": 12, "end": 14, "kind": "rude"},
        # White space behind a sentence alone.
        {"start": 21, "end": 23, "kind": "unseen"},
    ]
    page = write(tmp_path / "page.html", pair(make_scored, rejected=rejected, marked=marked))
    chosen, found = page.data["pairs"][0]["responses"]
    assert [parts for _, _, parts in found["sentences"]] == [
        [["\U0001f40d ", ""], ["is ", "wrong fact"], ["wrong", "wrong fact, rude"], [".", "rude"]],
        [["So", "rude"], [" is it.", ""]],
        [["Fine.", ""]],
    ]
    assert all(kinds == "" for _, _, parts in chosen["sentences"] for _, kinds in parts)


def test_single_responses(make_scored: Scored, tmp_path: Path) -> None:
    page = write(tmp_path / "page.html", pair(make_scored, rejected=None, marked=[{"start": 0, "end": 2, "kind": "bad"}]))
    (found,) = page.data["pairs"]
    assert found["margin"] is None
    assert [response["name"] for response in found["responses"]] == ["response"]
    assert found["responses"][0]["sentences"][0][2] == [["It", "bad"], [" is in France.", ""]]


def test_same_input_same_bytes_and_nothing_left_beside_it(make_scored: Scored, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write(tmp_path / name, pair(make_scored), pair(make_scored, id="p-2"))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_no_pairs_is_a_page_too(tmp_path: Path) -> None:
    assert write(tmp_path / "page.html").data == {"tables": [], "plots": [], "pairs": []}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rewards_must_be_finite(make_scored: Scored, tmp_path: Path, value: float) -> None:
    bad = pair(make_scored, rejected=make_scored(("No. ", value, 0.5), reward=0.0))
    with pytest.raises(ValueError, match=r"write_html: the rejected of pair 'p-1' has a reward that is not finite"):
        write_html(tmp_path / "page.html", [bad], title="T")
    assert not (tmp_path / "page.html").exists()


def test_tables_and_plots_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 2 of table 'A' has 1 cells, and there are 2 columns"):
        write_html(tmp_path / "page.html", [], title="T", tables=[("A", ["x", "y"], [[1, 2], [1]])])
    with pytest.raises(ValueError, match=r"plot 'P' must be image/png or image/svg\+xml, got 'text/html'"):
        write_html(tmp_path / "page.html", [], title="T", plots=[("P", "alt", b"", "text/html")])


def test_notebook_view(make_scored: Scored) -> None:
    scored = make_scored((HOSTILE + " ", -2.0, 0.6), ("Plain. ", 0.01, 0.3), ("Good.", 1.5, 0.0))
    assert scored._repr_html_() == response_html(scored)
    # Well formed, so no text became markup.
    table = ElementTree.fromstring(response_html(scored))
    rows = [["".join(cell.itertext()) for cell in row] for row in table.findall("./tbody/tr")]
    assert rows == [["-2.00", "60%", HOSTILE], ["+0.01", "30%", "Plain."], ["+1.50", "0%", "Good."]]
    assert f"{scored.reward:+.2f}" in "".join(table.find("caption").itertext())
    cells = [row[2].get("style") for row in table.findall("./tbody/tr")]
    # A notebook's theme is unknown: where there is a background there is a foreground, and no colour near zero.
    assert "color: inherit" in table.get("style")
    assert ["background: #" in cell and " color: #" in cell for cell in cells] == [True, False, True]
    widths = [float(re.search(r"width: ([\d.]+)em; height", bar.get("style")).group(1)) for bar in table.findall("./tbody/tr/td/span/span")]
    assert widths == [4.0, 2.0, 0.0]


def test_notebook_view_of_nothing(make_scored: Scored) -> None:
    assert ElementTree.fromstring(make_scored(reward=0.5)._repr_html_()).findall("./tbody/tr") == []


def test_a_response_reads_itself_back(make_scored: Scored) -> None:
    scored = make_scored(("One. ", 1.0, 0.5), ("Two.", -1.0, 0.25))
    assert ScoredResponse.from_dict({"id": "x", **json.loads(json.dumps(scored.to_dict()))}) == scored
