from __future__ import annotations

import re

import pytest

from ultragen.world import captions
from ultragen.world.scene import ALLOWED, make_scene, sample_scene


def test_captions_follow_the_seeds():
    scene = sample_scene(4)
    assert captions.caption(scene, 1) == captions.caption(scene, 1)
    assert len({captions.caption(scene, seed) for seed in range(50)}) > 40


def test_captions_are_plain_and_of_the_right_length():
    known = set(captions.vocabulary())
    used = set()
    for seed in range(4000):
        text = captions.caption(sample_scene(seed), seed)
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", text), text
        words = re.findall(r"[a-z]+", text)
        assert 8 <= len(words) <= 40, text
        used |= set(words)
    assert used <= known
    assert len(known - used) < 10, sorted(known - used)


def test_vocabulary_is_sorted_and_moderate():
    words = captions.vocabulary()
    assert words == sorted(set(words))
    assert 200 < len(words) < 600


def test_vocabulary_knows_the_usual_prompt():
    prompt = "a calm lake under snowy mountains at sunset, the camera pans right"
    assert set(re.findall(r"[a-z]+", prompt)) <= set(captions.vocabulary())


ALWAYS = {
    "time_of_day": captions.TIMES,
    "weather": captions.WEATHERS,
    "water": captions.WATERS,
}


@pytest.mark.parametrize("name", ALWAYS)
def test_main_attributes_are_always_named(name):
    for value, phrases in ALWAYS[name].items():
        for seed in range(60):
            scene = make_scene(seed, **{name: value})
            text = captions.caption(scene, seed)
            assert any(phrase in text for phrase in phrases), (value, text)


@pytest.mark.parametrize("terrain", ALLOWED["terrain"])
def test_terrain_and_snow_are_always_named(terrain):
    for snow, table in (("no", captions.TERRAINS), ("yes", captions.SNOWY_TERRAINS)):
        for seed in range(40):
            scene = make_scene(seed, terrain=terrain, snow_caps=snow)
            text = captions.caption(scene, seed)
            assert any(phrase in text for phrase in table[terrain]), text


@pytest.mark.parametrize(
    ("name", "table", "share"),
    [
        ("camera", captions.CAMERAS, 0.7),
        ("trees", captions.TREES, 0.6),
        ("mood", captions.MOODS, 0.1),
        ("celestial", captions.BODIES, 0.5),
    ],
)
def test_other_attributes_are_usually_named(name, table, share):
    for value, phrases in table.items():
        texts = [captions.caption(make_scene(s, **{name: value}), s) for s in range(80)]
        named = sum(any(phrase in text for phrase in phrases) for text in texts)
        assert named >= share * len(texts), value


def test_different_scenes_are_described_differently():
    for name, values in ALLOWED.items():
        texts = [
            tuple(
                captions.caption(make_scene(2, **{"celestial": "sun", name: v}), s)
                for s in range(20)
            )
            for v in values
        ]
        assert len(set(texts)) == len(values), name


def test_a_pan_is_never_named_the_wrong_way():
    for seed in range(100):
        text = captions.caption(make_scene(seed, camera="pan right"), seed)
        assert not any(phrase in text for phrase in captions.CAMERAS["pan left"]), text


def test_placed_captions_name_the_side_of_every_sun_and_moon():
    for seed in range(400):
        scene = sample_scene(seed)
        if scene.attributes.celestial == "none":
            continue
        text = captions.caption(scene, seed, placed=True)
        bodies = captions.BODIES[scene.attributes.celestial]
        [body] = [x for x in text.split(", ") if x.startswith(bodies)]
        assert any(x in body for x in captions.SIDES[scene.attributes.celestial_side]), text


def test_placing_changes_nothing_where_there_is_nothing_to_place():
    for seed in range(100):
        scene = make_scene(seed, celestial="none")
        assert captions.caption(scene, seed, placed=True) == captions.caption(scene, seed)
