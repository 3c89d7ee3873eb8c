"""What a landscape scene is: named attributes, continuous parameters, and how they are sampled."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

VERSION = 2
"""Version of the world: another one where the same scene is drawn otherwise, so that clips from
before and after don't stand in one table."""

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


ALLOWED: dict[str, tuple[str, ...]] = {
    name: get_args(kind) for name, kind in get_type_hints(SceneAttributes).items()
}


def sample_scene(seed: int) -> Scene:
    """A random sensible scene; the same seed gives the same scene on every machine."""
    return make_scene(seed)


def make_scene(seed: int, **attributes: str) -> Scene:
    """A scene with some attributes given; the others are sampled to suit them.

    Raises:
        ValueError: An attribute or a value is unknown; the message lists the allowed ones.
    """
    for name, value in attributes.items():
        if name not in ALLOWED:
            raise ValueError(f"unknown scene attribute {name!r}; allowed: {', '.join(ALLOWED)}")
        if value not in ALLOWED[name]:
            allowed = ", ".join(ALLOWED[name])
            raise ValueError(f"unknown {name} {value!r}; allowed: {allowed}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"a scene's seed must be a whole number from 0 on, not {seed!r}")
    chance = random.Random(seed)
    return _sample_parameters(chance, _sample_attributes(chance, attributes), seed)


def _sample_attributes(chance: random.Random, given: dict[str, str]) -> SceneAttributes:
    """Draws the attributes in order, each with weights that depend on those before."""
    chosen: dict[str, str] = dict(given)

    def draw(name: str, **weights: float) -> str:
        # One random number per attribute, drawn even when given: fixing an attribute
        # leaves the others of the same seed as they are, where they still suit.
        point = chance.random()
        values = list(ALLOWED[name])
        heights = [weights.get(value.replace(" ", "_"), 1.0) for value in values]
        point *= sum(heights)
        for value, height in zip(values, heights, strict=True):
            point -= height
            if point < 0 and height > 0:
                return chosen.setdefault(name, value)
        return chosen.setdefault(name, values[heights.index(max(heights))])

    _draw_sky(draw, given)
    _draw_land(draw, chosen)
    return SceneAttributes(**chosen)  # type: ignore[arg-type]


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


def _sample_parameters(chance: random.Random, attributes: SceneAttributes, seed: int) -> Scene:
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
    )
