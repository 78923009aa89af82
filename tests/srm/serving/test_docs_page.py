"""The page /docs in a real browser: it comes from the server alone, tells every route, and tries them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

ROUTES = ["POST/v1/rewards", "POST/get_reward", "POST/remote_rm", "GET/health", "GET/metrics"]
SIZES = [(390, 844), (1280, 900)]


@pytest.fixture
def opened(browser: Any, serve: Callable[..., str]) -> Callable[..., str]:
    """opened(**settings) shows the page of a server, and gives its address."""

    def show(**settings: Any) -> str:
        url = serve(**settings)
        browser.get_log("performance")
        browser.get_log("browser")
        browser.get(f"{url}/docs")
        wait(browser, "return document.querySelectorAll('#routes section').length")
        return url

    return show


def wait(browser: Any, script: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda page: page.execute_script(script))


def asked_for(browser: Any) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # Without what lies in the browser itself: the pictures of its empty page, for one.
    return [url for url in urls if not url.startswith(("data:", "chrome:"))]


def test_no_request_leaves_the_server(opened: Callable[..., str], browser: Any) -> None:
    url = opened()
    urls = asked_for(browser)
    assert {urlsplit(one).netloc for one in urls} == {urlsplit(url).netloc}
    assert {urlsplit(one).path for one in urls} == {"/docs", "/openapi.json"}
    assert browser.get_log("browser") == []
    policy = httpx.get(f"{url}/docs").headers["Content-Security-Policy"]
    assert "default-src 'none'; connect-src 'self'" in policy
    assert "://" not in policy


def test_every_route_is_described(opened: Callable[..., str], browser: Any) -> None:
    url = opened()
    titles = browser.execute_script("return [...document.querySelectorAll('#routes h2')].map((title) => title.textContent)")
    assert titles == ROUTES
    text = browser.execute_script("return document.body.innerText")
    for path, methods in httpx.get(f"{url}/openapi.json").json()["paths"].items():
        for operation in methods.values():
            # Names between backticks are shown as code.
            assert operation["description"].split("\n")[0].replace("`", "") in text, path
    for field in ("prompt_ids", "response", "query"):
        assert field in text


def test_examples_are_sent_and_answered(opened: Callable[..., str], browser: Any) -> None:
    opened()
    answer = try_route(browser, "post/v1/rewards")
    assert answer.startswith("200 ")
    assert '"rewards"' in answer
    assert try_route(browser, "get/health").startswith("200 ")
    assert "srm_requests_total" in try_route(browser, "get/metrics")
    browser.execute_script("document.getElementById('post/v1/rewards').querySelector('textarea').value = '{}'")
    assert try_route(browser, "post/v1/rewards").startswith("422 ")


def test_a_token_is_asked_for_where_the_server_wants_one(opened: Callable[..., str], browser: Any) -> None:
    opened(token="secret")
    assert try_route(browser, "post/v1/rewards").startswith("401 ")
    browser.find_element("css selector", "input[type=password]").send_keys("secret")
    assert try_route(browser, "post/v1/rewards").startswith("200 ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_can_be_read(opened: Callable[..., str], browser: Any, size: tuple[int, int], scheme: str) -> None:
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    try:
        opened()
        try_route(browser, "post/v1/rewards")
        if folder := os.environ.get("SRM_PICTURES"):
            browser.save_screenshot(str(Path(folder) / f"docs-{size[0]}-{scheme}.png"))
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        # Nothing is cut off beside what can be seen.
        assert browser.execute_script(
            "return [...document.querySelectorAll('.fields')].every((part) => part.scrollWidth <= part.clientWidth)"
        )
        ground, ink = browser.execute_script(
            "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
            ".map((color) => color.match(/\\d+/g).map(Number).reduce((sum, part) => sum + part))"
        )
        assert (ground > ink) == (scheme == "light")
        assert abs(ground - ink) > 400
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def try_route(browser: Any, name: str) -> str:
    """What the page shows after the route's button."""
    section = f"document.getElementById('{name}')"
    browser.execute_script(f"{section}.querySelector('pre').textContent = ''; {section}.querySelector('button').click()")
    return wait(browser, f"const shown = {section}.querySelector('pre').textContent; return shown.length > 3 && shown")
