"""Prompts of a model that knows some words: alike to a reader, alike to the model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultragen.presets import PROMPTS
from ultragen.sampling.prompts import as_read, find_unread
from ultragen.sampling.words import (
    STOP_WORDS,
    find_edition,
    find_unknown_words,
    reads_words,
    spell_as_known,
)
from ultragen.training.vocabulary import build_tokenizer
from ultragen.world.captions import caption, vocabulary
from ultragen.world.scene import sample_scene

LENGTH = 64
WORDS = vocabulary()
TOKENIZER = build_tokenizer(WORDS, LENGTH)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("a hill", "a hills"),
        ("Trees, a TREE, a cliff", "Trees, a trees, a cliffs"),
        ("skies above two oceans", "sky above two ocean"),
        ("the mountain's peak", "the mountain peaks"),
        ("snow-capped mountains", "snow capped mountains"),
        ("snow\u2011capped, snow\u2010covered", "snow capped, snow covered"),
        ("a sun-set", "a sunset"),
        ("snow-dusted hill", "snow dusted hills"),
        ("moun\u00adtains", "mountains"),
        ("calm\u200blake", "calm lake"),
        ("a \ufeffcalm\u200b lake\u2060", "a calm lake"),
    ],
)
def test_what_reads_alike_is_read_alike(typed, read):
    assert spell_as_known(TOKENIZER, typed) == read
    assert as_read(TOKENIZER, typed) == read


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a hill over the water, through trees", []),
        ("over and over", []),
        ("a lake without birds", ["without"]),
        ("the camera looks down", ["looks", "down"]),
        ("a doe", ["doe"]),  # no singular of "does"
        ("snow-dusted hills, a dragon's lair", ["dusted", "dragon's", "lair"]),
        ("zor\u200bgon", ["zorgon"]),
    ],
)
def test_words_are_named_that_say_something_and_are_not_known(prompt, unknown):
    assert find_unknown_words(TOKENIZER, prompt) == unknown


@pytest.mark.parametrize(
    ("words", "edition"),
    [
        (vocabulary(), 1),
        (vocabulary(2), 2),
        ([*vocabulary(2), "zorgon"], 2),
        (vocabulary(2)[:-1], 2),  # trained before that word was added
        ([*vocabulary(), *sorted(set(vocabulary(2)) - set(vocabulary()))[:9]], 1),
        (("a", "lake"), 1),
    ],
)
def test_a_model_is_of_the_edition_whose_words_it_knows(words, edition):
    assert find_edition(build_tokenizer(words, LENGTH)) == edition


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), min_size=1), st.sampled_from([" ", ", ", " - ", "! ", "  "])
)
def test_a_prompt_of_known_words_stays_as_it_is(words, between):
    prompt = between.join(words)
    assert spell_as_known(TOKENIZER, prompt) == prompt
    assert spell_as_known(TOKENIZER, prompt.upper()) == prompt.upper()


def test_prompts_of_before_stay_as_they_are():
    captions = [caption(sample_scene(seed), seed) for seed in range(200)]
    for prompt in (*PROMPTS, *captions, "", "山 🏔️"):
        assert spell_as_known(TOKENIZER, prompt) == prompt


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ailsnow'’-\u00ad\u200b\u2011 ,.ЁI", max_size=60))
def test_any_text_is_spelt_once_and_for_all(text):
    spelt = spell_as_known(TOKENIZER, text)
    assert spell_as_known(TOKENIZER, spelt) == spelt
    assert not set(find_unknown_words(TOKENIZER, text)) & {*WORDS, *STOP_WORDS}


def test_a_tokenizer_of_pieces_gets_prompts_as_they_are_typed():
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    pieces = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>")),
        unk_token="<unk>",
    )
    assert reads_words(TOKENIZER) and not reads_words(pieces)
    assert spell_as_known(pieces, "a snow-capped hill\u200b") == "a snow-capped hill\u200b"
    pieces.add_tokens(vocabulary(2))
    assert find_edition(pieces) == 1  # no caption taught it these


@pytest.mark.parametrize(
    ("clauses", "rest"), [(15, ""), (16, "calm lake"), (17, "calm lake, a calm lake")]
)
def test_what_is_not_read_is_found(clauses, rest):
    """Three words and a comma each, and one token for the end."""
    prompt = ", ".join(["a calm lake"] * clauses)
    assert find_unread(TOKENIZER, prompt, 62) == rest
    shown = TOKENIZER(prompt, max_length=62, truncation=True).input_ids
    assert (len(TOKENIZER(prompt).input_ids) > len(shown)) == bool(rest)
