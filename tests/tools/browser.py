"""A headless Chromium, to look at pages as people do."""

import os
import shutil
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

WIDTHS = {"phone": (390, 844), "desktop": (1280, 800)}
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


def require_browser():
    """Skip where no Chromium is installed, or fail if the environment says that there has to be one."""
    found = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in found:
        reason = "chromium and chromedriver are not both installed"
        if os.environ.get("LOWRANK_LDU_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def running_browser(profile):
    """A browser with an empty profile that keeps a log of its console."""
    chromium, driver = require_browser()
    options = Options()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def show(browser, path, width, height, fragment=""):
    """Load a page in a window of that size, as a phone's browser would where it is narrow."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get("about:blank")  # a fragment alone would not load anything anew
    browser.get_log("browser")
    browser.get(f"{path.as_uri()}{fragment}")


def assert_harmless(browser, path):
    """Nothing on the console, no violation of the policy, nothing loaded, and nothing wider than the window."""
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    assert browser.current_url.partition("#")[0] == path.as_uri()
    wide, window = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= window
