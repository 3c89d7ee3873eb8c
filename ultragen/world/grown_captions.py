"""The grammar of the second edition: more everyday words, and what a scene is without.

Captions use lower case letters, spaces, commas and the hyphen of "snow-capped". Whatever a caption
says is true of the scene; it always names the time of day, the terrain, the weather and the water.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import phrases
from .phrases import ALTITUDES, CAMERAS, LIGHT_ONLY, MOODS, SIDES, Phrases, arranged, shuffled
from .scene import GrownAttributes, Scene

MOST_WORDS, FEWEST_WORDS = 40, 8

TERRAINS: Phrases = {
    **{name: phrases.TERRAINS[name] for name in ("dunes", "islands", "canyon")},
    "mountains": (*phrases.TERRAINS["mountains"], "a mountain", "a mountain ridge", "ridges",
                  "a rocky ridge", "a peak", "rocky peaks", "a high peak", "mountain ridges",
                  "a steep mountain", "sharp peaks"),
    "hills": (*phrases.TERRAINS["hills"], "a hill", "a green hill", "a round hill", "a low hill"),
    "dunes": (*phrases.TERRAINS["dunes"], "a dune", "a sand dune", "a high dune"),
    "canyon": (*phrases.TERRAINS["canyon"], "a mesa", "a cliff", "cliffs", "canyons"),
    "plains": ("plains", "a wide plain", "grassland", "open fields", "a prairie",
               "flat grassland", "a grassy plain", "the steppe", "a plain", "an open field",
               "flat land", "fields"),
    "valley": ("a valley", "a wide valley", "a mountain valley", "a valley between mountains",
               "the valley", "valleys", "a quiet valley", "a deep valley",
               "a valley with steep slopes"),
}  # fmt: skip

SNOWY_TERRAINS: Phrases = {
    **phrases.SNOWY_TERRAINS,
    "mountains": (*phrases.SNOWY_TERRAINS["mountains"], "snow-capped mountains",
                  "snow-capped peaks", "a snowy mountain", "a snow-capped mountain",
                  "a snowy peak", "a snow-capped peak", "a snowy ridge", "snow-capped ridges",
                  "a white mountain"),
    "hills": (*phrases.SNOWY_TERRAINS["hills"], "a snowy hill", "snow-capped hills"),
    "dunes": (*phrases.SNOWY_TERRAINS["dunes"], "a dune with snow"),
    "plains": ("snowy plains", "a snow covered plain", "snowy fields", "fields covered in snow",
               "a snowy field", "a snowy plain", "white fields"),
    "valley": ("a snowy valley", "a valley with snow", "a valley below snow-capped mountains",
               "a valley between snowy mountains", "a snow covered valley",
               "a valley under white peaks", "a valley below snowy peaks"),
}  # fmt: skip

WATERS: Phrases = {
    "lake": (*phrases.WATERS["lake"], "lake water", "the shore of a lake", "the lake"),
    "sea": (*phrases.WATERS["sea"], "the shore of the sea", "the seashore", "sea waves"),
    "river": ("a river", "a winding river", "a calm river", "a stream", "the river",
              "a quiet river", "a river with clear water", "a long river", "a small river"),
    "ice": ("a frozen lake", "an icy lake", "a lake of ice", "a lake covered in ice",
            "the ice of a frozen lake", "a frozen lake with cracks in the ice", "the frozen lake"),
}  # fmt: skip

OVER = ("{t} over {w}", "{w} beneath {t}", "{t} above {w}", "{w} below {t}", "{w} under {t}")
WET_LAND: dict[str, tuple[str, ...]] = {
    "lake": (*phrases.WET_LAND["lake"], *OVER, "the reflection of {t} in {w}",
             "reflections of {t} in {w}", "{t} with a reflection in {w}"),
    "sea": (*phrases.WET_LAND["sea"], *OVER, "{t} on the shore of {w}"),
    "river": (*OVER, "{w} in front of {t}", "{t} with {w}", "{w} and {t}", "{t} by {w}",
              "{w} at the foot of {t}", "{t} behind {w}", "{w} near {t}"),
    "ice": (*OVER, "{w} in front of {t}", "{t} behind {w}", "{w} and {t}", "{t} with {w}",
            "{t} by {w}", "{w} at the foot of {t}"),
}  # fmt: skip
VALLEY_RIVER = ("{w} in {t}", "{w} through {t}", "{w} winding through {t}", "{t} with {w}",
                "{w} that runs through {t}", "{w} flowing through {t}")  # fmt: skip

WEATHERS: Phrases = {
    **{name: phrases.WEATHERS[name] for name in ("scattered", "rain", "snowfall", "aurora")},
    "clear": (*phrases.WEATHERS["clear"], "without clouds", "without a cloud",
              "not a cloud in the sky", "no clouds in the sky"),
    "overcast": (*phrases.WEATHERS["overcast"], "a sky full of clouds", "low grey clouds"),
    "fog": ("fog", "in thick fog", "foggy", "fog banks", "drifting fog", "dense fog",
            "covered in fog", "lost in the fog"),
    "mist": ("mist", "misty", "mist in the air", "covered in mist", "low mist", "thin mist",
             "mist near the ground", "drifting mist", "veils of mist"),
    "haze": ("haze", "hazy", "hazy air", "a hazy sky", "in the haze", "haze in the distance",
             "a thin haze"),
    "storm": ("a storm", "stormy weather", "dark storm clouds", "a heavy storm", "wind and rain",
              "storm clouds and rain", "stormy", "a rain storm", "in the storm"),
}  # fmt: skip

SKIES: Phrases = {
    "pink": ("a pink sky", "pink light", "the sky is pink", "a rosy sky", "a sky in pink"),
    "violet": ("a violet sky", "violet light", "the sky is violet", "a purple sky",
               "a sky in violet"),
    "black": ("a black sky", "a black night sky", "the sky is black", "a deep black sky"),
}  # fmt: skip
STARS = ("stars", "a starry sky", "many stars", "stars in the sky", "starlight",
         "under the stars", "bright stars", "a sky full of stars")  # fmt: skip
BODIES: dict[tuple[str, str], tuple[str, ...]] = {
    ("sun", "normal"): (*phrases.BODIES["sun"], "the sun is out"),
    ("moon", "normal"): (*phrases.BODIES["moon"], "the moon is out"),
    ("sun", "huge"): ("a huge sun", "a giant sun", "an enormous sun", "a very big sun",
                      "the huge sun"),
    ("moon", "huge"): ("a huge moon", "a giant moon", "an enormous moon", "a very big moon",
                       "a huge full moon"),
}  # fmt: skip
ABOVE: Phrases = {
    "mountains": ("over the mountains", "above the peaks", "over the ridge"),
    "hills": ("over the hills", "above the hills"),
    "dunes": ("over the dunes", "above the desert"),
    "islands": ("over the sea", "above the islands"),
    "canyon": ("over the canyon", "above the cliffs"),
    "plains": ("over the plain", "above the fields"),
    "valley": ("over the valley", "above the valley"),
}
HIDDEN: Phrases = {
    "day": ("without a sun", "no sun", "no sun in the sky", "without the sun", "the sun is not out",
            "without sun or moon"),
    "night": ("without a moon", "no moon", "no moon in the sky", "without the moon",
              "the moon is not out", "without sun or moon"),
}  # fmt: skip

TREES: Phrases = {
    "none": ("no trees", "without trees", "without a tree"),
    "pines": ("pine trees", "pines", "fir trees", "conifers", "spruce trees", "dark firs",
              "groups of pine trees"),
    "broadleaf": ("trees", "leafy trees", "green trees", "round trees", "groups of trees",
                  "trees and bushes"),
    "forest": ("a forest", "a thick forest", "woods", "a deep forest", "forests", "woodland",
               "forest on the slopes", "slopes covered in forest", "a large forest",
               "tree behind tree", "a sea of trees"),
    "lone tree": ("a tree", "a single tree", "a lone tree", "one tree", "a lonely tree",
                  "a solitary tree", "a tree in front", "a tree that stands alone"),
}  # fmt: skip
WOODED = ("{f} and {t}", "{t} above {f}", "{f} below {t}", "{t} with {f}", "{t} behind {f}",
          "{f} in front of {t}", "{t} over {f}")  # fmt: skip
BIRDS = (*phrases.BIRDS, "many birds", "big birds", "birds with wide wings")

# Near ground by a lake or the sea, and elsewhere.
SHORES: Phrases = {
    "grass": ("a grassy shore", "a green shore", "grass on the shore"),
    "flowers": ("flowers on the shore", "a shore with flowers", "a meadow with flowers"),
    "sand": ("a sandy beach", "a beach", "a sandy shore", "sand on the shore", "the beach",
             "a beach of sand"),
    "pebbles": ("a pebble beach", "pebbles on the shore", "a stony shore", "a shore of pebbles",
                "a stony beach"),
    "rocks": ("a rocky shore", "rocks on the shore", "boulders on the shore", "a shore with rocks"),
    "snow": ("a snowy shore", "snow on the shore", "a shore covered in snow"),
}  # fmt: skip
GROUNDS: Phrases = {
    "grass": ("grass", "a meadow", "green grass", "grass in the foreground", "tall grass",
              "a grassy meadow", "meadows", "blades of grass"),
    "flowers": ("a meadow with flowers", "wild flowers", "flowers in the grass",
                "a flower meadow", "flowers", "a meadow full of flowers",
                "a blooming meadow", "colorful flowers"),
    "sand": ("ripples in the sand", "rippled sand", "sand in the foreground", "sand ripples",
             "sand"),
    "pebbles": ("pebbles", "stones and pebbles", "a stony bank", "pebbles on the bank"),
    "rocks": ("rocks", "boulders", "rocky ground", "rocks in the foreground", "stones",
              "rocks and stones"),
    "snow": ("snow on the ground", "fresh snow", "deep snow", "a blanket of snow",
             "snow covered ground"),
}  # fmt: skip
IN_FRONT = ("{g} in front of {l}", "{l} behind {g}", "{g} and {l}", "{l} with {g}",
            "{g} below {l}", "{l} above {g}")  # fmt: skip

SEASONS: Phrases = {
    "summer": ("in summer", "summer", "a summer landscape", "in the summer"),
    "winter": ("in winter", "winter", "a winter landscape", "in the winter", "cold winter air"),
}
SEASON_TIMES: Phrases = {  # where the time of day is said as well
    "morning": ("on a {s} morning",),
    "noon": ("on a {s} day at noon",),
    "dusk": ("on a {s} evening after sunset", "on a {s} evening at dusk"),
    "night": ("on a {s} night",),
}
REFLECTIONS = ("a reflection in the water", "reflections on the water",
               "the sky reflected in the water", "clear reflections", "a clear reflection",
               "the water reflects the sky")  # fmt: skip
ABSENT: dict[str, tuple[str, ...]] = {
    "birds": ("no birds", "without birds"),
    "snow": ("no snow", "without snow"),
    "water": ("without water", "no water"),
    "stars": ("no stars", "without stars"),
}

SHARES = {  # how often what is there is said
    "trees": 0.85,
    "near_ground": 0.7,
    "sky": 0.9,
    "stars": 0.55,
    "season": 0.8,
    "celestial": 0.85,
    "birds": 0.9,
    "reflection": 0.2,
    "absent": 0.10,
    "hidden": 0.35,
}


@dataclass(frozen=True)
class Clause:
    """A part of a caption.

    Attributes:
        text: Its words.
        names: The attributes that it says.
    """

    text: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """A caption.

    Attributes:
        text: The sentence.
        names: The attributes that it says.
    """

    text: str
    names: frozenset[str]


def describe(scene: Scene, seed: int, placed: bool = False) -> Description:
    """A sentence about a scene of the second edition, and what it names; see `captions.caption`."""
    a = scene.attributes
    if not isinstance(a, GrownAttributes):
        raise ValueError(f"scene {scene.seed} is one of edition {scene.edition}, not 2.")
    chance = random.Random(seed * 1_000_003 + scene.seed)
    opening, land = chance.choice(phrases.OPENINGS), _land(chance, a)
    time, season = _time(chance, a)
    details = shuffled(chance, [*season, *_sky(chance, a, placed), *_things(chance, a, land)])
    if placed:  # among what is kept of a long sentence
        details.sort(key=lambda clause: "celestial_side" not in clause.names)
    camera = [Clause(chance.choice(CAMERAS[a.camera]), ("camera",))]
    camera = camera if chance.random() < 0.9 else []
    style = chance.random()
    weather = Clause(chance.choice(WEATHERS[a.weather]), ("weather",))
    place = chance.randint(0, 2)  # of the weather: among the first, which are kept
    kept = len(details)
    while True:
        said = [*details[: min(place, kept)], weather, *details[min(place, kept) : kept]]
        head = opening + land.text if kept == len(details) else land.text
        order = random.Random(seed)  # one order, however many clauses are left out
        text = arranged(
            order, style, head, time.text, [x.text for x in said], [x.text for x in camera]
        )
        if len(text.split()) <= MOST_WORDS or kept == 0:
            break
        kept -= 1
    fillers = ["a landscape", "outdoors", "nature", "scenery"]
    while len(text.split()) < FEWEST_WORDS:
        text = f"{text}, {fillers.pop(0)}"
    names = {name for clause in (land, time, *said, *camera) for name in clause.names}
    return Description(text, frozenset(names))


def words() -> set[str]:
    """All words of this grammar, and the hyphen."""
    tables = (TERRAINS, SNOWY_TERRAINS, WATERS, WET_LAND, WEATHERS, SKIES, BODIES, ABOVE, HIDDEN,
              TREES, SHORES, GROUNDS, SEASONS, SEASON_TIMES, ABSENT)  # fmt: skip
    found = [phrase for table in tables for row in table.values() for phrase in row]
    found += [*VALLEY_RIVER, *STARS, *WOODED, *BIRDS, *IN_FRONT, *REFLECTIONS, "scenery"]
    text = re.sub(r"\{[a-z]\}", " ", " ".join(found))
    return {*re.findall(r"[a-z]+", text), "-"}


def _said(chance: random.Random, share: str, options: Sequence[str], *names: str) -> list[Clause]:
    """One of some phrases, or nothing."""
    phrase = chance.choice(options)
    return [Clause(phrase, names)] if chance.random() < SHARES[share] else []


def _land(chance: random.Random, a: GrownAttributes) -> Clause:
    """Terrain and water, often with what lies before them."""
    snowy = a.snow_caps == "yes"
    names = ["terrain", "water", *(["snow_caps"] if snowy else [])]
    land = chance.choice((SNOWY_TERRAINS if snowy else TERRAINS)[a.terrain])
    if a.water != "none":
        options = WET_LAND[a.water]
        if a.terrain == "islands":
            options = phrases.ISLAND_LAND
        elif a.terrain == "valley" and a.water == "river":
            options = VALLEY_RIVER
        land = chance.choice(options).format(t=land, w=chance.choice(WATERS[a.water]))
    draw = chance.random()
    if a.trees == "forest" and draw < 0.4:
        names.append("trees")
        forest = chance.choice(TREES["forest"][:6])
        land = chance.choice(WOODED).format(t=land, f=forest)
    elif a.near_ground != "none" and draw > 0.6:
        names.append("near_ground")
        land = chance.choice(IN_FRONT).format(l=land, g=chance.choice(_ground(a)))
    return Clause(land, tuple(names))


def _ground(a: GrownAttributes) -> tuple[str, ...]:
    coast = a.water in ("lake", "sea", "ice")
    return (SHORES if coast else GROUNDS)[a.near_ground]


def _time(chance: random.Random, a: GrownAttributes) -> tuple[Clause, list[Clause]]:
    """The time of day, and the season in one phrase with it or apart."""
    time = Clause(chance.choice(phrases.TIMES[a.time_of_day]), ("time_of_day",))
    if a.season == "none":
        return time, []
    together = SEASON_TIMES.get(a.time_of_day)
    if together and chance.random() < 0.35:
        text = chance.choice(together).format(s=a.season)
        return Clause(text, ("time_of_day", "season")), []
    return time, _said(chance, "season", SEASONS[a.season], "season")


def _sky(chance: random.Random, a: GrownAttributes, placed: bool) -> list[Clause]:
    """Colour of the sky, stars, sun or moon, and their absence."""
    found = []
    if a.sky != "natural":
        found += _said(chance, "sky", SKIES[a.sky], "sky")
    night = a.time_of_day == "night"
    if a.weather in ("clear", "scattered", "aurora") and night:
        found += _said(chance, "stars", STARS)
    elif a.weather in ("overcast", "rain", "snowfall", "storm", "fog"):
        found += _said(chance, "absent", ABSENT["stars"])
    if a.celestial == "none":
        found += _said(chance, "hidden", HIDDEN["night" if night else "day"], "celestial")
    elif placed or chance.random() < SHARES["celestial"]:
        found.append(_body(chance, a, placed))
    return found


def _body(chance: random.Random, a: GrownAttributes, placed: bool) -> Clause:
    if chance.random() < 0.12 and not placed and a.celestial_size == "normal":
        return Clause(chance.choice(LIGHT_ONLY[a.celestial]), ("celestial",))
    names, parts = ["celestial"], []
    body = chance.choice(BODIES[a.celestial, a.celestial_size])
    if a.celestial_size == "huge":
        names.append("celestial_size")
    if chance.random() < 0.5:
        parts.append(chance.choice(ALTITUDES[a.celestial_altitude]))
        names.append("celestial_altitude")
    elif chance.random() < 0.5:
        parts.append(chance.choice(ABOVE[a.terrain]))
    if placed or chance.random() < 0.6:
        parts.append(chance.choice(SIDES[a.celestial_side]))
        names.append("celestial_side")
    return Clause(" ".join([body, *shuffled(chance, parts)]), tuple(names))


def _things(chance: random.Random, a: GrownAttributes, land: Clause) -> list[Clause]:
    """Trees, near ground, birds, mood, reflections, and what there is not."""
    found = []
    if a.trees == "none":
        found += _said(chance, "absent", TREES["none"], "trees")
    elif "trees" not in land.names:
        found += _said(chance, "trees", TREES[a.trees], "trees")
    if a.near_ground != "none" and "near_ground" not in land.names:
        found += _said(chance, "near_ground", _ground(a), "near_ground")
    if a.birds == "yes":
        found += _said(chance, "birds", BIRDS, "birds")
    else:
        found += _said(chance, "absent", ABSENT["birds"], "birds")
    if a.water == "lake" and a.weather != "storm":
        found += _said(chance, "reflection", REFLECTIONS)
    if a.water == "none":
        found += _said(chance, "absent", ABSENT["water"])
    white = a.snow_caps == "yes" or a.season == "winter" or a.weather == "snowfall"
    if not white:
        found += _said(chance, "absent", ABSENT["snow"], "snow_caps")
    mood = chance.choice(MOODS[a.mood])
    if chance.random() < (0.25 if a.mood == "neutral" else 0.85):
        found.append(Clause(mood, ("mood",)))
    return found
