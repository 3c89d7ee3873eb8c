"""Describes scenes in plain English: a grammar with many synonyms and word orders.

Captions use lower case letters, spaces and commas only. Whatever a caption says is true of the
scene; it always names the time of day, the terrain, the weather and the water.
"""

from __future__ import annotations

import random
import re

from . import grown_captions
from .phrases import (
    ALTITUDES,
    BIRDS,
    BODIES,
    CAMERAS,
    ISLAND_LAND,
    LIGHT_ONLY,
    MOODS,
    OPENINGS,
    SIDES,
    SNOWY_TERRAINS,
    TERRAINS,
    TIMES,
    TREES,
    WATERS,
    WEATHERS,
    WET_LAND,
    arranged,
    often,
    shuffled,
)
from .scene import Scene, SceneAttributes, allowed_values


def caption(scene: Scene, seed: int, placed: bool = False) -> str:
    """A sentence of 8 to 40 words about a scene; the same seed gives the same sentence.

    Args:
        scene: What is described.
        seed: What the wording follows.
        placed: Whether to always name the side of a sun or moon that is there, which otherwise
            happens in one of two captions.
    """
    if scene.edition == 2:
        return grown_captions.describe(scene, seed, placed).text
    chance = random.Random(seed * 1_000_003 + scene.seed)
    attributes = scene.attributes
    opening, land = chance.choice(OPENINGS), _land(chance, attributes)
    time = chance.choice(TIMES[attributes.time_of_day])
    details = _details(chance, attributes, placed)
    camera = often(chance, 0.9, chance.choice(CAMERAS[attributes.camera]))
    style = chance.random()
    text = arranged(chance, style, opening + land, time, details, camera)
    if len(text.split()) > 40:
        text = arranged(chance, style, land, time, details[:4], camera)
    fillers = [*CAMERAS[attributes.camera][:1], "a landscape", "outdoors", "nature"]
    while len(text.split()) < 8:
        filler = fillers.pop(0)
        text = text if filler in text else f"{text}, {filler}"
    return text


def vocabulary(edition: int = 1) -> list[str]:
    """All words that captions of an edition can contain: the first one's sorted, and behind them
    those that the second one adds, so that a word keeps its place.

    Raises:
        ValueError: There is no such edition.
    """
    allowed_values(edition)
    tables = (TIMES, TERRAINS, SNOWY_TERRAINS, WATERS, WET_LAND, WEATHERS, BODIES, ALTITUDES,
              SIDES, LIGHT_ONLY, TREES, CAMERAS, MOODS)  # fmt: skip
    phrases = [phrase for table in tables for row in table.values() for phrase in row]
    phrases += [*ISLAND_LAND, *BIRDS, *OPENINGS]
    phrases += ["a landscape, outdoors, nature"]
    text = " ".join(phrases).replace("{t}", " ").replace("{w}", " ")
    words = sorted(set(re.findall(r"[a-z]+", text)))
    return words if edition == 1 else [*words, *sorted(grown_captions.words() - set(words))]


def weather_phrases(scene: Scene) -> tuple[str, ...]:
    """Every phrase that says a scene's weather."""
    table = WEATHERS if scene.edition == 1 else grown_captions.WEATHERS
    return table[scene.attributes.weather]


def _land(chance: random.Random, a: SceneAttributes) -> str:
    """Terrain and water, sometimes with the trees: "a calm lake under snowy mountains"."""
    table = SNOWY_TERRAINS if a.snow_caps == "yes" else TERRAINS
    land = chance.choice(table[a.terrain])
    if a.water == "none":
        return land
    patterns = ISLAND_LAND if a.terrain == "islands" else WET_LAND[a.water]
    return chance.choice(patterns).format(t=land, w=chance.choice(WATERS[a.water]))


def _details(chance: random.Random, a: SceneAttributes, placed: bool) -> list[str]:
    """Weather, trees, sun or moon, birds, mood: in any order, some left out."""
    details = [chance.choice(WEATHERS[a.weather])]
    if a.trees != "none":
        details += often(chance, 0.85, chance.choice(TREES[a.trees]))
    if a.celestial != "none":
        details += often(chance, 1.0 if placed else 0.85, _body(chance, a, placed))
    if a.birds == "yes":
        details += often(chance, 0.9, chance.choice(BIRDS))
    details += often(chance, 0.25 if a.mood == "neutral" else 0.85, chance.choice(MOODS[a.mood]))
    return shuffled(chance, details)


def _body(chance: random.Random, a: SceneAttributes, placed: bool) -> str:
    if chance.random() < 0.15 and not placed:
        return chance.choice(LIGHT_ONLY[a.celestial])
    body = chance.choice(BODIES[a.celestial])
    altitude = often(chance, 0.6, chance.choice(ALTITUDES[a.celestial_altitude]))
    side = often(chance, 1.0 if placed else 0.6, chance.choice(SIDES[a.celestial_side]))
    return " ".join([body, *shuffled(chance, altitude + side)])
