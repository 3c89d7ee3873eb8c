"""Colours and numbers of a scene of the second edition: what its attributes mean to the renderer.

What both editions have comes from `palette`; layers 0 to 5 are ridges from far to near, the last
one is the near ground, a plane in perspective.
"""

from __future__ import annotations

import math
import random

from .palette import (
    LAYERS,
    Colour,
    Ground,
    albedo,
    camera_values,
    exposure,
    mix,
    scale,
    sky_values,
)
from .scene import GrownAttributes, Scene

DEEPER = (0.1, 0.15, 0.2, 0.25, 0.25, 0.25, 0.0)  # layers by the sea: fewer, apart
SNOW = (0.80, 0.84, 0.92)  # reflectance
GROUNDS = {
    "mountains": Ground(
        (0.34, 0.27, 0.19, 0.13, 0.09, 0.06, 0.02), (1.15, 1.4, 1.7, 1.7, 1.6, 1.4, 0.8),
        (0.00, 0.012, 0.025, 0.045, 0.070, 0.10, 0.15),
        1.0, 0.48, 0.0, "59703f", "82786c", 1.0, 0.8, 0.82, (5.0, 3.6), 0.1, 0.10,
    ),
    "hills": Ground(
        (0.12, 0.12, 0.11, 0.10, 0.09, 0.075, 0.02), (1.1, 1.1, 1.0, 0.9, 0.85, 0.8, 0.7),
        (-0.01, 0.008, 0.026, 0.05, 0.08, 0.115, 0.17),
        0.0, 0.33, 0.0, "6f9440", "93a158", 0.50, 0.1, 0.76, (3.0, 5.0), 0.0, 0.35,
    ),
    "dunes": Ground(
        (0.07, 0.10, 0.12, 0.12, 0.11, 0.09, 0.03), (1.2, 1.0, 0.9, 0.8, 0.65, 0.55, 0.4),
        (0.0, 0.015, 0.035, 0.06, 0.095, 0.14, 0.21),
        0.75, 0.16, 0.0, "d9a869", "e8bf86", 0.75, 0.9, 0.50, (1.2, 2.6), 0.0, 0.30,
    ),
    "islands": Ground(
        (0.13, 0.19, 0.21, 0.20, 0.16, 0.12, 0.02), (1.1, 1.1, 1.0, 0.9, 0.8, 0.7, 0.7),
        (0.0, 0.004, 0.012, 0.025, 0.045, 0.07, 0.30),
        0.55, 0.45, 0.0, "54703f", "857a68", 0.9, 0.6, 0.82, (5.0, 4.0), 0.15, 0.46,
    ),
    "canyon": Ground(
        (0.15, 0.19, 0.21, 0.20, 0.16, 0.10, 0.02), (1.0, 1.0, 0.9, 0.9, 0.8, 0.8, 0.6),
        (0.0, 0.010, 0.025, 0.045, 0.075, 0.11, 0.165),
        0.1, 0.42, 1.0, "b0653f", "cd8a5b", 0.60, 0.5, 0.80, (4.0, 1.6), 1.0, 0.25,
    ),
    "plains": Ground(
        (0.05, 0.035, 0.025, 0.020, 0.016, 0.012, 0.006), (1.3, 1.2, 1.2, 1.2, 1.1, 1.0, 0.7),
        (-0.005, 0.002, 0.006, 0.010, 0.015, 0.021, 0.030),
        0.1, 0.40, 0.0, "8f9c4a", "b0a558", 0.5, 0.1, 0.8, (4.0, 9.0), 0.0, 0.30,
    ),
    # Flanks rise on both sides, see `flanks`.
    "valley": Ground(
        (0.30, 0.22, 0.17, 0.13, 0.10, 0.07, 0.012), (1.2, 1.3, 1.3, 1.2, 1.1, 1.0, 0.7),
        (0.00, 0.010, 0.020, 0.034, 0.052, 0.075, 0.105),
        0.6, 0.44, 0.0, "607f3e", "7e7a63", 0.85, 0.5, 0.80, (4.5, 4.0), 0.0, 0.20,
    ),
}  # fmt: skip

SKIES = {  # zenith, middle, horizon, glow
    "pink": ("6f5fa8", "e79ac0", "ffc3c4", "ff9fb0"),
    "violet": ("2a1a5e", "6b479f", "b58acb", "c79be0"),
    "black": ("04050a", "070a14", "0d1422", "5a6a8a"),
}

NEAR = {  # reflectance of the near ground, darker and lighter, and how rough it is
    "none": ("5d7046", "7d756c", 0.6),
    "grass": ("3f5a22", "8fa04a", 0.5),
    "flowers": ("446026", "86a048", 0.5),
    "sand": ("c9a877", "ecd6a6", 0.35),
    "pebbles": ("6a655e", "a39c90", 0.45),
    "rocks": ("5e5850", "aca294", 0.95),
    "snow": ("c5d0de", "eef3fa", 0.35),
}
FLOWERS = ("f4f0e0", "f2c230", "d83a4a", "8f6ad0", "e87fb0", "5f8fe0")


def grown_values(scene: Scene, aspect: float) -> dict[str, float | list[float] | Colour]:
    """All numbers that the renderer needs of a scene of the second edition, by name."""
    chance = random.Random(scene.seed * 7919 + 17)
    attributes = scene.attributes
    assert isinstance(attributes, GrownAttributes)
    values = sky_values(scene, aspect, chance)
    values |= _sky(scene, attributes, values)
    values |= _land(scene, attributes, chance)
    values |= _near(scene, attributes, chance, aspect)
    return values | camera_values(scene)


def _sky(scene: Scene, a: GrownAttributes, values: dict) -> dict:
    """What the sky has other than in the first edition."""
    changed: dict = {"bird_span": 2.4, "stars": values["stars"]}
    if a.sky != "natural":
        zenith, middle, edge, glow = map(exposure, SKIES[a.sky])
        night = {"night": 0.30, "dusk": 0.85}.get(a.time_of_day, 1.0) if a.sky != "black" else 1.0
        share = 0.85
        for name, colour in (("zenith", zenith), ("middle", middle), ("edge", edge)):
            changed[name] = mix(values[name], scale(colour, night), share)
        changed["glow"] = mix(values["glow"], scale(glow, night), 0.6)
        changed["cloud_lit"] = mix(values["cloud_lit"], scale(middle, 1.25 * night), 0.65)
        changed["cloud_shade"] = mix(values["cloud_shade"], scale(zenith, 1.3 * night), 0.65)
        tint = scale(middle, 0.45 * night / max(0.2, sum(middle) / 3))
        changed["ambient"] = mix(values["ambient"], scale(tint, sum(values["ambient"]) / 3), 0.4)
    if a.sky == "black":
        changed["stars"] = 1.5
        changed["ambient"] = scale(values["ambient"], 0.75)
    if a.weather == "storm":
        for name in ("zenith", "middle", "cloud_shade"):
            changed[name] = scale(values[name], 0.24)
        changed["cloud_lit"] = scale(values["cloud_lit"], 0.42)
        changed["edge"] = scale(values["edge"], 0.45)
        changed["ambient"] = scale(values["ambient"], 0.75)
        changed["wind"] = values["wind"] * 2.2
    if a.celestial == "none":
        # Nothing may look like a sun where a caption names none.
        changed["glow_strength"] = values["glow_strength"] * 0.45
    if a.celestial_size == "huge":
        radius = 0.105 if a.celestial == "moon" else 0.115
        changed["disc_radius"] = radius
        changed["sun_y"] = max(values["sun_y"], 0.9 * radius)
    changed["bloom"] = {"storm": 0.0}.get(a.weather, 1.0)
    return changed


def _land(scene: Scene, a: GrownAttributes, chance: random.Random) -> dict:
    ground = GROUNDS[a.terrain]
    wet = a.water in ("lake", "sea", "ice")
    rest, height = list(ground.rest), [h * scene.relief for h in ground.height]
    base, hollow = [9.0] * LAYERS, [ground.hollow] * LAYERS
    if a.terrain == "islands":
        hollow = [0.42, 0.45, 0.50, 0.60, 0.68, 0.78, 0.1]
    if wet and a.terrain != "islands":
        far = 0.05 if a.water != "sea" else 0.02
        for layer in range(6):
            q = layer / 5
            base[layer] = rest[layer] = 0.003 + far * q**1.5
            hollow[layer] = min(ground.hollow, 0.15) + (0.0, 0.05, 0.2, 0.4, 0.55, 0.7)[layer]
            height[layer] *= (1.0, 1.0, 0.95, 0.8, 0.7, 0.6)[layer]
            height[layer] *= {"hills": 1.6, "dunes": 1.5}.get(a.terrain, 1.0)
        if a.water == "sea":
            hollow = [h + s for h, s in zip(hollow, DEEPER, strict=True)]
    if a.terrain == "islands":
        base = [level + 0.003 for level in rest]
    if a.water == "river":
        base = [0.004 + 0.2 * level for level in rest]
        rest = [level * 0.2 + 0.002 for level in rest[:6]] + [min(rest[6], 0.038)]
    if a.trees == "forest":  # seen on slopes, not as a line
        for layer in (3, 4, 5):
            height[layer] *= (1.25, 1.45, 1.7)[layer - 3]
        if a.water == "none":
            rest[6] += 0.035
    winter, summer = a.season == "winter", a.season == "summer"
    low, high = albedo(ground.low), albedo(ground.high)
    if winter:
        low, high = mix(low, SNOW, 0.72), mix(high, SNOW, 0.5)
    if summer:
        green = albedo("5f9a34")
        keep = 0.15 if a.terrain in ("dunes", "canyon", "islands") else 0.6
        low, high = mix(low, green, keep), mix(high, green, 0.4 * keep)
    leaves = albedo({"pines": "24402c", "forest": "2c4a2c"}.get(a.trees, "4a6a28"))
    if summer:
        leaves = mix(leaves, albedo("4f8a2c"), 0.35)
    pines = a.trees == "pines" or (a.trees == "forest" and chance.random() < 0.55) or winter
    if a.trees == "forest" and not pines:
        leaves = albedo("46682a")
    # A low sun or moon is seen: the ridges in front of it leave a gap.
    highest = max(height) * 1.15
    clear = (scene.celestial_y - 0.03) / highest
    gap = max(0.0, 1.0 - max(0.12, clear)) if a.celestial != "none" else 0.0
    return {
        "horizon": scene.horizon,
        "height": height,
        "frequency": list(ground.frequency),
        "rest": rest,
        "base": base,
        "hollow": hollow,
        "offset_u": [chance.uniform(3, 60) for _ in range(LAYERS)],
        "offset_v": [chance.uniform(3, 60) for _ in range(LAYERS)],
        "gap": gap,
        "flanks": 1.0 if a.terrain == "valley" else 0.0,
        "ridged": ground.ridged,
        "gain_outline": ground.gain,
        "terraces": ground.terraces,
        "low": low,
        "high": high,
        "leaves": leaves,
        "rough": ground.rough * (0.8 if winter else 1.0),
        "crease": ground.crease,
        "grain_gain": ground.grain_gain,
        "winter": float(winter),
        "grain_u": ground.grain[0],
        "grain_v": ground.grain[1],
        "bands": ground.bands * (0.5 if winter else 1.0),
        "snow": 1.0 if a.snow_caps == "yes" else 0.0,
        "snow_line": 0.20 - (0.2 if winter else 0.0),
        "trees": {"none": 0.0, "lone tree": 0.0, "forest": 1.15}.get(a.trees, 1.0),
        "sparse": -0.8 if a.trees == "forest" else 0.0,
        "pines": float(pines),
        "forest": float(a.trees == "forest"),
        "plane": 0.0,
        "water": float(a.water != "none"),
        "waves": {"sea": 1.0, "river": 0.5, "ice": 0.0}.get(a.water, 0.4)
        * (1.5 if a.weather == "storm" else 1.0),
        "ice": float(a.water == "ice"),
        "river": float(a.water == "river"),
        "deep": mix(albedo("173a4a"), albedo("1b5560"), 0.5 + 0.5 * scene.hue),
    }


def _near(scene: Scene, a: GrownAttributes, chance: random.Random, aspect: float) -> dict:
    """The near ground: where it begins, what it is made of, and the tree that stands on it."""
    low, high, rough = NEAR[a.near_ground]
    dark, light = albedo(low), albedo(high)
    if a.terrain == "canyon" and a.near_ground in ("sand", "rocks", "pebbles"):
        dark, light = mix(dark, albedo("a05a38"), 0.7), mix(light, albedo("cf8d60"), 0.7)
    if a.terrain == "dunes":
        dark, light = albedo("cf9a5c"), albedo("e6bd86")
    if a.near_ground in ("grass", "flowers"):
        dry = 0.5 + 0.5 * scene.hue
        if a.season == "summer":
            dry *= 0.3
            dark, light = mix(dark, albedo("3f7a1c"), 0.5), mix(light, albedo("8fc83c"), 0.5)
        dark = mix(dark, albedo("6a6a2c"), 0.5 * dry)
        light = mix(light, albedo("c2b060"), 0.6 * dry)
    shore = chance.uniform(0.16, 0.24)
    side = chance.choice((-1.0, 1.0))
    picked = chance.sample(FLOWERS, 3)
    river = a.water == "river"
    tree_x = chance.uniform(0.33 if river else 0.12, 0.42 if river else 0.36) * aspect
    tree_x = math.copysign(tree_x, side if a.water in ("lake", "sea") else chance.uniform(-1, 1))
    if a.celestial != "none" and abs(tree_x - (scene.celestial_x - 0.5) * aspect) < 0.2:
        tree_x = -tree_x  # not before the sun
    # The tree stands on dry land.
    foot = max(chance.uniform(0.20, 0.27), GROUNDS[a.terrain].rest[6] + 0.04 if not river else 0.0)
    if a.water in ("lake", "sea", "ice"):
        foot = max(foot, shore + 0.11 * side * tree_x + 0.08)
    foot = min(foot, 0.96 - scene.horizon)
    return {
        "near_dark": dark,
        "near_light": light,
        "near_rough": rough,
        "shore": shore if a.water in ("lake", "sea", "ice") else 0.0,
        "shore_side": side,
        "open": float(a.near_ground == "none"),
        "river_u": chance.uniform(5, 55),
        "river_x": chance.uniform(-0.25, 0.25),
        "river_width": chance.uniform(0.8, 1.2),
        "sandy": float(a.near_ground == "sand"),
        "white_ground": float(a.near_ground == "snow"),
        "flower_a": albedo(picked[0]),
        "flower_b": albedo(picked[1]),
        "flower_c": albedo(picked[2]),
        "tree_x": tree_x,
        "tree_y": foot,
        "tree_size": chance.uniform(0.22, 0.32),
        "tree_lean": chance.uniform(-0.12, 0.12),
        "tree_seed": math.floor(chance.uniform(5, 60)),
        "tree_bare": float(a.season == "winter"),
    }
