"""Makes the README's picture of the page: docs/images/page.jpg.

    python scripts/make_screenshot.py [--prompt TEXT] [--out FILE]

Starts the page, runs a prompt in a real browser, and waits for the two clips. Needs the test tools
(`make quick`) and Debian's chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

WIDTH = 1200
MINUTES = 10


def photograph(url: str, prompt: str) -> Image.Image:
    """The page after a run, with the divider where it starts."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 950})
        page.goto(url)
        page.wait_for_selector("#estimate-card")
        page.fill("#prompt textarea", prompt)
        page.click("#generate")
        page.wait_for_selector("#status .good", timeout=MINUTES * 60_000)
        page.wait_for_timeout(1500)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    return picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)))


def main(arguments: list[str]) -> None:
    """Reads the command line."""
    import app
    from ultragen.presets import PROMPTS
    from ultragen.runs.loading import load_models

    parser = argparse.ArgumentParser(description="Make the README's picture of the page.")
    parser.add_argument("--prompt", default=PROMPTS[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "page.jpg")
    options = parser.parse_args(arguments)
    blocks = app.build(load_models())
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, **app.launch_options())
    try:
        photograph(url, options.prompt).save(options.out, quality=85)
    finally:
        blocks.close()
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
