"""The page in a real browser: type, generate, watch, drag, look closely, cancel, misuse."""

from __future__ import annotations

import os
import re

import pytest
from browsers import DESKTOP, PHONE, generate, set_number
from fakes import fake_models, served

from ultragen.presets import LoraChoice
from ultragen.video import probe_video
from ultragen.web import call_places

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect


@pytest.fixture(scope="module")
def models():
    return fake_models()


@pytest.fixture(scope="module")
def url(models, tmp_path_factory):
    with served(models, tmp_path_factory.mktemp("runs")) as address:
        yield address


@pytest.fixture
def page(browser, url):
    """The page, opened; fails if its scripts did."""
    context = browser.new_context(viewport=DESKTOP, accept_downloads=True)
    opened, errors = context.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(url)
    opened.wait_for_selector("#estimate-card")
    yield opened
    picture = os.environ.get("ULTRAGEN_SCREENSHOTS")
    if picture:
        name = re.sub(r"\W+", "-", os.environ["PYTEST_CURRENT_TEST"].split("::")[-1])
        opened.screenshot(path=f"{picture}/{name}.png", full_page=True)
    context.close()
    assert errors == []


def clips(page) -> list[dict]:
    return page.eval_on_selector_all(
        ".uc-stage video",
        "all => all.map(v => ({time: v.currentTime, paused: v.paused, width: v.videoWidth,"
        " height: v.videoHeight}))",
    )


def test_type_generate_and_both_clips_play_in_step(page, models):
    page.fill("#prompt textarea", "a calm lake under mountains")
    set_number(page, "#seed", 11)
    generate(page)
    assert models.native.calls[-1]["prompt"] == "a calm lake under mountains"
    assert models.native.calls[-1]["seed"] == 11
    expect(page.locator("#status")).to_contain_text("Done")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.uc-stage video')]"
        ".every(v => !v.paused && v.currentTime > 0.2)"
    )
    for clip in clips(page):
        assert (clip["width"], clip["height"]) == (960, 544)
    apart = page.evaluate(
        "() => { const [a, b] = document.querySelectorAll('.uc-stage video');"
        " const d = Math.abs(a.currentTime - b.currentTime); return Math.min(d, 1.417 - d); }"
    )
    assert apart < 0.2


def test_the_play_bar_stops_and_steps_through_frames(page):
    generate(page)
    page.click(".uc-play")
    page.wait_for_function("() => document.querySelector('.uc-over').paused")
    page.locator(".uc-seek").fill("8")
    expect(page.locator(".uc-time")).to_have_text("9 / 17")
    page.click(".uc-next")
    expect(page.locator(".uc-time")).to_have_text("10 / 17")
    page.click(".uc-back")
    expect(page.locator(".uc-time")).to_have_text("9 / 17")
    one, other = clips(page)
    assert one["time"] == pytest.approx(other["time"], abs=0.01)
    page.click(".uc-speed")
    assert page.eval_on_selector(".uc-over", "v => v.playbackRate") == 0.5


def split(page) -> int:
    return int(page.get_attribute(".uc-divider", "aria-valuenow"))


def test_the_divider_moves_by_mouse_and_by_keys(page):
    generate(page)
    assert split(page) == 50
    box = page.locator(".uc-stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, middle, steps=4)
    page.mouse.up()
    assert split(page) == 25
    clip = page.eval_on_selector(".uc-over", "v => getComputedStyle(v).clipPath")
    assert "75%" in clip
    page.focus(".uc-divider")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert split(page) == 37
    page.keyboard.press("End")
    assert split(page) == 100
    page.keyboard.press("ArrowRight")
    assert split(page) == 100


def test_the_divider_moves_by_touch(browser, url):
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#estimate-card")
    generate(page)
    page.locator(".uc-stage").scroll_into_view_if_needed()
    box = page.locator(".uc-stage").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.7)
    assert split(page) == pytest.approx(80, abs=1)
    wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, "the page must not scroll sideways on a phone"
    context.close()


def test_the_loupe_shows_single_pixels_of_both_clips(page):
    generate(page)
    page.click(".uc-play")
    assert page.locator(".uc-loupe").is_hidden()
    page.click(".uc-zoom")
    expect(page.locator(".uc-zoom")).to_have_text("Loupe 1:1")
    box = page.locator(".uc-stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.85)
    expect(page.locator(".uc-loupe")).to_be_visible()
    contrast = page.evaluate(
        """() => [...document.querySelectorAll('.uc-loupe canvas')].map(c => {
            const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            let change = 0;
            for (let i = c.width * 4; i < pixels.length; i += 4)
                change += Math.abs(pixels[i] - pixels[i - c.width * 4]);
            return change / (c.width * c.height);
        })"""
    )
    assert contrast[0] > 2 * contrast[1] > 0
    page.click(".uc-zoom")
    expect(page.locator(".uc-zoom")).to_have_text("Loupe 2:1")


def test_plain_players_and_downloads(page, tmp_path):
    generate(page)
    page.click("button:has-text('Plain players')")
    for name in ("#native", "#upscaled", "#side-by-side"):
        page.wait_for_function(
            "name => { const v = document.querySelector(name + ' video');"
            " return v && v.readyState >= 1 && v.videoWidth > 0; }",
            arg=name,
        )
    rows = page.locator("#files tr")
    expect(rows).to_have_count(4)
    with page.expect_download() as download:
        rows.filter(has_text="side_by_side").locator("a").click()
    download.value.save_as(tmp_path / "both.mp4")
    assert probe_video(tmp_path / "both.mp4").width == 1920


def test_the_base_model_at_full_size_can_be_put_on_the_right(page):
    page.click("button:has-text('Advanced settings')")
    page.click("#base-native label:has-text('on')")
    expect(page.locator("#estimate-card")).to_contain_text("base at full size")
    generate(page)
    page.click(".uc-swap")
    expect(page.locator(".uc-tag-right")).to_contain_text("run natively")
    assert "base_native" in page.get_attribute(".uc-under", "src")


def test_an_earlier_run_can_be_seen_again(page):
    generate(page)
    first = page.get_attribute(".uc-over", "src")
    page.click("#dice")
    page.wait_for_function("() => document.querySelector('#seed input').value !== ''")
    page.click("#generate")
    page.wait_for_function(
        "first => document.querySelector('.uc-over').getAttribute('src') !== first", arg=first
    )
    page.wait_for_selector("#status .good", timeout=60_000)
    thumbnails = page.locator("#recent button.thumbnail-item")
    expect(thumbnails).to_have_count(2)
    thumbnails.nth(1).click()
    page.wait_for_function(
        "first => document.querySelector('.uc-over').getAttribute('src') === first", arg=first
    )


def test_unknown_words_are_named_while_typing(page):
    page.fill("#prompt textarea", "a calm dragon under <b>mountains</b>")
    expect(page.locator("#words mark").first).to_have_text("dragon")
    expect(page.locator("#words b")).to_have_count(0)
    page.fill("#prompt textarea", "a calm lake")
    expect(page.locator("#words mark")).to_have_count(0)


def test_costs_and_windows_follow_the_settings(page):
    before = page.inner_text("#estimate-card .big")
    page.click("#resolution label:has-text('1080p')")
    expect(page.locator("#estimate-card .big")).not_to_have_text(before)
    expect(page.locator("#drawing")).to_contain_text("4 × 4 windows in even layers")
    page.click("#windows label:has-text('6 × 6')")
    expect(page.locator("#drawing")).to_contain_text("7 × 7 windows in odd layers")
    assert page.locator("#drawing svg").nth(1).locator("line").count() == 12
    costs = page.eval_on_selector_all(
        "#resolution label span", "all => all.map(s => getComputedStyle(s, '::after').content)"
    )
    assert len(costs) == 5
    assert all("≈" in cost for cost in costs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda page: set_number(page, "#frames", 18),
            "Frames must be 4n + 1, not 18: choose 17 or 21",
        ),
        (lambda page: set_number(page, "#seed", -4), "Seed must be from 0"),
        (lambda page: page.fill("#prompt textarea", "   "), "The prompt is empty"),
        (lambda page: page.fill("#prompt textarea", "x" * 10_000), "10,000 characters"),
    ],
)
def test_bad_input_is_answered_with_the_way_out(page, models, change, words):
    """Once, by the name that the page has for it."""
    runs = len(models.native.calls)
    change(page)
    page.click("#generate")
    expect(page.locator("#status .ug-card.bad")).to_be_visible()
    expect(page.get_by_text(words)).to_have_count(1)
    expect(page.get_by_text(words)).to_be_visible()
    expect(page.locator(".toast-body")).to_have_count(0)
    expect(page.get_by_text("num_frames")).to_have_count(0)
    expect(page.locator("#generate")).to_be_enabled()
    assert len(models.native.calls) == runs


# A busy machine may show only some of the steps: any of them will do.
A_STEP = re.compile(r"Native clip: denoising, step [1-9] of 10")


def test_loras_have_a_strength_each(browser, tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("watercolour", "slow-motion")]
    for path in paths:
        path.write_bytes(path.name.encode())
    loras = tuple(LoraChoice(path.stem, str(path), i / 2) for i, path in enumerate(paths))
    models = fake_models(loras=loras)
    with served(models, tmp_path / "runs") as address:
        page = browser.new_context(viewport=DESKTOP).new_page()
        page.goto(address)
        page.wait_for_selector("#estimate-card")
        table = page.locator("#loras")
        expect(table).to_contain_text("watercolour")
        table.locator("[data-testid=cell-0-1]").dblclick()
        page.keyboard.press("Control+a")
        page.keyboard.type("0.8")
        page.keyboard.press("Enter")
        page.mouse.click(5, 5)
        generate(page)
        if picture := os.environ.get("ULTRAGEN_SCREENSHOTS"):
            page.screenshot(path=f"{picture}/loras.png", full_page=True)
        page.context.close()
    assert models.native.calls[0]["loras"] == [(str(paths[0]), 0.8), (str(paths[1]), 0.5)]


def test_a_page_without_loras_shows_no_table(page):
    expect(page.locator("#loras")).to_have_count(0)


def test_progress_by_step_and_cancelling_within_one(browser, tmp_path):
    slow = fake_models(delay=1.0)
    with served(slow, tmp_path) as address:
        page = browser.new_page(viewport=DESKTOP)
        page.goto(address)
        page.wait_for_selector("#estimate-card")
        expect(page.locator("#cancel")).to_be_hidden()
        page.click("#generate")
        expect(page.locator("#status")).to_contain_text(A_STEP, timeout=20_000)
        expect(page.locator("#status [role=progressbar]")).to_be_visible()
        before = slow.native.steps_done
        page.click("#cancel")
        expect(page.locator("#status")).to_contain_text("Cancelled")
        expect(page.locator("#status")).to_contain_text("Nothing was kept")
        done = slow.native.steps_done
        # One step while the click travels, one that was under way.
        assert done <= before + 2
        page.wait_for_timeout(2200)
        assert slow.native.steps_done == done
        assert slow.base.calls == []
        assert list(tmp_path.iterdir()) == []
        expect(page.locator("#cancel")).to_be_hidden()
        expect(page.locator("#generate")).to_be_enabled()
        page.close()


def test_a_failing_run_says_why(browser, tmp_path):
    with served(fake_models(damage="black"), tmp_path) as address:
        page = browser.new_page(viewport=DESKTOP)
        page.goto(address)
        page.wait_for_selector("#estimate-card")
        page.click("#generate")
        expect(page.locator("#status")).to_contain_text("every frame is black", timeout=30_000)
        expect(page.locator("#generate")).to_be_enabled()
        page.close()


OVERFLOWING = """() => [...document.querySelectorAll('#resolution label, #windows label')]
    .filter(label => label.scrollWidth > label.clientWidth + 1).map(label => label.innerText)"""


@pytest.mark.parametrize("width", [1400, 1200, 1000, 700, 390])
def test_choices_stay_within_their_cards(browser, url, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(url)
    page.wait_for_selector("#estimate-card")
    assert page.evaluate(OVERFLOWING) == []
    page.close()


def test_drafts_of_another_shape_and_the_best_one_made_large(page, models):
    assert page.locator("#seed input[type=number]").input_value() == ""
    expect(page.locator("#large")).to_be_hidden()
    page.click("#aspect label:has-text('9:16')")
    labels = "all => all.map(s => getComputedStyle(s, '::after').content)"
    page.wait_for_function(
        "() => getComputedStyle(document.querySelectorAll('#resolution label span')[0], '::after')"
        ".content.includes('544×960')"
    )
    sizes = page.eval_on_selector_all("#resolution label span", labels)
    assert "1080×1920" in sizes[2] and "≈" in sizes[2]
    page.click("#count label:has-text('3')")
    page.click("#draft")
    expect(page.locator("#status")).to_contain_text("3 drafts", timeout=60_000)
    thumbnails = page.locator("#drafts button.thumbnail-item")
    expect(thumbnails).to_have_count(3)
    thumbnails.nth(2).click()
    seed = models.base.calls[-1]["seed"]
    expect(page.locator("#large")).to_have_text(f"Make it large: seed {seed}")
    expect(page.locator(".uc-tag-left")).to_have_text(f"Draft 288×512, seed {seed}")
    expect(page.locator(".uc-divider")).to_be_hidden()
    page.wait_for_function("() => document.querySelector('.uc-over').videoHeight === 512")
    page.click("#large")
    expect(page.locator("#status")).to_contain_text(f"Done: 544p, seed {seed}", timeout=60_000)
    assert models.native.calls[-1]["seed"] == seed
    page.wait_for_function("() => document.querySelector('.uc-over').videoHeight === 960")
    expect(page.locator(".uc-divider")).to_be_visible()
    box = page.locator(".uc-stage").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(544 / 960, abs=0.01)


def test_another_kind_of_file_is_made_on_demand(page, tmp_path):
    page.locator("#examples button.thumbnail-item").first.click()
    page.wait_for_selector("#status .good")
    page.click("button:has-text('Plain players')")
    page.click("#kind label:has-text('GIF')")
    page.click("#convert")
    expect(page.locator("#download-size")).to_contain_text("native.gif: ", timeout=60_000)
    with page.expect_download() as download:
        page.locator("#download a").first.click()
    download.value.save_as(tmp_path / "native.gif")
    assert (tmp_path / "native.gif").read_bytes().startswith(b"GIF89a")


def test_a_seed_that_is_typed_is_used_and_an_empty_one_is_drawn(page, models):
    seeds = []
    for typed in ("7", "", ""):
        page.locator("#seed input[type=number]").fill(typed)
        page.keyboard.press("Tab")
        runs = len(models.native.calls)
        page.click("#generate")
        expect(page.locator("#generate")).to_be_disabled()
        expect(page.locator("#generate")).to_be_enabled(timeout=60_000)
        assert len(models.native.calls) == runs + 1
        seeds.append(models.native.calls[-1]["seed"])
        expect(page.locator("#status")).to_contain_text(f"seed {seeds[-1]}")
    assert seeds[0] == 7 and len(set(seeds)) == 3


def test_seconds_stand_beside_the_frames(page):
    expect(page.locator("#length")).to_contain_text("1.4 s at 12 a second")
    set_number(page, "#frames", 33)
    expect(page.locator("#length")).to_contain_text("2.8 s at 12 a second")
    page.click("button:has-text('Advanced settings')")
    page.click("#fps label:has-text('24 a second')")
    expect(page.locator("#length")).to_contain_text("1.4 s at 24 a second")


def test_the_native_clip_is_shown_before_the_base_clip_is_made(browser, tmp_path):
    slow = fake_models(delay=0.3)
    slow.native.delay = 0.0
    with served(slow, tmp_path) as address:
        page = browser.new_page(viewport=DESKTOP)
        page.goto(address)
        page.wait_for_selector("#estimate-card")
        page.click("#generate")
        page.wait_for_selector(".uc-alone[data-state=ready]", timeout=60_000)
        page.wait_for_function("() => document.querySelector('.uc-over').videoWidth === 960")
        expect(page.locator(".uc-divider")).to_be_hidden()
        expect(page.locator("#status")).to_contain_text("Base clip")
        page.wait_for_selector("#status .good", timeout=60_000)
        expect(page.locator(".uc-divider")).to_be_visible()
        page.close()


@pytest.mark.parametrize("button", ["#generate", "#draft"])
def test_a_full_queue_says_so_and_leaves_the_page_usable(page, monkeypatch, button):
    page.fill("#prompt textarea", "a calm lake")
    with monkeypatch.context() as patch:
        patch.setattr(call_places, "PLACES", 0)
        page.click(button)
        expect(page.get_by_text("all 0 places are taken")).to_be_visible()
        expect(page.locator("#generate")).to_be_enabled()
        expect(page.locator("#draft")).to_be_enabled()
        expect(page.locator("#cancel")).to_be_hidden()
        expect(page.locator("#status")).not_to_contain_text("Waiting")
    for toast in page.locator(".toast-close").all():
        toast.click()
    generate(page)
