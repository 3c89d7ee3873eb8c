"""What a landscape scene is: named attributes, continuous parameters, and how they are sampled."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args, get_type_hints

VERSION = 2
"""Version of the world: another one where the same scene is drawn otherwise, so that clips from
before and after don't stand in one table."""

EDITIONS = (1, 2)
"""Editions of the world. The second has more words, near ground with texture, rivers, ice, woods
with depth. Which one a model was trained in, `sampling.words.find_edition` tells."""

GROWN_VERSION = 1
"""Version of the second edition, as `VERSION` is the first one's."""

HELD_OUT_SEEDS = range(1_000_000)
"""Scenes with these seeds are never trained on: previews, tests and measurements use them."""

TimeOfDay = Literal["dawn", "morning", "noon", "sunset", "dusk", "night"]
Terrain = Literal["mountains", "hills", "dunes", "islands", "canyon", "plains"]
Weather = Literal["clear", "scattered", "overcast", "rain", "snowfall", "fog", "aurora"]
Water = Literal["none", "lake", "sea"]
Celestial = Literal["none", "sun", "moon"]
Side = Literal["left", "centre", "right"]
Altitude = Literal["low", "high"]
SnowCaps = Literal["no", "yes"]
Trees = Literal["none", "pines", "broadleaf"]
Birds = Literal["no", "yes"]
Camera = Literal["static", "pan left", "pan right", "rise", "zoom in"]
Mood = Literal["neutral", "warm", "cool", "pastel"]

GrownTerrain = Literal["mountains", "hills", "dunes", "islands", "canyon", "plains", "valley"]
GrownWeather = Literal[
    "clear", "scattered", "overcast", "rain", "snowfall", "fog", "aurora", "storm", "haze", "mist"
]
GrownWater = Literal["none", "lake", "sea", "river", "ice"]
GrownTrees = Literal["none", "pines", "broadleaf", "forest", "lone tree"]
Sky = Literal["natural", "pink", "violet", "black"]
Size = Literal["normal", "huge"]
Season = Literal["none", "summer", "winter"]
NearGround = Literal["none", "grass", "flowers", "sand", "pebbles", "rocks", "snow"]


@dataclass(frozen=True)
class SceneAttributes:
    """Everything about a scene that a caption can name.

    "Pan right" means that the camera turns right, so the picture's content moves left over time.
    `celestial_side` and `celestial_altitude` also give the direction of the light where the sun
    or moon itself is not visible.
    """

    time_of_day: TimeOfDay
    terrain: Terrain
    weather: Weather
    water: Water
    celestial: Celestial
    celestial_side: Side
    celestial_altitude: Altitude
    snow_caps: SnowCaps
    trees: Trees
    birds: Birds
    camera: Camera
    mood: Mood


@dataclass(frozen=True)
class GrownAttributes(SceneAttributes):
    """Everything that a caption can name in the second edition.

    The near ground is what lies at the viewer's feet, "none" where water reaches the lower edge.
    The season "none" is one that can't be told.
    """

    terrain: GrownTerrain  # type: ignore[assignment]
    weather: GrownWeather  # type: ignore[assignment]
    water: GrownWater  # type: ignore[assignment]
    trees: GrownTrees  # type: ignore[assignment]
    sky: Sky
    celestial_size: Size
    season: Season
    near_ground: NearGround


@dataclass(frozen=True)
class Scene:
    """One landscape: its attributes and the continuous parameters that a caption leaves open.

    Attributes:
        attributes: What a caption can name.
        seed: Where the noise is looked up: the shapes of ridges, clouds and waves.
        horizon: Height of the horizon, in frame heights from the top.
        celestial_x: Sun or moon in the middle of a 17-frame clip, in frame widths from the left.
        celestial_y: The same, in frame heights above the horizon.
        wind: Speed of the clouds and slant of rain, around 1; negative blows to the left.
        speed: Speed of the camera motion, around 1.
        relief: Height of the terrain, around 1.
        haze: Density of the air, around 1.
        cover: Cloud cover relative to what the weather usually has, around 0.
        hue: Small variation of the palette, from -1 to 1.
        edition: Of the world that it belongs to, one of `EDITIONS`.
    """

    attributes: SceneAttributes
    seed: int
    horizon: float
    celestial_x: float
    celestial_y: float
    wind: float
    speed: float
    relief: float
    haze: float
    cover: float
    hue: float
    edition: int = 1


ALLOWED: dict[str, tuple[str, ...]] = {
    name: get_args(kind) for name, kind in get_type_hints(SceneAttributes).items()
}
"""Values of the first edition's attributes."""
GROWN: dict[str, tuple[str, ...]] = {
    name: get_args(kind) for name, kind in get_type_hints(GrownAttributes).items()
}
"""Values of the second edition's attributes."""


def allowed_values(edition: int) -> dict[str, tuple[str, ...]]:
    """The attributes of an edition and their values.

    Raises:
        ValueError: There is no such edition.
    """
    if edition not in EDITIONS:
        known = " or ".join(map(str, EDITIONS))
        raise ValueError(f"the world has no edition {edition!r}: choose {known}.")
    return ALLOWED if edition == 1 else GROWN


def sample_scene(seed: int, edition: int = 1) -> Scene:
    """A random sensible scene; the same seed gives the same scene on every machine."""
    return make_scene(seed, edition)


def make_scene(seed: int, edition: int = 1, **attributes: str) -> Scene:
    """A scene with some attributes given; the others are sampled to suit them.

    Raises:
        ValueError: An attribute, a value or the edition is unknown; the message lists the allowed
            ones.
    """
    known = allowed_values(edition)
    for name, value in attributes.items():
        if name not in known:
            raise ValueError(f"unknown scene attribute {name!r}; allowed: {', '.join(known)}")
        if value not in known[name]:
            allowed = ", ".join(known[name])
            raise ValueError(f"unknown {name} {value!r}; allowed: {allowed}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"a scene's seed must be a whole number from 0 on, not {seed!r}")
    chance = random.Random(seed)
    chosen: dict[str, str] = dict(attributes)
    draw = partial(_draw, chance, known, chosen)
    if edition == 1:
        _draw_sky(draw, attributes)
        _draw_land(draw, chosen)
        drawn = SceneAttributes(**chosen)  # type: ignore[arg-type]
    else:
        _draw_grown_sky(draw, attributes)
        _draw_grown_land(draw, chosen, attributes)
        drawn = GrownAttributes(**chosen)  # type: ignore[arg-type]
    return _sample_parameters(chance, drawn, seed, edition)


def _draw(
    chance: random.Random,
    known: dict[str, tuple[str, ...]],
    chosen: dict[str, str],
    name: str,
    **weights: float,
) -> str:
    """Draws an attribute, with weights that depend on those before."""
    # One random number per attribute, drawn even when given: fixing an attribute
    # leaves the others of the same seed as they are, where they still suit.
    point = chance.random()
    values = list(known[name])
    heights = [weights.get(value.replace(" ", "_"), 1.0) for value in values]
    point *= sum(heights)
    for value, height in zip(values, heights, strict=True):
        point -= height
        if point < 0 and height > 0:
            return chosen.setdefault(name, value)
    return chosen.setdefault(name, values[heights.index(max(heights))])


def _draw_sky(draw, given: dict[str, str]) -> None:
    by_day = given.get("weather") != "aurora" and given.get("celestial") != "moon"
    by_night = given.get("celestial") != "sun"
    day = 1.0 if by_day else 0.0
    time = draw(
        "time_of_day",
        dawn=day,
        morning=day,
        noon=day,
        sunset=1.3 * day,
        dusk=1.0 if given.get("weather") != "aurora" and by_night else 0.0,
        night=1.2 if by_night else 0.0,
    )
    dry = given.get("terrain") == "dunes"
    weather = draw(
        "weather",
        clear=1.4,
        scattered=1.6,
        overcast=0.8,
        rain=0.3 if dry else 0.8,
        snowfall=0.1 if dry else 0.8,
        fog=0.8,
        aurora=1.6 if time == "night" else 0.0,
    )
    hidden = weather in ("overcast", "rain", "snowfall")
    sun = {"night": 0.0, "dusk": 0.15}.get(time, 1.0)
    moon = {"night": 1.0, "dusk": 0.5}.get(time, 0.0)
    draw(
        "celestial",
        none=6.0 if hidden else 0.35,
        sun=sun * (0.3 if weather == "fog" else 1.0),
        moon=moon,
    )
    draw("celestial_side")
    low = {"dawn": 6.0, "sunset": 6.0, "dusk": 6.0, "noon": 0.15}.get(time, 0.8)
    draw("celestial_altitude", low=low)


def _draw_land(draw, chosen: dict[str, str]) -> None:
    snowing = chosen["weather"] == "snowfall"
    water_given = chosen.get("water")
    terrain = draw(
        "terrain",
        dunes=0.15 if snowing or water_given == "lake" else 0.9,
        islands=0.0 if water_given in ("none", "lake") else 1.0,
        plains=1.0,
        mountains=1.3,
    )
    dry = terrain in ("dunes", "canyon")
    if terrain == "islands":
        draw("water", none=0.0, lake=0.0)
    else:
        draw("water", none=2.5 if dry else 1.0, lake=1.0, sea=0.7)
    draw("snow_caps", yes=2.5 if snowing else {"mountains": 1.2}.get(terrain, 0.12))
    draw("trees", none=8.0 if dry else 1.2, broadleaf=0.1 if snowing else 0.9)
    draw("birds", yes=0.3 if chosen["time_of_day"] != "night" else 0.08)
    draw("camera", static=0.7)
    draw("mood", neutral=2.0)


HIDING = ("overcast", "rain", "snowfall", "storm")  # weathers without a sun or moon


def _draw_grown_sky(draw, given: dict[str, str]) -> None:
    by_day = given.get("weather") != "aurora" and given.get("celestial") != "moon"
    by_night = given.get("celestial") != "sun" and given.get("season") != "summer"
    coloured, black = given.get("sky") in ("pink", "violet"), given.get("sky") == "black"
    day = 1.0 if by_day and not black else 0.0
    plain = 0.0 if coloured else day
    time = draw(
        "time_of_day",
        dawn=day,
        morning=plain,
        noon=plain,
        sunset=1.4 * day,
        dusk=1.1 if given.get("weather") != "aurora" and by_night and not black else 0.0,
        night=1.3 if by_night and given.get("sky") != "pink" else 0.0,
    )
    lit = given.get("celestial", "none") != "none" or given.get("sky", "natural") != "natural"
    cold = given.get("season") != "summer" and given.get("near_ground") not in ("flowers", "sand")
    foul = 0.0 if lit else 1.0
    weather = draw(
        "weather",
        clear=1.5,
        scattered=1.7,
        overcast=0.8 * foul,
        rain=0.6 * foul,
        snowfall=0.7 * foul if cold and given.get("terrain") != "dunes" else 0.0,
        fog=0.0 if coloured or black else 0.6,
        aurora=1.6 if time == "night" and given.get("sky") in (None, "natural") else 0.0,
        storm=0.6 * foul,
        haze=0.0 if time == "night" else 0.6,
        mist=0.0 if black else 0.7,
    )
    open_sky = 1.0 if weather in ("clear", "scattered", "haze", "mist") else 0.0
    low_sun = time in ("dawn", "sunset", "dusk")
    draw(
        "sky",
        natural=4.0,
        pink=open_sky * (1.0 if low_sun else 0.0),
        violet=open_sky * (1.0 if low_sun or time == "night" else 0.0),
        black=1.5 if time == "night" and weather in ("clear", "scattered") else 0.0,
    )
    hidden = 0.0 if weather in HIDING else 1.0
    sun = {"night": 0.0, "dusk": 0.1}.get(time, 1.0)
    moon = {"night": 1.0, "dusk": 0.4}.get(time, 0.0)
    huge = given.get("celestial_size") == "huge"
    draw(
        "celestial",
        none=0.0 if huge else 0.4,
        sun=hidden * sun * (0.4 if weather == "fog" else 1.0),
        moon=hidden * moon,
    )
    draw("celestial_side")
    low = {"dawn": 6.0, "sunset": 6.0, "dusk": 6.0, "noon": 0.15}.get(time, 0.8)
    draw("celestial_altitude", low=low)


def _draw_grown_land(draw, chosen: dict[str, str], given: dict[str, str]) -> None:
    seen = chosen["celestial"] != "none"
    low = chosen["celestial_altitude"] == "low"
    draw("celestial_size", normal=3.0, huge=(1.2 if low else 0.15) if seen else 0.0)
    snowing = chosen["weather"] == "snowfall"
    rainy = chosen["weather"] in ("rain", "storm")
    green = given.get("near_ground") in ("grass", "flowers", "sand")
    cold_given = given.get("water") == "ice" or given.get("near_ground") == "snow"
    season = draw(
        "season",
        none=0.0 if snowing or cold_given else 2.4,
        summer=0.0 if snowing or cold_given or chosen["time_of_day"] == "night" else 0.8,
        winter=0.0 if rainy or green or given.get("terrain") == "dunes" else 0.9,
    )
    winter = season == "winter"
    water_given, trees_given = given.get("water"), given.get("trees")
    dry = trees_given in ("forest", "pines", "broadleaf") or given.get("near_ground") in (
        "grass",
        "flowers",
    )
    terrain = draw(
        "terrain",
        mountains=1.6,
        hills=1.1,
        dunes=0.0 if winter or water_given in ("ice", "river") or dry else 0.8,
        islands=0.0 if water_given not in (None, "sea") or winter or dry else 0.8,
        canyon=0.0 if water_given == "ice" or dry else 0.8,
        plains=1.0,
        valley=0.0 if water_given == "sea" else 1.1,
    )
    _draw_grown_water(draw, terrain, winter)
    high = terrain in ("mountains", "valley")
    draw("snow_caps", yes=(4.0 if high else 1.0) if winter else (1.0 if high else 0.0))
    bare = terrain in ("dunes", "canyon")
    wooded = 0.0 if bare else 1.0
    draw(
        "trees",
        none=1.5,
        pines=0.7 * wooded,
        broadleaf=(0.0 if winter else 0.7) * wooded,
        forest=(0.0 if terrain in ("islands", "plains") else 0.9) * wooded,
        lone_tree=0.3 if bare else 0.6,
    )
    _draw_near_ground(draw, terrain, chosen["water"], winter, chosen["trees"])
    draw("birds", yes=0.35 if chosen["time_of_day"] != "night" else 0.08)
    draw("camera", static=0.7)
    draw("mood", neutral=2.0)


def _draw_grown_water(draw, terrain: str, winter: bool) -> None:
    if terrain == "islands":
        draw("water", none=0.0, lake=0.0, river=0.0, ice=0.0)
    elif terrain == "dunes":
        draw("water", none=2.5, lake=0.3, sea=0.5, river=0.0, ice=0.0)
    else:
        draw(
            "water",
            none=1.3,
            lake=0.0 if winter else 1.0,
            sea=0.0 if terrain == "valley" else 0.6,
            river=1.4 if terrain == "valley" else 0.7,
            ice=1.2 if winter and terrain != "canyon" else 0.0,
        )


def _draw_near_ground(draw, terrain: str, water: str, winter: bool, trees: str) -> None:
    """What lies in front; a lone tree needs ground to stand on."""
    open_water = 1.2 if water in ("lake", "sea", "ice") and trees != "lone tree" else 0.0
    if winter:
        draw("near_ground", none=open_water, grass=0.0, flowers=0.0, sand=0.0, pebbles=0.0,
             rocks=0.0, snow=3.0)  # fmt: skip
        return
    coast = 1.0 if water in ("lake", "sea") else 0.0
    green = 0.0 if terrain in ("dunes", "canyon", "islands") or water == "sea" else 1.0
    sand = {"dunes": 3.0, "canyon": 0.8}.get(terrain, 1.0 if water == "sea" else 0.5 * coast)
    stony = 0.0 if terrain == "dunes" else 1.0
    draw(
        "near_ground",
        none=open_water,
        grass=1.2 * green,
        flowers=0.9 * green,
        sand=sand,
        pebbles=(0.6 * coast + (0.3 if water == "river" else 0.0)) * stony,
        rocks={"mountains": 0.8, "canyon": 1.0, "islands": 0.6, "valley": 0.4}.get(terrain, 0.0),
        snow=0.0,
    )


def _sample_parameters(
    chance: random.Random, attributes: SceneAttributes, seed: int, edition: int
) -> Scene:
    side = {"left": 0.24, "centre": 0.5, "right": 0.76}[attributes.celestial_side]
    low, high = {"low": (0.06, 0.15), "high": (0.28, 0.42)}[attributes.celestial_altitude]
    if attributes.terrain in ("mountains", "canyon") and attributes.celestial_altitude == "low":
        low, high = 0.10, 0.21
    return Scene(
        attributes=attributes,
        seed=seed,
        horizon=chance.uniform(0.52, 0.64),
        celestial_x=side + chance.uniform(-0.08, 0.08),
        celestial_y=chance.uniform(low, high),
        wind=chance.choice((-1.0, 1.0)) * chance.uniform(0.6, 1.5),
        speed=chance.uniform(0.85, 1.2),
        relief=chance.uniform(0.8, 1.2),
        haze=chance.uniform(0.75, 1.3),
        cover=chance.uniform(-1.0, 1.0),
        hue=chance.uniform(-1.0, 1.0),
        edition=edition,
    )
