"""The documentation site is built offline and without a warning, describes every public name, and loads nothing from elsewhere."""

from __future__ import annotations

import http.server
import importlib
import importlib.util
import json
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium

mkdocs = pytest.importorskip("mkdocs", reason="mkdocs is not installed; it is in the extra `docs`")

ROOT = Path(__file__).resolve().parents[2]
WIDTHS_AND_SCHEMES = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
LOOKED_AT = ["index.html", "training.html", "results.html", "reference/ops.html", "reference/http.html", "gallery/index.html"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the build asks the network: {arguments}")

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


class Tags(HTMLParser):
    """What a page loads by itself, and the ids of its parts."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if "id" in found:
            self.ids.add(found["id"] or "")
        # The canonical address and the neighbours of a page are not loaded.
        if tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(found["href"] or "")
        if tag in ("script", "img", "iframe", "source", "object") and found.get("src"):
            self.loaded.append(found["src"] or "")


def test_every_page_loads_what_lies_beside_it(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        for url in Tags(page).loaded:
            if not url.startswith("data:"):
                # 404.html may be shown at any depth, so its addresses begin at the root of the site.
                local = url.split("?")[0].removeprefix("/srm-kernels/")
                assert (page.parent / local).exists(), f"{page.name} loads {url}"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(.?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.parametrize("name", ["srm", "srm_kernels", "srm.rl", "srm.packing", "srm.training"])
def test_every_public_name_is_in_the_reference(name: str, site: Path) -> None:
    ids = set().union(*(Tags(page).ids for page in (site / "reference").glob("*.html")))
    module = importlib.import_module(name)
    # Parts of signatures and of commands are no objects to look up.
    names = set(module.__all__) - {
        "__version__",
        "LastLayerRows",
        "PackingMode",
        "Placement",
        "RewardKind",
        "ToGo",
        "Whitening",
        "parse_arguments",
    }
    assert {public for public in names if f"{name}.{public}" not in ids} == set()


def test_the_search_finds_words_of_pages_and_of_docstrings(site: Path) -> None:
    found = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    for word in ("truncate_prompt", "group_advantages", "--drain_seconds", "/v1/rewards"):
        assert any(word in entry["text"] or word in entry["title"] for entry in found), word


def test_generated_parts_are_there(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f"usage: srm-{command}" in commands for command in ("train", "score", "eval", "serve", "rl"))
    report = (site / "gallery" / "report.html").read_text(encoding="utf-8")
    assert report.count('"margin"') == len((ROOT / "docs" / "gallery" / "pairs.jsonl").read_text(encoding="utf-8").splitlines())


def test_links_out_of_docs_lead_to_the_repository(site: Path) -> None:
    results = (site / "results.html").read_text(encoding="utf-8")
    assert 'href="https://github.com/srm-kernels/srm-kernels/blob/main/research/README.md"' in results
    hooks = load_hooks()
    assert hooks.leaves_docs("tutorials/x.md", "../data.md") is None
    assert hooks.leaves_docs("tutorials/x.md", "../../bench/gpu.py") == "bench/gpu.py"


def test_a_link_to_what_is_not_there_stops_the_build() -> None:
    from mkdocs.config import load_config
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File, Files
    from mkdocs.structure.pages import Page

    config = load_config(str(ROOT / "mkdocs.yml"))
    page = Page(None, File("x.md", src_dir=None, dest_dir="", use_directory_urls=False), config)
    with pytest.raises(PluginError, match=r"x\.md: there is no bench/gone\.py"):
        load_hooks().on_page_markdown("[gone](../bench/gone.py)", page, config, Files([]))


def load_hooks() -> Any:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "scripts" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def requests_of(browser: Any) -> list[str]:
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    urls = [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("chrome:", "data:", "blob:"))]


def test_pages_fit_their_window_and_ask_nobody_else(address: str, browser: Any) -> None:
    browser.get("about:blank")
    browser.get_log("performance"), browser.get_log("browser")
    for page in LOOKED_AT:
        for width, scheme in WIDTHS_AND_SCHEMES:
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            scheme_feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_feature)
            browser.get(f"{address}/{page}")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, f"{page} at {width}"
            shown = browser.execute_script("return document.body.dataset.mdColorScheme")
            assert shown == ("slate" if scheme == "dark" else "default"), page
    assert {url for url in requests_of(browser) if not url.startswith(address)} == set()
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_search_box_finds_a_page(address: str, browser: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{address}/index.html")
    browser.execute_script("document.querySelector('[data-md-component=search-query]').focus()")
    browser.execute_cdp_cmd("Input.insertText", {"text": "truncate_prompt"})
    results = "return [...document.querySelectorAll('.md-search-result__link')].map((link) => link.href)"
    found = WebDriverWait(browser, 20).until(lambda opened: opened.execute_script(results))
    assert any("data.html" in link for link in found)
