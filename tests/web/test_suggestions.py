"""What the page offers for a prompt, and says of it; where its links lead."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape

import httpx
import pytest
from fakes import fake_models, served
from paths import ROOT

import app
from ultragen.presets import EMBEDDED, WAN
from ultragen.sampling.words import find_unknown_words
from ultragen.training.vocabulary import build_tokenizer
from ultragen.web import about, views
from ultragen.web.components import negative_info
from ultragen.web.results import load_examples, load_opening
from ultragen.web.suggestions import NEAREST, name_unknown_words, panel, surprises
from ultragen.world import captions
from ultragen.world.scene import EDITIONS, allowed_values

TOKENIZERS = {
    edition: build_tokenizer(captions.vocabulary(edition), EMBEDDED.max_sequence_length)
    for edition in EDITIONS
}


def models_of(edition: int):
    """Whose prompts are read as an embedded model of an edition of the world reads them."""
    made = fake_models()
    made.native.edition = edition
    made.native.unknown_words = lambda prompt: find_unknown_words(TOKENIZERS[edition], prompt)
    return made


@pytest.fixture(scope="module")
def models():
    return models_of(1)


@pytest.fixture(scope="module")
def grown():
    return models_of(2)


def said(models, prompt: str) -> str:
    """What is said of a prompt, without its markup."""
    return unescape(re.sub("<[^>]+>", "", name_unknown_words(models, prompt)))


def groups_of(edition: int) -> dict[str, list[list[str]]]:
    """Of each attribute that is offered, the wordings of each phrase to click."""
    groups = re.findall(r'data-attribute="(\w+)".*?</legend>(.*?)</fieldset>', panel(edition))
    return {
        name: [json.loads(unescape(x)) for x in re.findall('data-wordings="(.*?)"', buttons)]
        for name, buttons in groups
    }


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_value_of_an_attribute_is_a_phrase_to_click(edition):
    groups, allowed = groups_of(edition), allowed_values(edition)
    for name, attribute in (
        ("Time", "time_of_day"),
        ("Weather", "weather"),
        ("Terrain", "terrain"),
        ("Camera", "camera"),
    ):
        assert len(groups[name]) == len(allowed[attribute]), name
    assert len(groups["Water"]) == len(allowed["water"]) - 1  # there may be none


def test_the_second_edition_offers_more_attributes():
    assert list(groups_of(1)) == ["Time", "Weather", "Terrain", "Water", "Camera"]
    groups, allowed = groups_of(2), allowed_values(2)
    for name, attribute in (("Trees", "trees"), ("Mood", "mood")):
        assert len(groups[name]) == len(allowed[attribute]), name
    for name, attribute in (("Season", "season"), ("Ground", "near_ground")):
        assert len(groups[name]) == len(allowed[attribute]) - 1, name
    first = {name: [wordings[0] for wordings in group] for name, group in groups.items()}
    assert first["Season"] == ["summer", "winter"]
    assert first["Sky"] == ["a pink sky", "a violet sky", "a black sky", "stars", "no stars"]
    assert {"a river", "a frozen lake"} < set(first["Water"])
    assert {"a storm", "haze", "mist"} < set(first["Weather"])
    assert {"a forest", "a tree", "no trees"} < set(first["Trees"])
    assert "a huge moon" in first["Light"] and "a valley" in first["Terrain"]


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_model_knows_every_word_that_it_is_offered(edition):
    for group in groups_of(edition).values():
        for wording in (wording for wordings in group for wording in wordings):
            assert find_unknown_words(TOKENIZERS[edition], wording) == [], wording


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_surprise_has_only_words_that_the_model_knows(edition):
    surprise = surprises(edition)
    assert surprise.__name__ == "surprise"  # by which the page's script calls it
    prompts = {surprise("") for _ in range(50)}
    assert len(prompts) > 40
    assert all(find_unknown_words(TOKENIZERS[edition], prompt) == [] for prompt in prompts)
    grown = [prompt for prompt in prompts if find_unknown_words(TOKENIZERS[1], prompt)]
    assert bool(grown) == (edition == 2)


@pytest.mark.parametrize("edition", EDITIONS)
def test_what_is_nearest_is_known_and_what_has_it_is_not(edition):
    for word, phrases in NEAREST[edition].items():
        assert find_unknown_words(TOKENIZERS[edition], word) == [word]
        assert find_unknown_words(TOKENIZERS[edition], phrases[0]) == []


def test_the_page_offers_what_its_model_knows(grown, tmp_path):
    for models, offered in ((fake_models(), False), (grown, True)):
        blocks = app.Page(models, tmp_path).build()
        [found] = [x for x in blocks.blocks.values() if x.elem_id == "suggestions"]
        assert ('id="ug-season"' in found.value) == offered
        assert found.get_config()["server_fns"] == ["surprise"]
        words = " ".join(found.surprise("") for _ in range(50))
        assert bool(find_unknown_words(TOKENIZERS[1], words)) == offered


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a calm lake under snowy mountains", ""),
        ("a hill over snow-capped mountains, a tree", ""),
        ("a dragon at a lake", "does not know this word: dragon"),
        ("a calm mountian and rivers", "mountian → mountain, rivers → lake"),
        ("zorgons", "draws landscapes, and knows no word of this prompt: zorgons"),
        ("over the city by the river", "knows no word of this prompt: city river. Nearest: a lake"),
        ("a beach in a storm", "Nearest: the sea, rain"),
        ("a lake " + "zorgon9 " * 3 + " ".join(f"zorgon{n}x" for n in range(14)), "and 3 more"),
        ("", ""),
        ("🏔️ !!", ""),
    ],
)
def test_what_the_model_does_not_know_is_named(models, prompt, words):
    text = said(models, prompt)
    assert words in text
    assert bool(words) == bool(text)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a river through a valley, a storm in winter, stars over the shore of a beach", ""),
        ("a single tree in a meadow", ""),
        ("a dragon at a river", "does not know this word: dragon"),
        ("a glacier in a vallley, mountains", "glacier → frozen lake, vallley → valley"),
        ("lightning", "knows no word of this prompt: lightning. Nearest: a storm."),
    ],
)
def test_a_model_of_the_second_edition_knows_more(grown, prompt, words):
    text = said(grown, prompt)
    assert words in text
    assert bool(words) == bool(text)


def test_the_end_of_a_long_prompt_is_named(models):
    text = said(models, "a calm lake " * 30)
    assert "reads 64 words and commas" in text
    assert "the end: calm lake a calm lake a calm lake … lake a calm lake" in text
    larger = replace(models, preset=WAN)
    assert "pieces of words" in said(larger, "a calm lake " * 25)


def test_guidance_of_one_is_said_to_leave_a_negative_prompt_without_effect():
    assert "nothing" in negative_info(1)
    assert "nothing" in negative_info(0.5)
    assert "lead away" in negative_info(1.1)


# The opening


def test_the_shipped_examples_have_the_one_that_the_page_opens_with():
    folder = ROOT / "docs" / "examples"
    examples = load_examples(folder)
    opening = load_opening(folder, examples)
    assert opening.example in examples
    assert all(0 < part < 1 for part in opening.loupe)
    # Both halves of each are one scene only if their noise comes from one spectrum.
    assert {example.metadata["request"]["noise"] for example in examples} == {"spectral"}


def test_without_such_an_example_the_page_opens_empty(tmp_path):
    assert load_opening(tmp_path, []) is None
    (tmp_path / "opening.json").write_text('{"example": "gone", "loupe": [0.5, 0.5]}')
    assert load_opening(tmp_path, []) is None


# Links


def test_a_space_links_to_its_own_files(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/ultragen")
    assert about.links()["Code"] == "https://huggingface.co/spaces/someone/ultragen/tree/main"
    assert "spaces/someone/ultragen" in views.header("<b>A model</b>")
    monkeypatch.delenv("SPACE_ID")
    assert about.links()["Code"] == "about/readme"


def test_only_the_named_files_are_served(tmp_path):
    with served(fake_models(), tmp_path) as url:
        assert httpx.get(f"{url}/about/licence").text == (ROOT / "LICENSE").read_text()
        for name in ("app.py", "..%2fapp.py", "licence/../../app.py"):
            assert (
                "import" not in httpx.get(f"{url}/about/{name}", follow_redirects=True).text[:400]
            )
