"""Headless Chromium for tests of the page; absent browsers skip the test."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--hide-scrollbars --force-device-scale-factor=1"
)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A WebDriver that keeps the console's messages, with an empty profile."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs Chromium and chromedriver (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for switch in [*SWITCHES.split(), f"--user-data-dir={profile}"]:
            options.add_argument(switch)
        session = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            yield session
        finally:
            session.quit()


def open_page(session: Any, path: Path, *, width: int = 1200, dark: bool = False) -> list[Any]:
    """Opens a report and waits until its figures are drawn; returns the console's messages."""
    session.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    prefer(session, dark)
    session.get_log("browser")
    session.get(path.resolve().as_uri())
    until(lambda: drawn(session) is not None)
    return session.get_log("browser")


def prefer(session: Any, dark: bool) -> None:
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    session.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def drawn(session: Any) -> str | None:
    """`light` or `dark` once all figures are drawn in that mode."""
    return session.execute_script("return document.documentElement.dataset.drawn")


COLOURS = """
const counts = {};
const count = (colour) => { counts[colour] = (counts[colour] ?? 0) + 1; };
const panel = document.getElementById(arguments[0]);
const canvas = panel.querySelector("canvas");
if (canvas) {
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 0; i < data.length; i += 4)
    count("#" + [0, 1, 2].map((k) => data[i + k].toString(16).padStart(2, "0")).join(""));
}
for (const mark of panel.querySelectorAll("svg.marks [fill], svg.marks [stroke]")) {
  const box = mark.getBBox();
  if (box.width + box.height > 0)
    ["fill", "stroke"].map((name) => mark.getAttribute(name)).filter(Boolean).forEach(count);
}
return counts;
"""


def colours(session: Any, panel: str) -> dict[str, int]:
    """Visible marks (SVG) or pixels (canvas) of each colour in a drawn panel."""
    return session.execute_script(COLOURS, panel)


PICTURE = """
const marks = document.querySelectorAll(`#${arguments[0]} svg.marks :not(:has(*))`);
return [...marks].map((mark) => mark.outerHTML).sort();
"""


def picture(session: Any, panel: str) -> list[str]:
    """What an SVG panel shows, whatever the order in which it was drawn."""
    return session.execute_script(PICTURE, panel)


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Returns once `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still false after {seconds} s"
        time.sleep(0.02)
