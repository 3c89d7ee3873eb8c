"""In a real browser: reloads, cut connections, links, files with settings, places in the queue."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from browsers import DESKTOP
from fakes import fake_models, served, until
from lines import Line

from ultragen.runs.compare import compare
from ultragen.runs.request import Request
from ultragen.web import call_places
from ultragen.web.kept import KeptRuns
from ultragen.web.views import waiting

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

A_STEP = re.compile(r"(Native|Base) clip: denoising, step \d+ of 10")  # a reload takes its time
GRACE = 4.0


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A page whose runs take no time."""
    models, runs = fake_models(), tmp_path_factory.mktemp("runs")
    with served(models, runs) as url:
        yield SimpleNamespace(models=models, runs=runs, url=url)


@pytest.fixture
def slow(tmp_path, request):
    """A page whose runs have steps of 0.8 seconds, or of so many and so soon give up those who are
    absent as a test asks for."""
    delay, grace = getattr(request, "param", (0.8, 60.0))
    models = fake_models(delay=delay)
    with served(models, tmp_path, grace=grace) as url:
        yield SimpleNamespace(models=models, runs=tmp_path, url=url, steps=models.native)


@pytest.fixture
def visit(browser):
    """Opens pages, each in a browser of its own; fails if their scripts did."""
    opened, errors = [], []

    def open_page(url: str, **options):
        page = browser.new_context(viewport=DESKTOP, **options).new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        ready(page)
        opened.append(page)
        return page

    yield open_page
    for number, page in enumerate(opened):
        if picture := os.environ.get("ULTRAGEN_SCREENSHOTS"):
            name = re.sub(r"\W+", "-", os.environ["PYTEST_CURRENT_TEST"].split("::")[-1])
            page.screenshot(path=f"{picture}/{name}-{number}.png", full_page=True)
        page.context.close()
    assert errors == []


def ready(page) -> None:
    page.wait_for_selector("#estimate-card")
    page.wait_for_function("() => window.ultragenRestored")


def reload(page) -> None:
    page.reload()
    ready(page)


def set_seed(page, seed: int) -> None:
    page.locator("#seed input").fill(str(seed))
    page.keyboard.press("Tab")


def generate(page) -> None:
    seed = page.locator("#seed input").input_value() or r"\d+"
    page.click("#generate")
    done = re.compile(rf"Done: \w+, seed {seed}$")
    expect(page.locator("#status .big")).to_have_text(done, timeout=60_000)


def status(page, text: str | re.Pattern, seconds: float = 20) -> None:
    expect(page.locator("#status")).to_contain_text(text, timeout=1000 * seconds)


MADE = re.compile(r"/[0-9a-f]{40,}/native\.mp4$")
"""Address of a clip that was made, of which Gradio has a copy here."""


def shows(page, source: str | re.Pattern) -> None:
    """Waits until the player has a clip: not the example that the page opens with."""
    expect(page.locator(".uc-over")).to_have_attribute("src", source)


def thumbnails(page):
    return page.locator("#recent button.thumbnail-item")


USABLE = """() => {
    window.usable = new Set();
    new MutationObserver(() => {
        const card = document.querySelector("#status .big");
        if (card && !document.querySelector("#generate").disabled) usable.add(card.textContent);
    }).observe(document, { attributes: true, characterData: true, childList: true, subtree: true });
}"""
"""Notes which cards there are while the button can be used, whatever changes on the page."""


# Reloads


def test_settings_are_there_again_after_a_reload(quick, visit):
    page = visit(quick.url)
    page.fill("#prompt textarea", "snow on a calm lake")
    set_seed(page, 77)
    page.click("#resolution label:has-text('720p')")
    page.click("#windows label:has-text('4 × 4')")
    page.click("button:has-text('Advanced settings')")
    page.click("#noise label:has-text('another one')")
    expect(page.locator("#shift textarea")).to_have_value("")  # and not 0, which is none
    page.locator("#shift textarea").fill("3.5")
    expect(page.locator("#drawing")).to_contain_text("4 × 4 windows in even layers")
    for _ in range(2):
        reload(page)
        expect(page.locator("#prompt textarea")).to_have_value("snow on a calm lake")
        expect(page.locator("#seed input")).to_have_value("77")
        expect(page.locator("#resolution label:has(input:checked)")).to_contain_text("720p")
        expect(page.locator("#windows label:has(input:checked)")).to_contain_text("4 × 4")
        page.click("button:has-text('Advanced settings')")
        expect(page.locator("#noise label:has(input:checked)")).to_contain_text("another one")
        expect(page.locator("#drawing")).to_contain_text("4 × 4 windows in even layers")
    # Another browser has its own.
    expect(visit(quick.url).locator("#seed input")).to_have_value("")


def test_drafts_are_there_again_after_a_reload(quick, visit):
    page = visit(quick.url)
    set_seed(page, 3)
    page.click("#count label:has-text('2')")
    page.click("#draft")
    status(page, "2 drafts")
    source = page.get_attribute(".uc-over", "src")
    reload(page)
    expect(page.locator("#drafts button.thumbnail-item")).to_have_count(2)
    shows(page, source)
    expect(page.locator("#large")).to_have_text("Make it large: seed 3")
    page.locator("#drafts button.thumbnail-item").nth(1).click()
    page.click("#large")
    status(page, "Done: 544p, seed 4")


def test_until_when_files_are_kept_is_said_in_the_visitors_time(quick, visit):
    page = visit(quick.url, timezone_id="Asia/Kolkata")
    set_seed(page, 6)
    generate(page)
    expect(page.locator("time.ug-until")).not_to_contain_text("UTC")
    said, moment = page.eval_on_selector("time.ug-until", "e => [e.textContent, e.dateTime]")
    there = datetime.fromisoformat(moment) + timedelta(hours=5, minutes=30)
    assert f"{there:%H:%M}" in said and f"{there.day}" in said and f"{there:%B}" in said


def test_runs_and_the_clip_are_there_again_until_their_files_go(quick, visit):
    page = visit(quick.url)
    set_seed(page, 0)
    generate(page)
    set_seed(page, 5)
    generate(page)
    expect(thumbnails(page)).to_have_count(2)
    status(page, "Files are kept until")
    source = page.get_attribute(".uc-over", "src")
    reload(page)
    expect(thumbnails(page)).to_have_count(2)
    status(page, "seed 5")
    shows(page, source)
    thumbnails(page).nth(1).click()
    status(page, "seed 0")
    reload(page)
    status(page, "seed 0")  # what was looked at last
    for folder in quick.runs.glob("544p-5-*"):
        shutil.rmtree(folder)
    thumbnails(page).nth(0).click()
    status(page, "This clip is gone")
    reload(page)
    expect(thumbnails(page)).to_have_count(1)


def test_a_run_goes_on_while_the_page_reloads_and_is_found_again(slow, visit):
    page = visit(slow.url)
    page.click("#generate")
    status(page, A_STEP)
    for _ in range(2):
        reload(page)
        status(page, A_STEP)
        expect(page.locator("#cancel")).to_be_visible()
        expect(page.locator("#generate")).to_be_disabled()
    page.evaluate(USABLE)
    status(page, "Done", 60)
    shows(page, MADE)
    assert len(slow.models.native.calls) == 1
    expect(thumbnails(page)).to_have_count(1)
    expect(page.locator("#generate")).to_be_enabled()
    assert [each[:5] for each in page.evaluate("() => [...usable]")] == ["Done:"]
    expect(page.locator("#cancel")).to_be_hidden()


def test_a_run_that_was_found_again_can_be_cancelled(slow, visit):
    page = visit(slow.url)
    page.click("#generate")
    status(page, A_STEP)
    reload(page)
    status(page, A_STEP)
    page.evaluate(USABLE)
    page.click("#cancel")
    status(page, "Cancelled")
    expect(page.locator("#generate")).to_be_enabled()
    assert page.evaluate("() => [...usable]") == ["Cancelled"]
    done = slow.steps.steps_done
    page.wait_for_timeout(1500)
    assert slow.steps.steps_done == done < 10
    assert list(slow.runs.iterdir()) == []
    reload(page)
    status(page, "Ready")


def test_a_run_goes_on_while_the_connection_is_cut_and_is_found_again(slow, visit):
    line = Line(slow.url)
    page = visit(line.url)
    page.click("#generate")
    status(page, A_STEP)
    done = slow.steps.steps_done
    line.cut()
    until(lambda: slow.steps.steps_done >= done + 3)
    line.mend()
    status(page, "Done", 60)
    shows(page, MADE)
    assert len(slow.models.native.calls) == 1
    line.close()


@pytest.mark.parametrize("slow", [(2.0, GRACE)], indirect=True)
def test_a_page_that_does_not_come_back_stops_its_run_after_the_grace_time(slow, visit, browser):
    page = browser.new_page()
    page.goto(slow.url)
    ready(page)
    page.click("#generate")
    status(page, A_STEP)
    page.close()
    began, done = time.monotonic(), slow.steps.steps_done
    until(lambda: slow.steps.steps_done > done)  # it goes on
    waiter = browser.new_page()
    waiter.wait_for_timeout(1000 * (GRACE + 4.5 - (time.monotonic() - began)))
    done = slow.steps.steps_done
    waiter.wait_for_timeout(3000)
    waiter.close()
    assert slow.steps.steps_done == done < 20
    assert slow.models.base.calls == []
    assert list(slow.runs.iterdir()) == []


# The queue

KEEP_TITLES = """() => {
    const status = document.querySelector("#status");
    const title = () => status.querySelector(".big")?.textContent;
    window.titles = [];
    let last = title();
    new MutationObserver(() => {
        if (title() && title() !== last) titles.push(last = title());
    }).observe(status, { childList: true, subtree: true, characterData: true });
}"""
"""Keeps the titles that the card of a run has from now on."""


def test_a_place_is_shown_kept_over_a_reload_and_can_be_left(slow, visit):
    call = f"{slow.url}/gradio_api/call/v2/generate"
    given = {"prompt": "a calm lake", "num_frames": 1, "num_inference_steps": 100}
    first = httpx.post(call, json=given).json()["event_id"]
    until(lambda: slow.steps.steps_done >= 1)
    # It is read all the time, since a call that nobody reads is dropped; hanging up cancels it.
    with httpx.stream("GET", f"{slow.url}/gradio_api/call/generate/{first}", timeout=120):
        pages = [visit(slow.url), visit(slow.url)]
        for number, page in enumerate(pages):
            set_seed(page, number + 1)
            page.click("#generate")
            status(page, f"Waiting: place {number + 2}")
        for page in pages:
            expect(page.locator("#status")).to_contain_text(re.compile(r"for about \d+:\d\d\b"))
        reload(pages[0])
        status(pages[0], "Waiting: place 2")
        status(pages[1], "2 runs come before yours")
        pages[0].evaluate(KEEP_TITLES)
        pages[0].click("#cancel")
        status(pages[0], "Cancelled", 60)
        assert pages[0].evaluate("titles") == ["Stopping", "Cancelled"]
        status(pages[1], "Waiting: place 2")
    status(pages[1], "Done", 60)
    assert [call["seed"] for call in slow.models.native.calls] == [0, 2]


def test_an_expected_wait_is_counted_down_by_the_page(quick, visit):
    page = visit(quick.url)
    page.evaluate("card => document.body.insertAdjacentHTML('beforeend', card)", waiting(2, 3725.0))
    expect(page.locator(".ug-left")).to_have_text(re.compile("^1:0(1:5.|2:0[0-4])$"))


def test_a_late_answer_to_cancel_does_not_hide_how_the_run_ended(slow, visit, monkeypatch):
    cancel, ended, answered = KeptRuns.cancel, threading.Event(), threading.Event()

    def late(self, session):
        found = cancel(self, session)
        ended.wait(90)
        answered.set()
        return found

    monkeypatch.setattr(KeptRuns, "cancel", late)
    page = visit(slow.url)
    page.click("#generate")
    status(page, A_STEP)
    page.click("#cancel")
    status(page, "Cancelled", 60)
    ended.set()
    until(answered.is_set)
    page.wait_for_timeout(1000)
    status(page, "Cancelled", 1)


def test_a_full_queue_is_said(visit, tmp_path, monkeypatch):
    monkeypatch.setattr(call_places, "PLACES", 1)
    models = fake_models(delay=0.5)
    with served(models, tmp_path) as url:
        page = visit(url)
        given = {"prompt": "a calm lake", "num_inference_steps": 100}
        for _ in range(2):
            httpx.post(f"{url}/gradio_api/call/v2/generate", json=given).raise_for_status()
            until(lambda: models.native.steps_done >= 1)
        page.click("#generate")
        expect(page.get_by_text("all 1 places are taken")).to_be_visible(timeout=20_000)
        expect(page.locator("#generate")).to_be_enabled()


# Links


def shared(page) -> str:
    page.click("#share")
    link = page.locator("#link textarea")
    expect(link).to_have_value(re.compile("^http"))
    return link.input_value()


def test_a_link_brings_the_settings_and_their_clip(quick, visit):
    page = visit(quick.url, permissions=["clipboard-read", "clipboard-write"])
    page.fill("#prompt textarea", "a calm lake & <b>snow</b>")
    set_seed(page, 21)
    generate(page)
    source = page.get_attribute(".uc-over", "src")
    link = shared(page)
    expect(page.locator("#link-told")).to_have_text("The link is copied.")
    assert page.evaluate("() => navigator.clipboard.readText()") == link
    # Then an example is looked at, whose clip is not that of these settings.
    other = visit(link)
    expect(other.locator("#seed input")).to_have_value("21")
    expect(other.locator("#prompt textarea")).to_have_value("a calm lake & <b>snow</b>")
    shows(other, source)
    # What is changed then stays changed, and the clip with it.
    set_seed(other, 22)
    assert "run=" not in shared(other)
    reload(other)
    expect(other.locator("#seed input")).to_have_value("22")
    shows(other, source)


def test_where_the_clipboard_is_not_allowed_the_link_is_shown(quick, visit):
    page = visit(quick.url)
    page.evaluate(
        "() => { navigator.clipboard.writeText = () => Promise.reject(new Error('denied')); }"
    )
    link = shared(page)
    assert "noise=spectral" in link and "seed=" not in link
    expect(page.locator("#link-told")).to_contain_text("does not let the page copy: select")


def test_settings_that_can_not_be_used_are_not_shared(quick, visit):
    page = visit(quick.url)
    set_seed(page, -4)
    page.click("#share")
    expect(page.locator("#link-told")).to_contain_text("Seed must be from 0")
    expect(page.locator("#link")).to_be_hidden()


def test_a_link_with_nonsense_is_named_and_opens(quick, visit):
    nonsense = "prompt=a+calm+lake&seed=<b>&num_frames=18&windows=%00&run=..%2F..%2Fetc&sead=1"
    page = visit(f"{quick.url}/?{nonsense}")
    status(
        page,
        "Seed must be a whole number from 0 to 4294967295, not '<b>'. A new one is used instead.",
    )
    status(page, "There is no setting 'sead'")
    status(page, "not kept any more")
    expect(page.locator("#prompt textarea")).to_have_value("a calm lake")
    expect(page.locator("#seed input")).to_have_value("")


def cards(url: str) -> dict[str, str]:
    found = re.findall(
        r'<meta (?:property|name)="((?:og|twitter):\w+)" content="([^"]*)" />',
        httpx.get(url).text,
    )
    assert len(found) == len(dict(found)), "a tag is there twice"
    return dict(found)


def test_a_link_has_a_title_a_picture_and_a_description(quick, visit):
    asked = Request("a calm 'lake' <under> snow", num_frames=1, num_inference_steps=1, seed=4)
    result = compare(asked, quick.models, quick.runs)
    card = cards(f"{quick.url}/?run={result.native.parent.name}&seed=4")
    assert card["og:title"] == "a calm &#x27;lake&#x27; &lt;under&gt; snow · UltraGen"
    assert "native 960×544, seed 4" in card["og:description"]
    picture = httpx.get(card["og:image"])
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content == result.poster.read_bytes()
    for query in ("", "?run=../../etc/passwd", "?run=", "?prompt=%22><script>x</script>"):
        card = cards(f"{quick.url}/{query}")
        assert "Gradio" not in card["og:title"] and "og:image" not in card
    assert httpx.get(f"{quick.url}/ultragen/poster?run=..").status_code == 404


# Files with settings


DROP = """([name, bytes]) => {
    const files = new DataTransfer();
    files.items.add(new File([new Uint8Array(bytes)], name));
    const options = { dataTransfer: files, bubbles: true, cancelable: true };
    document.querySelector("#status").dispatchEvent(new DragEvent("drop", options));
}"""


def drop(page, name: str, content: bytes) -> None:
    page.evaluate(DROP, [name, list(content)])


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A clip with settings that are none of the page's own."""
    asked = Request("a calm lake at sunset", "720p", 4, 9, 123, 3, noise="independent")
    return compare(asked, fake_models(), tmp_path_factory.mktemp("earlier"))


@pytest.mark.parametrize("kind", ["native", "side_by_side", "metadata_path"])
def test_a_clip_or_its_metadata_that_is_dropped_sets_everything(quick, visit, earlier, kind):
    page, path = visit(quick.url), Path(getattr(earlier, kind))
    drop(page, path.name, path.read_bytes())
    status(page, "Settings of a clip by UltraGen")
    expect(page.locator("#prompt textarea")).to_have_value("a calm lake at sunset")
    expect(page.locator("#seed input")).to_have_value("123")
    expect(page.locator("#resolution label:has(input:checked)")).to_contain_text("720p")
    expect(page.locator("#windows label:has(input:checked)")).to_contain_text("4 × 4")
    expect(page.locator("#frames input[type=number]")).to_have_value("9")
    generate(page)
    [folder] = quick.runs.glob("720p-123-*")
    assert (folder / "native.mp4").read_bytes() == earlier.native.read_bytes()
    shutil.rmtree(folder)


def test_files_that_hold_no_settings_say_so(quick, visit, earlier):
    page = visit(quick.url)
    unknown = json.loads(earlier.metadata_path.read_text())
    unknown["request"]["warp"] = 9
    for name, content, says in (
        ("workflow.json", b'{"nodes": [], "links": []}', "is of another program"),
        ("broken.json", b"{", "is broken: it is no JSON"),
        ("film.mp4", b"no film", "is not a video that can be read"),
        ("new.json", json.dumps(unknown).encode(), "holds 'warp', which this version"),
    ):
        drop(page, name, content)
        status(page, says)
    for name in ("picture.png", "program.exe"):
        drop(page, name, b"x")
        expect(page.get_by_text(f"Invalid file type: {name}").first).to_be_visible()
    expect(page.locator("#seed input")).to_have_value("")


def test_files_that_are_too_large_are_refused(quick):
    large = {"files": ("large.mp4", b"x" * (101 * 2**20))}
    answer = httpx.post(f"{quick.url}/gradio_api/upload", files=large, timeout=60)
    assert answer.status_code == 413
