"""A headless Chromium with a record of what a page did: requests, console messages, dialogs. Tests skip without one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,1000"),
)

DIALOGS = "for (const name of ['alert', 'confirm', 'prompt', 'print']) window[name] = () => console.error('dialog');"


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A selenium driver; skips the test where the browser, its driver or selenium is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    session.set_page_load_timeout(60)
    session.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": DIALOGS})
    try:
        yield session
    finally:
        session.quit()


def visit(session: Any, url: str) -> dict[str, Any]:
    """Open the page; what it asked for beside itself, what the console said, whether a dialog opened, seconds."""
    for log in ("performance", "browser"):
        session.get_log(log)  # what came before
    session.get(url)
    console = [entry["message"] for entry in session.get_log("browser")]
    events = [json.loads(entry["message"])["message"] for entry in session.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return {
        "requests": [u for u in asked if u != url and not u.startswith("data:")],
        "console": console,
        "dialog": any("dialog" in message for message in console),
        "title": session.title,
        "seconds": _load_seconds(session),
    }


def look(session: Any, *, dark: bool = False, width: int = 1200) -> None:
    """Set colour scheme and width, as a reader's device would."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    session.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
    session.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def _load_seconds(session: Any) -> float:
    timing = "const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd / 1000"
    return round(session.execute_script(timing), 2)
