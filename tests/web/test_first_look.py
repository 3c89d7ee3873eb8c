"""The first minute on the page, in a real browser, also without a mouse or without seeing it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import measure_page
import pytest
from browsers import DESKTOP, PHONE, generate
from fakes import fake_models, served

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

TABLET = {"width": 768, "height": 1024}
DETAIL = """() => [...document.querySelectorAll('.uc-loupe canvas')].map(canvas => {
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let change = 0;
    for (let i = canvas.width * 4; i < data.length; i += 4)
        change += Math.abs(data[i] - data[i - canvas.width * 4]);
    return change / (canvas.width * canvas.height);
})"""
VISIBLE = """element => { const box = element.getBoundingClientRect();
    return box.top >= -1 && box.bottom <= innerHeight + 1; }"""


@pytest.fixture(scope="module")
def models():
    return fake_models()


@pytest.fixture(scope="module")
def url(models, tmp_path_factory):
    with served(models, tmp_path_factory.mktemp("runs")) as address:
        yield address


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """The page of a model of the world's second edition."""
    models = fake_models()
    models.native.edition = 2
    models.native.unknown_words = lambda prompt: []
    with served(models, tmp_path_factory.mktemp("grown")) as address:
        yield address


@pytest.fixture
def look(browser, url):
    """Opens the page on a screen; fails if its scripts did."""
    contexts, errors = [], []

    def open_page(viewport=DESKTOP, theme="light", address=url, **options):
        contexts.append(browser.new_context(viewport=viewport, color_scheme=theme, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/?__theme={theme}")
        page.wait_for_selector("#estimate-card")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def prompt(page) -> str:
    return page.input_value("#prompt textarea")


# The example that it opens with


def test_it_opens_with_an_example_that_plays_under_the_loupe(look, models):
    runs = len(models.native.calls)
    page = look()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.uc-stage video')]"
        ".every(v => !v.paused && v.currentTime > 0.2)"
    )
    expect(page.locator(".uc-loupe")).to_be_visible()
    expect(page.locator(".uc-zoom")).to_have_text("Loupe 1:1")
    expect(page.locator(".uc-tag-left")).to_contain_text("native 1920×1080")
    page.locator(".uc-seek").fill("8")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.uc-stage video')]"
        ".every(v => v.paused && !v.seeking && v.readyState >= 2)"
    )
    page.wait_for_timeout(200)  # the loupe follows with the next picture
    native, upscaled = page.evaluate(DETAIL)
    assert native > 2 * upscaled > 0  # that is why it was chosen
    assert page.get_attribute(".uc-over", "poster").endswith("poster.jpg")
    assert len(models.native.calls) == runs


def test_it_rests_while_a_run_computes_also_after_a_reload(browser, tmp_path):
    with served(fake_models(delay=3.0), tmp_path) as url:
        page = browser.new_page(viewport=DESKTOP)
        page.goto(url)
        page.wait_for_function("() => document.querySelector('.uc-over')?.paused === false")
        page.click("#generate")
        for _ in range(2):
            page.wait_for_selector("#status [role=progressbar]", timeout=20_000)
            page.wait_for_function("() => document.querySelector('.uc-over').paused")
            expect(page.locator(".uc-loupe")).to_be_visible()  # it comes with the example only
            page.reload()
        page.click("#cancel")
        page.close()


def test_who_dislikes_motion_sees_it_stand_still(look):
    page = look(reduced_motion="reduce")
    page.wait_for_function("() => document.querySelector('.uc-over').readyState >= 2")
    page.wait_for_timeout(300)
    assert page.eval_on_selector(".uc-over", "video => video.paused")
    moving = page.evaluate(
        "() => [...document.querySelectorAll('#frame *')].filter(element =>"
        " parseFloat(getComputedStyle(element).transitionDuration) > 0).length"
    )
    assert moving == 0


def test_on_a_phone_the_player_is_within_a_screen_and_a_half(look):
    page = look(PHONE, has_touch=True, is_mobile=True)
    for part in ("h1", "#prompt", "#generate", ".uc"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= 1.5 * PHONE["height"], part


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_choosing_an_example_brings_it_into_view(look, viewport):
    page = look(viewport)
    before = page.get_attribute(".uc-over", "src")
    page.get_by_role("button", name="northern lights above a still lake").first.click()
    page.wait_for_function(
        "before => document.querySelector('.uc-over').getAttribute('src') !== before", arg=before
    )
    page.wait_for_function(f"() => ({VISIBLE})(document.querySelector('.uc'))")
    assert prompt(page).startswith("northern lights")
    expect(page.locator(".uc-loupe")).to_be_hidden()  # it was there for the first one


@pytest.mark.parametrize("viewport", [DESKTOP, TABLET, PHONE], ids=["1400", "768", "390"])
def test_nothing_covers_thumbnails_and_nothing_hangs_out(look, viewport):
    page = look(viewport)
    wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    covered = page.evaluate(
        """() => [...document.querySelectorAll('#examples .thumbnail-item img')].filter(image => {
            const box = image.getBoundingClientRect();
            return [0.1, 0.5, 0.9].some(part => {
                image.scrollIntoView({block: 'center'});
                const now = image.getBoundingClientRect();
                const at = [now.left + now.width * part, now.top + now.height * part];
                return document.elementFromPoint(...at) !== image;
            });
        }).length"""
    )
    assert page.locator("#examples .thumbnail-item img").count() == 6
    assert covered == 0


def test_links_lead_somewhere(look, url):
    page = look()
    paper, *own = page.eval_on_selector_all(".ug-links a", "all => all.map(a => a.href)")
    assert paper == "https://arxiv.org/abs/2510.18775"
    texts = [page.request.get(address) for address in own]
    assert all(answer.headers["content-type"].startswith("text/plain") for answer in texts)
    readme, licence, vocabulary = (answer.text() for answer in texts)
    assert "git clone" in readme and "Apache License" in licence
    assert "What prompts may say" in vocabulary
    assert page.locator(".ug-model p").is_hidden()
    page.click(".ug-model summary")
    expect(page.locator(".ug-model p")).to_contain_text("parameters")


def test_what_a_visitor_waits_for_is_measured(browser, url):
    look = measure_page.first_look(browser, url)
    assert look["before a clip plays, MB"] < 3 < look["with both clips, MB"] < 5
    assert 0 < look["largest paint, s"] < 10  # its bar is for a machine that does nothing else
    answers = measure_page.settings_times(browser, url)
    assert len(answers) == 2 and all(0 < milliseconds < 1000 for milliseconds in answers.values())


# The prompt


def test_phrases_are_added_exchanged_and_taken_away(look):
    page = look()
    page.fill("#prompt textarea", "a calm lake under snowy mountains at sunset")
    page.click(".ug-opener:has-text('Weather')")
    page.click(".ug-chip:text-is('fog')")
    assert prompt(page) == "a calm lake under snowy mountains at sunset, fog"
    page.click(".ug-chip:text-is('rain')")
    assert prompt(page) == "a calm lake under snowy mountains at sunset, rain"
    expect(page.locator(".ug-chip:text-is('rain')")).to_have_attribute("aria-pressed", "true")
    page.click(".ug-chip:text-is('rain')")
    assert prompt(page) == "a calm lake under snowy mountains at sunset"
    page.click(".ug-opener:has-text('Terrain')")
    expect(page.locator("#ug-weather")).to_be_hidden()
    page.click(".ug-chip:text-is('mountains')")  # "under" hangs on them
    assert prompt(page) == "a calm lake under snowy mountains at sunset"
    page.click(".ug-chip:text-is('dunes')")
    page.click(".ug-opener:has-text('Time')")
    page.click(".ug-chip:text-is('at sunset')")
    assert prompt(page) == "a calm lake under dunes"
    page.fill("#prompt textarea", "")
    page.click(".ug-opener:has-text('Camera')")
    page.click(".ug-chip:text-is('pans left')")
    assert prompt(page) == "the camera pans left"


def test_a_phrase_within_a_longer_one_is_not_exchanged(look, grown):
    page = look(address=grown)
    page.fill("#prompt textarea", "sand dunes on a winter night, as the sun sets")
    page.click(".ug-opener:has-text('Season')")
    page.click(".ug-chip:text-is('summer')")
    assert prompt(page) == "sand dunes on a summer night, as the sun sets"
    page.click(".ug-opener:has-text('Ground')")
    expect(page.locator(".ug-chip[aria-pressed=true]:visible")).to_have_count(0)
    page.click(".ug-chip:text-is('rocks')")
    assert prompt(page) == "sand dunes on a summer night, as the sun sets, rocks"
    page.click(".ug-opener:has-text('Light')")
    page.click(".ug-chip:text-is('a huge moon')")
    page.click(".ug-chip:text-is('without sun or moon')")
    assert prompt(page).endswith("as the sun sets, rocks, without sun or moon")
    expect(page.locator("#words")).to_be_empty()


def test_a_surprise_is_another_prompt_each_time(look):
    page = look()
    seen = {prompt(page)}
    for _ in range(3):
        page.click(".ug-surprise")
        now = list(seen)
        page.wait_for_function(
            "seen => !seen.includes(document.querySelector('#prompt textarea').value)", arg=now
        )
        seen.add(prompt(page))
    assert all(seen)


def test_control_and_enter_run_it(look, models):
    page = look()
    expect(page.locator("#prompt")).to_contain_text("Ctrl + Enter")
    page.fill("#prompt textarea", "a calm lake at sunset")
    page.press("#prompt textarea", "Enter")  # a new line
    page.press("#prompt textarea", "Backspace")
    page.press("#prompt textarea", "Control+Enter")
    page.wait_for_selector("#status .good", timeout=60_000)
    assert models.native.calls[-1]["prompt"] == "a calm lake at sunset"


def test_unknown_words_come_with_what_is_nearest(look):
    page = look()
    page.fill("#prompt textarea", "a calm river under mountains")
    page.click("#words .ug-use:text-is('lake')")
    assert prompt(page) == "a calm lake under mountains"
    page.fill("#prompt textarea", "neon city")
    expect(page.locator("#words")).to_contain_text("This model draws landscapes")
    page.click("#words li .ug-use >> nth=0")
    assert prompt(page) == "dark pine hills at night, a full moon"


def test_the_end_that_is_not_read_is_shown(look):
    page = look()
    page.fill("#prompt textarea", "a calm lake " * 21 + "under snowy mountains")
    expect(page.locator("#words")).to_contain_text("reads 64 words and commas")
    expect(page.locator("#words mark").last).to_have_text("snowy mountains")


def test_a_negative_prompt_says_when_it_does_nothing(look):
    page = look()
    page.click("button:has-text('Advanced settings')")
    expect(page.locator("#negative")).to_contain_text("What to lead away from")
    field = page.locator("#guidance input[type=number]")
    field.fill("1")
    field.press("Tab")
    expect(page.locator("#negative")).to_contain_text("Does nothing while Guidance is 1")


def test_prompts_to_try_are_others_than_the_examples(look):
    page = look()
    offered = page.locator(".gallery button.gallery-item").all_inner_texts()
    shown = page.locator("#examples .caption-label").all_inner_texts()
    assert len(offered) == len(shown) == 6
    assert not any(prompt[:20] in caption for prompt in offered for caption in shown)


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_rows_of_choices_are_full(look, grown, viewport):
    page = look(viewport)
    rows = page.eval_on_selector_all(
        "#resolution label", "all => all.map(each => each.getBoundingClientRect().right)"
    )
    assert rows[2] == pytest.approx(rows[4], abs=1)
    for each, full in ((page, 2), (look(viewport, address=grown), 4)):
        lines = each.eval_on_selector_all(
            ".ug-openers button", "all => all.map(each => each.getBoundingClientRect())"
        )
        assert all(line["height"] < 36 for line in lines)  # each is one line of text
        assert list(Counter(round(line["top"]) for line in lines).values()) == [3] * full


# For everybody


def axe() -> str:
    """axe-core, to be run on a page."""
    package = pytest.importorskip("axe_playwright_python")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def open_everything(page) -> None:
    page.eval_on_selector_all(
        ".gr-accordion > button[aria-expanded=false]", "all => all.forEach(each => each.click())"
    )
    page.click(".ug-model summary")
    page.click(".ug-opener:has-text('Weather')")
    page.fill("#prompt textarea", "a zorgon at a calm lake")
    page.wait_for_selector("#words mark")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(look, viewport, theme):
    page = look(viewport, theme)
    page.wait_for_selector(".gr-accordion > button.label-wrap[aria-expanded=false]")
    open_everything(page)
    page.click(".uc-play")
    page.wait_for_timeout(500)  # colours fade in
    assert serious_findings(page) == []


def serious_findings(page) -> list[str]:
    page.evaluate(axe())
    return [
        f"{found['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for found in page.evaluate("async () => (await axe.run()).violations")
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_after_a_run_and_a_mistake(look, theme):
    page = look(theme=theme)
    generate(page)
    page.wait_for_selector("#recent button.thumbnail-item")
    page.click(".uc-play")
    assert serious_findings(page) == []
    page.fill("#prompt textarea", " ")
    page.click("#generate")
    page.wait_for_selector("#status .bad")
    assert serious_findings(page) == []


def test_groups_and_buttons_have_names(look):
    page = look()
    sizes = page.get_by_role("radiogroup", name="Resolution, and what it takes here")
    expect(sizes.get_by_role("radio")).to_have_count(5)
    advanced = page.get_by_role("button", name="Advanced settings")
    expect(advanced).to_have_attribute("aria-expanded", "false")
    advanced.click()
    expect(advanced).to_have_attribute("aria-expanded", "true")
    example = page.get_by_role("button", name="dark pine hills at night, a full moon (2 of 6)")
    expect(example).to_have_count(1)
    expect(page.get_by_role("button", name="Reset Frames")).to_have_count(1)
    expect(page.get_by_role("group", name="Add to the prompt")).to_have_count(1)


def test_choices_are_gone_through_by_arrow_keys(look):
    page = look()
    sizes = page.get_by_role("radiogroup", name="Resolution")
    sizes.get_by_role("radio").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")  # as fast as that
    assert page.evaluate("() => document.activeElement.closest('#aspect') !== null")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("() => document.activeElement.value") == "720p"
    expect(sizes.locator("label:has(input:checked)")).to_contain_text("720p")
    expect(page.locator("#drawing")).to_contain_text("20 × 12 tokens")
    assert page.evaluate("() => document.activeElement.value") == "720p"  # not drawn anew


def test_the_player_is_led_by_keys_alone(look):
    page = look()
    page.wait_for_function("() => document.querySelector('.uc-over').readyState >= 2")
    page.focus("#generate")
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("() => document.activeElement.className"))
    stage = ["uc-stage", "uc-divider", "uc-play", "uc-back", "uc-next", "uc-seek", "uc-speed"]
    assert seen[:9] == [*stage, "uc-zoom", "uc-full"]
    page.focus(".uc-stage")
    page.keyboard.press(" ")
    page.wait_for_function("() => document.querySelector('.uc-over').paused")
    before = page.locator(".uc-loupe").bounding_box()
    page.keyboard.press("Shift+ArrowLeft")
    assert page.locator(".uc-loupe").bounding_box()["x"] < before["x"]
    page.focus(".uc-zoom")
    page.keyboard.press("Enter")
    expect(page.locator(".uc-zoom")).to_have_text("Loupe 2:1")
    page.focus(".uc-divider")
    page.keyboard.press("Home")
    expect(page.locator(".uc-divider")).to_have_attribute("aria-valuetext", "0 % native")
