"""The grammar of the second edition."""

from __future__ import annotations

import re

import pytest

from ultragen.world import grown_captions as grammar
from ultragen.world.captions import caption, vocabulary, weather_phrases
from ultragen.world.grown_captions import describe
from ultragen.world.heldout import HeldOutClip, held_out_clips
from ultragen.world.scene import sample_scene

ASKED = (  # what newcomers wrote and the first edition did not know
    "over above below stars snow-capped tree shore river valley ridge peak storm pink violet black "
    "haze mist summer winter without out huge reflection meadow forest frozen overcast hill hills "
    "mountain mountains lake beach flowers grass"
)
SEEDS = range(2500)


def test_captions_are_plain_and_of_the_right_length():
    known, used = set(vocabulary(2)), set()
    for seed in SEEDS:
        text = caption(sample_scene(seed, 2), seed)
        assert re.fullmatch(r"[a-z]+(-[a-z]+)?(,? [a-z]+(-[a-z]+)?)*", text), text
        assert 8 <= len(text.split()) <= 40, text
        used |= set(re.findall(r"[a-z]+|-", text))
    assert used <= known
    assert len(known - used) < 12, sorted(known - used)


def test_old_words_keep_their_places():
    old, new = vocabulary(), vocabulary(2)
    assert new[: len(old)] == old
    assert len(set(new)) == len(new) > len(old) + 80
    assert set(re.findall(r"[a-z]+|-", ASKED)) <= set(new)


def test_captions_follow_the_seeds():
    scene = sample_scene(4, 2)
    assert caption(scene, 1) == caption(scene, 1)
    assert len({caption(scene, seed) for seed in range(50)}) > 40
    with pytest.raises(ValueError, match="edition 1, not 2"):
        describe(sample_scene(4), 1)


def clauses(text: str) -> list[str]:
    return text.split(", ")


def test_what_is_always_named_and_what_a_name_means():
    tables = {
        "trees": grammar.TREES,
        "sky": grammar.SKIES,
        "weather": grammar.WEATHERS,
    }
    for seed in SEEDS:
        scene = sample_scene(seed, 2)
        found = describe(scene, seed)
        assert {"time_of_day", "terrain", "weather", "water"} <= found.names
        for name, table in tables.items():
            said = any(phrase in found.text for phrase in table[getattr(scene.attributes, name)]
                       ) if getattr(scene.attributes, name) in table else False  # fmt: skip
            assert said or name not in found.names, (name, found)
        assert any(x in clauses(found.text) for x in weather_phrases(scene)), found.text


def test_negations_are_true():
    """Nothing is denied that is there, and everything that can be denied is at times."""
    denied = set()
    for seed in SEEDS:
        scene = sample_scene(seed, 2)
        a, said = scene.attributes, clauses(caption(scene, seed))
        absent = {
            "sun or moon": (*grammar.HIDDEN["day"], *grammar.HIDDEN["night"]),
            "trees": grammar.TREES["none"],
            "clouds": ("no clouds", "without clouds", "without a cloud"),
            **grammar.ABSENT,
        }
        there = {
            "sun or moon": a.celestial != "none",
            "trees": a.trees != "none",
            "clouds": a.weather != "clear",
            "birds": a.birds == "yes",
            "snow": a.snow_caps == "yes" or a.season == "winter" or a.weather == "snowfall",
            "water": a.water != "none",
            "stars": a.weather in ("clear", "scattered", "aurora"),
        }
        for thing, phrases in absent.items():
            if any(phrase in said for phrase in phrases):
                denied.add(thing)
                assert not there[thing], (thing, said)
    assert denied == set(there)


def test_bodies_and_seasons_are_those_of_the_scene():
    for seed in SEEDS:
        a, text = (scene := sample_scene(seed, 2)).attributes, caption(scene, seed)
        words = set(re.findall(r"[a-z]+", text))
        assert not (a.celestial == "sun" and words & {"moon", "moonlight", "moonlit"}), text
        assert not words & {"huge", "giant", "enormous"} or a.celestial_size == "huge", text
        for season in ("summer", "winter"):
            assert season not in words or a.season == season, text
        assert "frozen" not in words or a.water == "ice", text
        assert "river" not in words or a.water == "river", text


def test_placed_captions_name_the_side_of_every_sun_and_moon():
    for seed in range(400):
        scene = sample_scene(seed, 2)
        found = describe(scene, seed, placed=True)
        assert scene.attributes.celestial == "none" or "celestial_side" in found.names


def test_held_out_clips_of_the_second_edition():
    first, second = held_out_clips(40), held_out_clips(40, edition=2)
    assert [x.seed for x in first] == [x.seed for x in second]
    assert first[0].world != second[0].world and first[0].caption != second[0].caption
    for case in second:
        assert case.named["terrain"] == case.scene.attributes.terrain
        assert all(getattr(case.scene.attributes, k) == v for k, v in case.named.items())
    assert any("season" in case.named for case in second)
    assert HeldOutClip(sample_scene(3, 2)).frames(48, 64, 2).shape == (2, 48, 64, 3)
