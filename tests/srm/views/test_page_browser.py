"""The page in a real browser: what a reader sees and does, with mouse and keyboard, light and dark, and how fast."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from srm.scoring.results import ScoredResponse
from srm.views.page import ReportPair, write_html
from tests.browser import chromium

# One dot.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
SIDES = "return [...document.querySelectorAll('.response')].map((part) => part.getBoundingClientRect().toJSON())"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def many(make_scored: Callable[..., ScoredResponse], count: int) -> list[ReportPair]:
    """Pairs whose order by file, subset, margin and length all differ; every fifth is wrong, every fourth marked, one in ten says heron."""
    pairs = []
    for i in range(count):
        margin = -(i % 7) - 1 if i % 5 == 0 else (i * 37) % 101 + 1
        bird = "A Heron  stands\nthere. " if i % 10 == 3 else "A crow sits there. "
        chosen = make_scored((bird, 0.5, 0.3), ("It is calm. " * (1 + (i * 13) % 17), 1.0, 0.5), reward=float(margin))
        rejected = make_scored(("A crow sits there. ", 0.5, 0.3), ("You fool.", -2.0, 0.6), reward=0.0)
        marked = [{"start": 19, "end": 28, "kind": "rude"}] if i % 4 == 0 else []
        pairs.append(
            ReportPair(
                id=f"pair {i}",
                section=("Chat", "Safety")[i % 2],
                subset=("zoo", "arts", "maps")[i % 3],
                prompt=f"Question {i}?",
                chosen=chosen,
                rejected=rejected,
                marked=marked,
            )
        )
    return pairs


class Reader:
    """What tests do with the page, in the words of its reader."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        browser.get(path.as_uri())

    def js(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def set(self, field: str, value: object) -> None:
        self.js(
            """const field = document.getElementById(arguments[0]);
            if (field.type === "checkbox") field.checked = arguments[1];
            else if (field.tagName === "SELECT") field.value = [...field.options].find((o) => o.text === arguments[1]).value;
            else field.value = arguments[1];
            field.dispatchEvent(new Event("input", { bubbles: true }));""",
            field,
            value,
        )

    def press(self, *keys: str) -> None:
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    @property
    def ids(self) -> list[int]:
        return self.js("return [...document.querySelectorAll('#list li')].map((row) => Number(row.id.slice(4)))")

    @property
    def opened(self) -> str:
        return self.text("#detail-title")

    @property
    def count(self) -> str:
        return self.text("#count")

    @property
    def focused(self) -> str:
        return self.js("return document.activeElement.id")

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)


@pytest.fixture(scope="module")
def pairs(make_scored: Callable[..., ScoredResponse]) -> list[ReportPair]:
    return many(make_scored, 60)


@pytest.fixture(scope="module")
def page(pairs: list[ReportPair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    tables = [("By section", ["section", "accuracy"], [["Chat", "81.2%"], ["Safety", "90.0%"]])]
    write_html(path, pairs, title="Sixty pairs", tables=tables, plots=[("Calibration", "A rising line", PNG, "image/png")])
    return path


@pytest.fixture
def reader(browser: Any, page: Path) -> Iterator[Reader]:
    yield Reader(browser, page)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_first_sight(reader: Reader) -> None:
    assert reader.browser.title == reader.text("h1") == "Sixty pairs"
    assert reader.text("#summary") == "60 pairs, 48 ranked rightly (80.0%)"
    assert reader.count == "60 pairs"
    assert reader.ids == list(range(60))
    assert reader.opened == "pair 0"
    assert "wrong: rejected ranked higher, margin \u22121.00" in reader.text("#detail > header")
    assert reader.js("return document.querySelector('#results tbody').textContent") == "Chat81.2%Safety90.0%"
    assert reader.js("const image = document.querySelector('#results img'); return [image.alt, image.naturalWidth]") == ["A rising line", 1]


def test_a_pair_shows_its_sentences(reader: Reader) -> None:
    rows = reader.js(
        """return [...document.querySelectorAll(".response:nth-child(2) tbody tr")].map((row) => ({
            cells: [...row.cells].map((cell) => cell.textContent),
            bar: row.querySelector(".bar").getBoundingClientRect().width,
            filled: parseFloat(getComputedStyle(row.querySelector(".bar"), "::before").width),
            bad: [...row.querySelectorAll(".bad")].map((part) => part.textContent),
        }))"""
    )
    assert [row["cells"] for row in rows] == [["+0.50", "30%", "A crow sits there."], ["\u22122.00", "60%", "You fool. marked: rude"]]
    assert [row["bad"] for row in rows] == [[], ["You fool."]]
    assert [row["filled"] / row["bar"] for row in rows] == pytest.approx([0.5, 1.0], abs=0.02)
    left, right = reader.js(SIDES)
    assert left["top"] == right["top"]
    assert left["right"] < right["left"]


def test_search(reader: Reader, pairs: list[ReportPair]) -> None:
    reader.set("search", "heron stands")
    assert reader.ids == [i for i in range(60) if i % 10 == 3]
    assert reader.count == "6 of 60 pairs"
    assert reader.opened == "pair 3"
    marked = "return [...CSS.highlights.get('found')].map((range) => range.startContainer.data.slice(range.startOffset, range.endOffset))"
    assert reader.js(marked) == ["Heron", "stands"]
    reader.set("search", "question 17?")
    assert reader.ids == [17]
    reader.set("search", "albatross")
    assert reader.ids == []
    assert reader.count == "0 of 60 pairs"
    assert "No pair matches" in reader.opened
    reader.browser.find_element("css selector", "#tools button").click()
    # The page answers a reset a moment later.
    reader.browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert reader.count == "60 pairs"
    assert reader.js("return CSS.highlights.get('found').size") == 0


def test_filters_combine(reader: Reader) -> None:
    reader.set("verdict", "wrong")
    assert reader.ids == list(range(0, 60, 5))
    reader.set("marked", True)
    assert reader.ids == [0, 20, 40]
    reader.set("subset", "maps")
    # `maps` of the section Chat: i % 6 == 2.
    assert reader.ids == [20]
    reader.set("subset", "all of Safety")
    assert reader.ids == []
    reader.set("marked", False)
    assert reader.ids == [5, 15, 25, 35, 45, 55]


def test_orders(reader: Reader, pairs: list[ReportPair]) -> None:
    def margin(i: int) -> float:
        return pairs[i].chosen.reward

    def length(i: int) -> int:
        return sum(len(sentence.text) for sentence in pairs[i].chosen.sentences)

    numbers = range(60)
    orders: dict[str, Callable[[int], Any]] = {
        "Margin, most wrong first": margin,
        "Margin, most right first": lambda i: -margin(i),
        "Margin, closest to zero first": lambda i: abs(margin(i)),
        "Length, longest first": lambda i: -length(i),
        "Length, shortest first": length,
        "Subset": lambda i: (pairs[i].section, pairs[i].subset),
        "as in the file": lambda i: i,
    }
    for name, key in orders.items():
        reader.set("order", name)
        assert reader.ids == sorted(numbers, key=key), name
        assert reader.opened == f"pair {reader.ids[0]}"
    assert reader.js("return document.getElementById('order').length") == len(orders)


def test_keyboard(reader: Reader) -> None:
    from selenium.webdriver.common.keys import Keys

    reader.press("j", "j", "k", "j")
    assert (reader.opened, reader.focused) == ("pair 2", "row-2")
    outline = reader.js("const style = getComputedStyle(document.activeElement); return [style.outlineStyle, style.outlineWidth]")
    assert outline == ["solid", "2px"]
    reader.press(Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ARROW_UP)
    assert reader.opened == "pair 1"
    reader.press(Keys.END)
    assert (reader.opened, reader.focused) == ("pair 59", "row-59")
    inside = "const [a, b] = ['list', 'row-59'].map((id) => document.getElementById(id).getBoundingClientRect());"
    assert reader.js(inside + "return a.top <= b.top && b.bottom <= a.bottom + 1 && b.bottom <= window.innerHeight + 1")
    reader.press("j")
    assert reader.opened == "pair 59"
    reader.press(Keys.HOME, Keys.ENTER)
    assert (reader.opened, reader.focused) == ("pair 0", "detail-title")
    reader.press("/")
    assert reader.focused == "search"
    # In the search these letters are text.
    reader.press("question 7 j")
    assert reader.js("return document.getElementById('search').value") == "question 7 j"
    reader.press(Keys.BACKSPACE, Keys.BACKSPACE, Keys.ESCAPE)
    assert (reader.opened, reader.focused) == ("pair 7", "row-7")


def test_letter_keys_can_be_switched_off(reader: Reader) -> None:
    reader.set("keys", False)
    reader.press("j", "/")
    assert (reader.opened, reader.focused) == ("pair 0", "")


def test_mouse(reader: Reader) -> None:
    reader.browser.find_element("id", "row-3").click()
    assert reader.opened == "pair 3"
    assert reader.js("return [...document.querySelectorAll('#list [aria-selected=true]')].map((row) => row.id)") == ["row-3"]
    assert reader.js("return document.querySelectorAll('#list [tabindex=\"0\"]').length") == 1


def test_what_a_screen_reader_gets(reader: Reader) -> None:
    tree = reader.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"] and "role" in node}
    expected = [
        ("heading", "Sixty pairs"),
        ("heading", "Results"),
        ("heading", "pair 0"),
        ("searchbox", "Search"),
        ("combobox", "Ranking"),
        ("table", "Sentences of the rejected response"),
        ("columnheader", "weight"),
        ("image", "A rising line"),
        ("listbox", "Pairs"),
        # Nothing hangs on colour: the row says wrong, and its margin has a sign.
        ("option", "zoo wrong \u22121.00 Question 0?"),
        ("cell", "\u22122.00"),
    ]
    assert [entry for entry in expected if entry not in found] == []
    assert "status" in {role for role, _ in found}
    levels = reader.js("return [...document.querySelectorAll('h1, h2, h3')].map((heading) => Number(heading.tagName[1]))")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


CONTRAST = """
const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function luminance(colour) {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function paper(node) {
  while (node && getComputedStyle(node).backgroundColor === "rgba(0, 0, 0, 0)") node = node.parentElement;
  return getComputedStyle(node ?? document.body).backgroundColor;
}
const worst = {};
for (const node of document.querySelectorAll("body *")) {
  const text = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  if (!text || !node.checkVisibility() || node.closest("script, .skip")) continue;
  const [a, b] = [luminance(getComputedStyle(node).color), luminance(paper(node))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const name = node.tagName + "." + node.className;
  worst[name] = Math.min(worst[name] ?? 99, contrast);
}
return [luminance(paper(document.body)), worst];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(reader: Reader, scheme: str) -> None:
    reader.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    strengths = """document.querySelectorAll("td.sentence").forEach((cell, i) => {
            cell.style.setProperty("--strength", arguments[0]);
            cell.className = `sentence ${["low", "high"][i % 2]}`;
        });"""
    for strength in (0, 0.25, 0.5, 0.75, 1):
        reader.js(strengths, strength)
        ground, worst = reader.js(CONTRAST)
        assert ground > 0.8 if scheme == "light" else ground < 0.05
        assert {"TD.sentence low", "TD.sentence high", "SPAN.verdict wrong", "SPAN.verdict right", "SPAN.kinds"} <= worst.keys()
        assert {name: contrast for name, contrast in worst.items() if contrast < 4.5} == {}


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_windows_do_not_scroll_sideways(reader: Reader, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    reader.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert reader.js("return document.documentElement.scrollWidth <= window.innerWidth")
    left, right = reader.js(SIDES)
    assert left["bottom"] < right["top"]


def test_no_errors_and_no_requests(browser: Any, page: Path) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    reader = Reader(browser, page)
    reader.set("search", "heron")
    reader.press("j")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_hostile_text_is_only_text(browser: Any, make_scored: Callable[..., ScoredResponse], tmp_path: Path) -> None:
    attack = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"><b>bold</b>"
    scored = make_scored((attack, -1.0, 1.0))
    path = tmp_path / "page.html"
    write_html(
        path,
        [ReportPair(id=attack, section=attack, subset=attack, prompt=attack, chosen=scored, rejected=make_scored(("Fine.", 1.0, 1.0)))],
        title="Safe",
        tables=[(attack, [attack], [[attack]])],
        plots=[(attack, attack, PNG, "image/png")],
    )
    reader = Reader(browser, path)
    assert reader.text("td.sentence") == reader.text(".box p") == reader.text("#detail-title") == attack
    assert reader.js("return document.querySelectorAll('main b').length") == 2, "the two response rewards"
    assert reader.js("return document.images.length") == 1
    assert browser.title == "Safe"
    assert browser.get_log("browser") == []


def test_single_responses(browser: Any, make_scored: Callable[..., ScoredResponse], tmp_path: Path) -> None:
    rewards = [0.5, -1.0, 2.0]
    write_html(
        tmp_path / "page.html",
        [ReportPair(id=f"r{i}", section="", subset="", prompt="?", chosen=make_scored(("Yes.", r, 1.0))) for i, r in enumerate(rewards)],
        title="Responses",
    )
    reader = Reader(browser, tmp_path / "page.html")
    assert reader.count == reader.text("#summary") == "3 responses"
    reader.set("order", "Reward, lowest first")
    assert reader.ids == [1, 0, 2]
    hidden = "return ['results', 'verdict-label', 'marked-label'].map((id) => document.getElementById(id).checkVisibility())"
    assert reader.js(hidden) == [False, False, False]
    assert reader.js("return document.querySelectorAll('.response').length") == 1


def test_two_thousand_pairs_stay_smooth(browser: Any, make_scored: Callable[..., ScoredResponse], tmp_path: Path) -> None:
    """Bounds for a slow core that others use too."""
    write_html(tmp_path / "page.html", many(make_scored, 2000), title="Many")
    reader = Reader(browser, tmp_path / "page.html")
    assert reader.count == "2,000 pairs"
    ready = reader.js(
        "const [page] = performance.getEntriesByType('navigation'); return page.domContentLoadedEventEnd - page.responseStart"
    )
    assert ready < 3000, f"ready after {ready:.0f} ms"
    timed = """const begin = performance.now(); const field = document.getElementById("search");
        field.value = arguments[0]; field.dispatchEvent(new Event("input", { bubbles: true })); document.body.offsetHeight;
        return performance.now() - begin;"""
    for words, count in (("heron", "200 of 2,000 pairs"), ("", "2,000 pairs"), ("crow", "2,000 pairs")):
        took = reader.js(timed, words)
        assert reader.count == count
        assert took < 1000, f"searching {words!r} took {took:.0f} ms"
