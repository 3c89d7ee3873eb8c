"""Measures what a visitor waits for: the first look at the page, and a change of a setting.

    python scripts/measure_page.py [--repeats 5] [--json FILE]

Starts the page, opens it in a real browser with nothing kept from before, and prints: the largest
paint, what was loaded before a clip plays and with both clips, and the page's own time for each
setting. Medians; exits with 1 where one misses its bar. Needs the test tools (`make quick`) and
Debian's chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from playwright.sync_api import Browser, Page, Response, sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

BARS = {
    "largest paint, s": 2.5,
    "before a clip plays, MB": 3.0,
    "a setting, ms": 50.0,
}
WATCH_PAINTS = """window.paints = []; new PerformanceObserver(list => {
    for (const entry of list.getEntries()) paints.push(entry.startTime);
}).observe({type: "largest-contentful-paint", buffered: true});"""


def first_look(browser: Browser, url: str) -> dict[str, float]:
    """Opens the page as a new visitor; seconds and megabytes."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    sizes: list[tuple[bool, float]] = []
    page.on("requestfinished", lambda request: sizes.append(_size(request.response())))
    page.add_init_script(WATCH_PAINTS)
    page.goto(url)
    page.wait_for_selector("#estimate-card")
    _wait_for_clips(page)
    page.wait_for_timeout(500)
    found = {
        "largest paint, s": page.evaluate("() => paints.at(-1)") / 1000,
        "before a clip plays, MB": sum(size for clip, size in sizes if not clip),
        "with both clips, MB": sum(size for _, size in sizes),
    }
    context.close()
    return found


def _wait_for_clips(page: Page) -> None:
    page.wait_for_function(
        "() => [...document.querySelectorAll('.uc-stage video')].every(v => v.currentTime > 0)"
    )


def _size(response: Response | None) -> tuple[bool, float]:
    """Whether it is a clip, and its megabytes as they came, headers included."""
    if response is None:
        return False, 0.0
    sizes = response.request.sizes()
    clip = response.headers.get("content-type", "").startswith("video/")
    return clip, (sizes["responseBodySize"] + sizes["responseHeadersSize"]) / 1e6


def settings_times(browser: Browser, url: str) -> dict[str, float]:
    """Milliseconds from a change to the server's answer: of a setting, and of a long prompt."""
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#estimate-card")
    page.wait_for_timeout(1500)
    sizes = page.locator("#resolution label")
    numbers = [*range(1, sizes.count()), 0]
    chosen = [_answer(page, partial(sizes.nth(number).click)) for number in numbers]
    prompt = page.locator("#prompt textarea")
    texts = [f"{kind} zorgons over " * 90 for kind in ("calm", "wide", "dark")]
    typed = [_answer(page, partial(prompt.fill, text)) for text in texts]
    page.close()
    return {"a setting, ms": median(chosen), "a long prompt, ms": median(typed)}


def _answer(page: Page, change: Callable[[], None]) -> float:
    """Milliseconds that the server takes for what a change asks of it."""
    with page.expect_response(lambda response: response.request.method == "POST") as got:
        change()
    got.value.finished()
    timing = got.value.request.timing
    page.wait_for_timeout(300)
    return timing["responseEnd"] - timing["requestStart"]


def measure(repeats: int) -> dict[str, float]:
    """Every figure, the medians of several looks."""
    import app
    from ultragen.runs.loading import load_models

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    blocks = app.build(load_models())
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, **app.launch_options())
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            first_look(browser, url)  # the server is warm from here on
            looks = [first_look(browser, url) for _ in range(repeats)]
            answers = settings_times(browser, url)
            browser.close()
    finally:
        blocks.close()
    medians = {name: median(look[name] for look in looks) for name in looks[0]}
    return medians | answers


def main(arguments: list[str]) -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Measure what a visitor of the page waits for.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    figures = measure(options.repeats)
    for name, value in figures.items():
        bar = f"   at most {BARS[name]:g}" if name in BARS else ""
        print(f"{name:<26}{value:8.2f}{bar}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(any(figures[name] > bar for name, bar in BARS.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
