"""Driving the page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
DESKTOP, PHONE = {"width": 1400, "height": 950}, {"width": 390, "height": 844}


@contextmanager
def launched() -> Iterator:
    """A browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield browser
        browser.close()


def set_number(page, box: str, value: int) -> None:
    """Types a number into a component's field."""
    field = page.locator(f"{box} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def generate(page) -> None:
    """Makes both clips, and waits until they are there."""
    before = page.get_attribute(".uc-over", "src")
    page.click("#generate")
    page.wait_for_selector("#status .good", timeout=60_000)
    page.wait_for_function(  # the native clip was there before, alone
        "before => { const over = document.querySelector('.uc:not(.uc-alone) .uc-over');"
        " return over && over.getAttribute('src') !== before; }",
        arg=before,
    )
    page.wait_for_selector("#generate:enabled")
