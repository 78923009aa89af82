"""A headless Chromium for tests, which are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A driver that logs the console and the network; `profile` is a folder of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed; it is in the extra `dev`")
    browser, driver = _find("chromium", "chromium-browser", "google-chrome"), _find("chromedriver", "chromium.chromedriver")
    if browser is None or driver is None:
        missing = "chromedriver" if browser else "chromium"
        pytest.skip(f"no {missing} on this machine; `apt-get install chromium chromium-driver` to look at the page in these tests")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*_FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


def _find(*names: str) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)
