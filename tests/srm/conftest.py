"""A reward model with a head that is not zero, so that every part of the output is worth checking."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from srm import SentenceRewardModel


@pytest.fixture
def model(awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model()


FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
)


def find(*names: str) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, without a window; its logs tell what pages asked for."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed; it is in the extra `dev`")
    chromium, driver = find("chromium", "chromium-browser", "google-chrome"), find("chromedriver", "chromium.chromedriver")
    if chromium is None or driver is None:
        missing = "chromedriver" if chromium else "chromium"
        pytest.skip(f"no {missing} on this machine; `apt-get install chromium chromium-driver` to look at the page in these tests")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()
