"""What the page offers for a prompt, and says of it; where its links lead."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import httpx
import pytest
from fakes import fake_models, served
from paths import ROOT

from ultragen.presets import EMBEDDED, WAN
from ultragen.sampling.words import find_unknown_words
from ultragen.training.vocabulary import build_tokenizer
from ultragen.web import about, views
from ultragen.web.components import negative_info
from ultragen.web.results import load_examples, load_opening
from ultragen.web.suggestions import NEAREST, name_unknown_words, panel, surprise
from ultragen.world import captions
from ultragen.world.scene import ALLOWED

TOKENIZER = build_tokenizer(captions.vocabulary(), EMBEDDED.max_sequence_length)


@pytest.fixture(scope="module")
def models():
    """Whose prompts are read as the embedded model reads them."""
    made = fake_models()
    made.native.unknown_words = lambda prompt: find_unknown_words(TOKENIZER, prompt)
    return made


def said(models, prompt: str) -> str:
    """What is said of a prompt, without its markup."""
    return unescape(re.sub("<[^>]+>", "", name_unknown_words(models, prompt)))


def test_every_value_of_an_attribute_is_a_phrase_to_click():
    groups = dict(re.findall(r'data-attribute="(\w+)".*?</legend>(.*?)</fieldset>', panel()))
    for name, attribute in (
        ("Time", "time_of_day"),
        ("Weather", "weather"),
        ("Terrain", "terrain"),
        ("Camera", "camera"),
    ):
        assert groups[name].count("<button") == len(ALLOWED[attribute]), name
    assert groups["Water"].count("<button") == len(ALLOWED["water"]) - 1  # there may be none


def test_a_surprise_has_only_words_that_the_model_knows():
    prompts = {surprise("") for _ in range(50)}
    assert len(prompts) > 40
    assert all(find_unknown_words(TOKENIZER, prompt) == [] for prompt in prompts)


def test_what_is_nearest_is_known_and_what_has_it_is_not():
    for word, phrases in NEAREST.items():
        assert find_unknown_words(TOKENIZER, word) == [word]
        assert find_unknown_words(TOKENIZER, phrases[0]) == []


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
