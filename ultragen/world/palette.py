"""Colours and numbers of a scene: what the attributes mean to the renderer.

Colours are authored as they should appear on screen and kept as exposures x with
screen = sqrt(1 - exp(-x)): light adds up in exposures, and bright places saturate like film.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from .scene import Scene

LAYERS = 7  # six ridges from far to near, and the foreground

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """The sky's colours and the light at one time of day; colours as on screen."""

    zenith: str
    middle: str
    horizon: str
    glow: str
    cloud_lit: str
    cloud_shade: str
    sun: Colour  # exposure of direct light
    ambient: Colour  # exposure of sky light
    glow_strength: float
    grey: str  # the sky behind a closed cloud cover


LIGHTS = {
    "dawn": Light(
        "42629c", "a8a5cd", "f6c7ab", "ffb884", "ffcbb0", "8a86ae",
        (1.15, 0.72, 0.52), (0.36, 0.36, 0.50), 0.75, "a9a8bd",
    ),
    "morning": Light(
        "3a78bd", "8bb9df", "e3ebe6", "fff0cc", "fffaf0", "a3b4cb",
        (1.35, 1.18, 0.92), (0.40, 0.47, 0.60), 0.55, "b9c3cc",
    ),
    "noon": Light(
        "1f5fae", "5b9bd8", "c2ddee", "f6fbff", "ffffff", "aab8c9",
        (1.45, 1.38, 1.22), (0.44, 0.52, 0.64), 0.40, "b4bfca",
    ),
    "sunset": Light(
        "3c4f8c", "b9839b", "ff9f56", "ffb54a", "ffa468", "77597f",
        (1.50, 0.74, 0.34), (0.34, 0.29, 0.40), 1.0, "98898f",
    ),
    "dusk": Light(
        "16214f", "4d5590", "c38a92", "f2a08c", "ad7d98", "373c68",
        (0.40, 0.33, 0.42), (0.17, 0.18, 0.32), 0.6, "5c5f80",
    ),
    "night": Light(
        "0a1434", "16295c", "30517f", "86a4d6", "5d76a8", "18274c",
        (0.26, 0.33, 0.48), (0.075, 0.105, 0.20), 0.45, "3a4a6c",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Ground:
    """Shape and material of a terrain; lists run over the layers from far to near."""

    height: tuple[float, ...]  # of ridges, frame heights
    frequency: tuple[float, ...]  # ridges per frame height
    rest: tuple[float, ...]  # mean level below the horizon, frame heights
    ridged: float
    gain: float  # of an outline's octaves
    terraces: float
    low: str  # albedo in the valleys
    high: str  # albedo higher up
    rough: float  # steepness of the surface
    crease: float  # 0 smooth, 1 sharp crests in the surface
    grain_gain: float  # of the surface's octaves
    grain: tuple[float, float]  # surface octave 0: noise units per frame height, across and down
    bands: float  # strength of horizontal strata
    hollow: float  # how much of a layer lies below its rest level


GROUNDS = {
    "mountains": Ground(
        (0.30, 0.24, 0.17, 0.13, 0.10, 0.08, 0.07), (1.3, 1.5, 1.8, 1.7, 1.7, 1.6, 1.2),
        (0.00, 0.015, 0.03, 0.07, 0.13, 0.21, 0.34),
        1.0, 0.47, 0.0, "5d7046", "7d756c", 1.0, 0.8, 0.77, (5.0, 3.6), 0.1, 0.10,
    ),
    "hills": Ground(
        (0.10, 0.10, 0.10, 0.10, 0.10, 0.09, 0.07), (1.2, 1.2, 1.1, 1.0, 0.9, 0.8, 0.8),
        (-0.01, 0.015, 0.045, 0.09, 0.15, 0.23, 0.36),
        0.0, 0.33, 0.0, "7c9a45", "93a158", 0.42, 0.1, 0.68, (3.0, 5.0), 0.0, 0.35,
    ),
    "dunes": Ground(
        (0.06, 0.09, 0.11, 0.12, 0.12, 0.10, 0.08), (1.2, 1.0, 0.9, 0.8, 0.65, 0.55, 0.5),
        (0.0, 0.02, 0.045, 0.09, 0.15, 0.24, 0.37),
        0.75, 0.16, 0.0, "d9a869", "e3b77c", 0.75, 0.9, 0.36, (1.2, 2.6), 0.0, 0.30,
    ),
    "islands": Ground(
        (0.12, 0.17, 0.19, 0.18, 0.15, 0.12, 0.06), (1.1, 1.1, 1.0, 0.9, 0.8, 0.7, 0.8),
        (0.0, 0.004, 0.012, 0.025, 0.045, 0.07, 0.34),
        0.55, 0.45, 0.0, "54703f", "857a68", 0.9, 0.6, 0.77, (5.0, 4.0), 0.15, 0.46,
    ),
    "canyon": Ground(
        (0.14, 0.17, 0.19, 0.19, 0.17, 0.13, 0.07), (1.0, 1.0, 0.9, 0.9, 0.8, 0.8, 0.8),
        (0.0, 0.015, 0.035, 0.065, 0.12, 0.21, 0.35),
        0.1, 0.42, 1.0, "b0653f", "c98355", 0.55, 0.5, 0.7, (4.0, 1.2), 1.0, 0.25,
    ),
    "plains": Ground(
        (0.05, 0.035, 0.025, 0.020, 0.016, 0.014, 0.014), (1.3, 1.2, 1.2, 1.2, 1.1, 1.0, 0.9),
        (-0.005, 0.004, 0.010, 0.018, 0.028, 0.042, 0.065),
        0.1, 0.40, 0.0, "8f9c4a", "b0a558", 0.5, 0.1, 0.8, (4.0, 9.0), 0.0, 0.30,
    ),
}  # fmt: skip

# Beyond water low ground looks alike: hills and dunes rise higher there than on land, break into
# fewer islands, and like plains always have a near shore, which shows what they are made of.
HIGHER_BEYOND_WATER = {"hills": 1.8, "dunes": 1.6}
ALWAYS_A_SHORE = ("hills", "dunes", "plains")

# cover, softness of clouds, greyness of sky, share of direct light, air density, mist
WEATHERS = {
    "clear": (-0.55, 0.45, 0.0, 1.0, 0.7, 0.25),
    "scattered": (0.02, 0.38, 0.0, 0.95, 0.85, 0.3),
    "overcast": (0.80, 0.9, 0.80, 0.28, 1.0, 0.4),
    "rain": (0.95, 1.0, 0.90, 0.18, 1.15, 0.5),
    "snowfall": (0.85, 1.0, 0.82, 0.25, 0.95, 0.42),
    "fog": (0.25, 0.9, 0.72, 0.35, 2.7, 1.5),
    "aurora": (-0.6, 0.45, 0.0, 0.8, 0.7, 0.25),
    # of the second edition alone
    "storm": (0.62, 0.60, 0.95, 0.16, 1.1, 0.45),
    "haze": (-0.30, 0.50, 0.22, 0.80, 2.1, 0.45),
    "mist": (-0.15, 0.45, 0.12, 0.85, 1.0, 2.2),
}

MOODS = {  # gain of red, green, blue exposures; saturation; lift
    "neutral": ((1.0, 1.0, 1.0), 1.0, 0.0),
    "warm": ((1.19, 1.0, 0.76), 1.02, 0.004),
    "cool": ((0.73, 0.98, 1.25), 0.95, 0.004),
    "pastel": ((1.08, 1.05, 1.08), 0.72, 0.045),
}


def exposure(colour: str | Colour) -> Colour:
    """The exposure that appears as a screen colour, given as rrggbb or three numbers."""
    if isinstance(colour, str):
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4))
    else:
        red, green, blue = colour
    return _film(red), _film(green), _film(blue)


def _film(screen: float) -> float:
    return -math.log(1 - min(screen, 0.992) ** 2)


def albedo(colour: str) -> Colour:
    """The reflectance of a surface that looks like the screen colour rrggbb in full light."""
    red, green, blue = ((int(colour[i : i + 2], 16) / 255) ** 2 for i in (0, 2, 4))
    return red, green, blue


def mix(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (x + (y - x) * share for x, y in zip(a, b, strict=True))
    return red, green, blue


def scale(a: Colour, factor: float) -> Colour:
    return a[0] * factor, a[1] * factor, a[2] * factor


def scene_values(scene: Scene, aspect: float) -> dict[str, float | list[float] | Colour]:
    """All numbers that the renderer needs of one scene, by name."""
    chance = random.Random(scene.seed * 7919 + 17)
    return {
        **sky_values(scene, aspect, chance),
        **_land_values(scene, chance),
        **camera_values(scene),
    }


def sky_values(scene: Scene, aspect: float, chance: random.Random) -> dict:
    """Numbers of the sky and of the light."""
    a = scene.attributes
    light = LIGHTS[a.time_of_day]
    shine = exposure("aab6dc") if a.celestial == "moon" else exposure(light.glow)
    cover, softness, grey, direct, air, mist = WEATHERS[a.weather]
    gloom = exposure(light.grey)
    if a.weather == "rain":
        gloom = scale(gloom, 0.72)
    if a.weather in ("fog", "snowfall"):
        gloom = scale(gloom, 1.15)
    x = (scene.celestial_x - 0.5) * aspect
    y = scene.celestial_y
    high = a.celestial_altitude == "high"
    visible = a.celestial != "none"
    moon = a.celestial == "moon"
    glow = light.glow_strength * (1 - 0.75 * grey) * (1.0 if visible else 0.55)
    if moon:
        glow *= 0.55
    disc = exposure("f4f2e4") if moon else scale(mix(exposure(light.glow), (4, 4, 4), 0.5), 1.6)
    if high and a.time_of_day in ("dawn", "sunset"):
        glow *= 0.85
    length = math.hypot(x / aspect * 1.7, 0.55, 0.45)
    warm = a.time_of_day in ("dawn", "sunset", "dusk")
    dawn_mist = 1.6 if a.time_of_day in ("dawn", "morning") else 1.0
    return {
        "zenith": mix(exposure(light.zenith), gloom, grey * 0.9),
        "middle": mix(exposure(light.middle), gloom, grey * 0.85),
        "edge": mix(exposure(light.horizon), scale(gloom, 1.25), grey * 0.8),
        "glow": mix(shine, gloom, grey * 0.6),
        "glow_strength": glow,
        "cloud_lit": mix(exposure(light.cloud_lit), scale(gloom, 1.12), min(1.0, grey * 1.1)),
        "cloud_shade": mix(exposure(light.cloud_shade), scale(gloom, 0.55), min(1.0, grey * 1.1)),
        "sunlight": scale(light.sun, direct * (0.8 if not visible else 1.0)),
        "ambient": mix(light.ambient, scale((sum(light.ambient) / 3,) * 3, 1.25), grey * 0.6),
        "sun_x": x,
        "sun_y": y,
        "disc": scale(disc, (1 - grey) ** 1.5 if not moon else 1.0 - 0.6 * grey),
        "disc_radius": (0.030 if moon else (0.036 if warm else 0.026)) if visible else 0.0,
        "is_moon": float(moon),
        "visible": float(visible),
        "light_x": x / aspect * 1.7 / length,
        "light_y": 0.55 / length,
        "light_z": 0.45 / length,
        "cover": cover + scene.cover * 0.16,
        "softness": softness,
        "cloud_u": chance.uniform(5, 55),
        "cloud_v": chance.uniform(5, 55),
        "wind": scene.wind,
        "air": air * scene.haze * (0.7 if warm else 1.0),
        "mist": mist * scene.haze * dawn_mist,
        "stars": {"night": 1.0, "dusk": 0.3}.get(a.time_of_day, 0.0) * (1 - min(1.0, 1.3 * grey)),
        "aurora": 1.0 if a.weather == "aurora" else 0.0,
        "aurora_seed": chance.uniform(5, 55),
        "gain": MOODS[a.mood][0],
        "saturation": MOODS[a.mood][1],
        "lift": MOODS[a.mood][2],
        "hue": scene.hue,
        "bird_span": 1.0,
    }


def _land_values(scene: Scene, chance: random.Random) -> dict:
    a = scene.attributes
    ground = GROUNDS[a.terrain]
    wet = a.water != "none"
    snowy = a.snow_caps == "yes"
    winter = a.weather == "snowfall"
    rest, height, base = list(ground.rest), list(ground.height), [9.0] * LAYERS
    hollow = [ground.hollow] * LAYERS
    if a.terrain == "islands":
        hollow = [0.42, 0.45, 0.50, 0.60, 0.68, 0.78, 0.46]
    if wet:
        far = 0.05 if a.water == "lake" else 0.02
        for layer in range(6):
            q = layer / 5
            base[layer] = (0.003 + far * q**1.5) if a.terrain != "islands" else rest[layer] + 0.003
            rest[layer] = base[layer]
            if a.terrain != "islands":
                hollow[layer] = min(ground.hollow, 0.15) + (0.0, 0.05, 0.2, 0.4, 0.55, 0.7)[layer]
            height[layer] *= (1.0, 1.0, 0.95, 0.8, 0.7, 0.6)[layer]
            height[layer] *= HIGHER_BEYOND_WATER.get(a.terrain, 1.0)
        if a.water == "sea" and a.terrain != "islands":
            share = 0.4 if a.terrain in HIGHER_BEYOND_WATER else 1.0
            deeper = (0.1, 0.15, 0.2, 0.25, 0.25, 0.25, 0)
            hollow = [h + share * s for h, s in zip(hollow, deeper, strict=True)]
    shown = chance.random() < (0.55 if wet else 1.0) or a.terrain in ALWAYS_A_SHORE
    if wet:
        lowest = 0.91 if a.terrain in ALWAYS_A_SHORE else 0.95
        rest[6] = lowest - scene.horizon + chance.uniform(-0.02, 0.05)
    if wet and not shown:
        rest[6] = 3.0
    if a.terrain == "islands":
        rest[6] = 3.0
    low, high = albedo(ground.low), albedo(ground.high)
    if winter:
        low, high = mix(low, (0.8, 0.84, 0.9), 0.65), mix(high, (0.8, 0.84, 0.9), 0.6)
    if a.trees == "pines" and a.terrain in ("mountains", "hills", "islands"):
        low = mix(low, albedo("2f4a33"), 0.6)
    leaves = albedo({"pines": "2c4a34", "broadleaf": "4c6a2c"}.get(a.trees, "4c6a2c"))
    if winter or (snowy and a.trees == "pines"):
        leaves = mix(leaves, (0.7, 0.75, 0.8), 0.3 if winter else 0.08)
    trees = {"none": 0.0, "pines": 1.0, "broadleaf": 1.0}[a.trees]
    dry = a.terrain in ("dunes", "canyon")
    return {
        "horizon": scene.horizon,
        "height": [h * scene.relief for h in height],
        "frequency": list(ground.frequency),
        "rest": rest,
        "base": base,
        "hollow": hollow,
        "offset_u": [chance.uniform(3, 60) for _ in range(LAYERS)],
        "offset_v": [chance.uniform(3, 60) for _ in range(LAYERS)],
        "ridged": ground.ridged,
        "gain_outline": ground.gain,
        "terraces": ground.terraces,
        "low": low,
        "leaves": leaves,
        "high": high,
        "rough": ground.rough * (0.7 if winter else 1.0),
        "crease": ground.crease,
        "grain_gain": ground.grain_gain,
        "winter": float(winter),
        "grain_u": ground.grain[0],
        "grain_v": ground.grain[1],
        "bands": ground.bands,
        "snow": 1.0 if snowy else 0.0,
        "snow_line": {"mountains": 0.42}.get(a.terrain, 0.5) - (0.25 if winter else 0.0),
        "trees": trees * (0.7 if dry else 1.0),
        "sparse": 1.0 if dry else 0.0,
        "pines": float(a.trees == "pines"),
        "plane": float(a.terrain == "plains"),
        "sand": float(a.terrain == "dunes"),
        "water": float(wet),
        "waves": 1.0 if a.water == "sea" else 0.45,
        "deep": mix(albedo("173a4a"), albedo("1b5560"), 0.5 + 0.5 * scene.hue),
    }


def camera_values(scene: Scene) -> dict:
    """Speeds of the camera, in frame heights or octaves a second."""
    camera = scene.attributes.camera
    return {
        "pan": {"pan right": 0.108, "pan left": -0.108}.get(camera, 0.0) * scene.speed,
        "rise": (0.040 if camera == "rise" else 0.0) * scene.speed,
        "zoom": (0.080 if camera == "zoom in" else 0.0) * scene.speed,
    }
