"""Makes the pictures of a walk through the page: docs/images/walk-*.jpg.

    python scripts/make_walk.py [--prompt TEXT] [--seed 3] [--resolution 720p] [--out FOLDER]

Starts the page with its model, and does in a real browser what a visitor does: looks, drafts, makes
a draft large, compares, reloads, shares; then the same clip on a phone and in the dark theme. Takes
minutes on a CPU. Needs the test tools (`make quick`) and Debian's chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

DESKTOP = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}
LONGEST_RUN = 20 * 60_000  # milliseconds
PROMPT = "pine trees on snowy hills at dusk, snowfall, cold light"
WIDTH = 1200  # pixels of a picture, at most
QUALITY = 82
SHOWN = "() => document.querySelector('.uc-over').readyState >= 2"


class Walk:
    """A visit to the page, with a picture of each of its stations.

    Args:
        browser: Where it takes place.
        url: The page's address.
        out: The pictures' folder.
    """

    def __init__(self, browser: Browser, url: str, out: Path) -> None:
        self.browser, self.url, self.out = browser, url, out
        self.page = self.open(viewport=DESKTOP, color_scheme="light")

    def open(self, **options: Any) -> Page:
        """A browser's page of its own."""
        page = self.browser.new_context(**options).new_page()
        page.goto(self.url)
        page.wait_for_selector("#estimate-card")
        page.wait_for_function(SHOWN)
        return page

    def photograph(self, name: str, page: Page | None = None) -> None:
        """What is on the screen, as a file."""
        page = page or self.page
        page.wait_for_function(SHOWN)
        page.wait_for_timeout(1200)  # colours fade in, the loupe follows
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
        file = self.out / f"walk-{name}.jpg"
        picture.save(file, quality=QUALITY, optimize=True)
        print(f"{file}: {file.stat().st_size / 1e3:.0f} kB", flush=True)

    def draft(self, prompt: str, seed: int, resolution: str) -> None:
        """Four seeds of a prompt, small; the second is chosen."""
        page = self.page
        page.fill("#prompt textarea", prompt)
        page.fill("#seed input", str(seed))
        page.click(f"#resolution label:has-text('{resolution}')")
        page.click("#draft")
        self.wait_for("drafts in")
        page.locator("#drafts button.thumbnail-item").nth(1).click()
        page.wait_for_selector(f"#large:has-text('seed {seed + 1}')")
        self.to_the_top(page)
        self.photograph("draft")

    def make_large(self) -> None:
        """The same scene at the full size, beside its upscaled copy."""
        self.page.click("#large")
        self.wait_for("Done")
        self.page.wait_for_selector(".uc:not(.uc-alone)")
        self.page.locator(".uc").scroll_into_view_if_needed()
        self.photograph("large")

    def compare(self) -> None:
        """Both clips under the loupe, pixel for pixel."""
        page = self.page
        stand_still(page)
        page.click(".uc-zoom")
        page.wait_for_selector(".uc-loupe:not([hidden])")
        box = page.locator(".uc-stage").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.7 * box["height"])
        page.wait_for_selector(".uc-zoom:has-text('1:1')")
        self.photograph("compare")

    def reload(self) -> None:
        """The page anew: prompt, settings, drafts, runs and clips are there again."""
        page = self.page
        page.reload()
        page.wait_for_function("() => window.ultragenRestored")
        page.wait_for_selector("#status :text('Done')")
        page.wait_for_selector("#recent button.thumbnail-item")
        page.locator("#recent").scroll_into_view_if_needed()
        page.mouse.wheel(0, 250)
        self.photograph("reload")

    def share(self) -> str:
        """A link to what is shown; its address."""
        page = self.page
        page.click("#share")
        page.wait_for_selector("#link textarea")
        page.wait_for_selector("#link-told :text('ink')")
        page.locator("#link-told").scroll_into_view_if_needed()
        self.photograph("share")
        return page.input_value("#link textarea")

    def elsewhere(self, address: str) -> None:
        """What the link shows on a phone, and in the dark theme."""
        phone = self.open(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
        dark = self.open(viewport=DESKTOP, color_scheme="dark")
        for name, page, theme in (("phone", phone, "light"), ("dark", dark, "dark")):
            page.goto(f"{address}&__theme={theme}")
            page.wait_for_selector("#status :text('Done')")
            if page is phone:  # the clip stands below the settings there
                page.evaluate("() => ultragenShow('#status', 'start')")
                page.wait_for_timeout(1000)
            self.photograph(name, page)

    def wait_for(self, text: str) -> None:
        """Until the status says so."""
        self.page.wait_for_selector(f"#status .good:has-text('{text}')", timeout=LONGEST_RUN)

    @staticmethod
    def to_the_top(page: Page) -> None:
        page.evaluate("() => scrollTo(0, 0)")


def stand_still(page: Page) -> None:
    """Ends what plays."""
    if page.eval_on_selector(".uc-over", "video => !video.paused"):
        page.click(".uc-play")


def walk(url: str, out: Path, prompt: str, seed: int, resolution: str) -> None:
    """All stations, in order."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        visit = Walk(browser, url, out)
        visit.photograph("first-look")
        visit.draft(prompt, seed, resolution)
        visit.make_large()
        visit.compare()
        visit.reload()
        visit.elsewhere(visit.share())
        browser.close()


def main(arguments: list[str]) -> None:
    """Reads the command line."""
    import app
    from ultragen.presets import RESOLUTIONS
    from ultragen.runs.loading import load_models

    parser = argparse.ArgumentParser(description="Make the pictures of a walk through the page.")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--resolution", choices=RESOLUTIONS, default="720p")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    blocks = app.build(load_models())
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, **app.launch_options())
    try:
        walk(url, options.out, options.prompt, options.seed, options.resolution)
    finally:
        blocks.close()


if __name__ == "__main__":
    main(sys.argv[1:])
