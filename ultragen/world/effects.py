"""What hangs in the air or lies over the whole picture: mist, rain, snow, birds, development."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .noise import cell_values, fetch
from .scene import Scene

Values = dict[str, Tensor]
BIRDS = 7  # in a flock


def rainy(scene: Scene) -> bool:
    return scene.attributes.weather in ("rain", "storm")


def snowy(scene: Scene) -> bool:
    return scene.attributes.weather == "snowfall"


def winged(scene: Scene) -> bool:
    return scene.attributes.birds == "yes"


def optional(picture: Tensor, p: Values, scenes: Sequence[Scene], has, effect, *inputs) -> Tensor:
    """Applies an effect to the frames of those scenes that have it."""
    chosen = [i for i, scene in enumerate(scenes) if has(scene)]
    if not chosen:
        return picture
    if len(chosen) == len(scenes):
        return effect(p, picture, *inputs)
    index = torch.tensor(chosen, device=picture.device)
    part = {name: value[index] for name, value in p.items()}

    def picked(value):
        if isinstance(value, dict):
            return {name: picked(part) for name, part in value.items()}
        of_scenes = isinstance(value, Tensor) and value.shape[0] == len(scenes) > 1
        return value[index] if of_scenes else value

    inputs = [picked(value) for value in inputs]
    return picture.index_copy(0, index, effect(part, picture[index], *inputs))


def air(p: Values, tile: Tensor, picture: Tensor, x: Tensor, y: Tensor, glow: Tensor) -> Tensor:
    """Banks of mist that drift over the land and the water."""
    above = (p["horizon_now"] - y) / p["magnify"]
    world = (x / p["magnify"] + p["travel"] * 1.3).expand(-1, y.shape[1], -1)
    height = above.expand_as(world)
    drift = p["time"] * p["wind"] * 0.06
    bank = fetch(tile, world * 1.1 + drift + p["cloud_u"], height * 4.5 + p["cloud_v"])
    curl = fetch(tile, world * 3.1 + drift * 1.6 + bank[3], height * 11.0 + p["cloud_u"])
    level = torch.exp(-((height + 0.02) * (height + 0.02)) * 60.0)
    amount = (0.45 + 0.75 * bank[0] + 0.35 * curl[0]).clamp(0, 1.4) * level
    veil = 1.0 - torch.exp(-0.42 * p["mist"] * amount)
    colour = p["edge"] * 0.58 + p["middle"] * 0.34
    shine = (glow * p["glow_strength"] * 0.7).clamp(0, 1)[:, None]
    colour = torch.lerp(colour, p["glow"], shine)
    return torch.lerp(picture, colour, veil[:, None])


def birds(p: Values, picture: Tensor, cells: Tensor, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """A flock of small flapping silhouettes."""
    number = torch.arange(BIRDS, device=x.device, dtype=torch.float32).reshape(1, BIRDS, 1)
    chance = cell_values(cells, number + p["cloud_u"].floor(), p["cloud_v"].floor() + 0 * number)
    way = torch.sign(p["wind"])
    span = (0.013 + 0.012 * chance[0]) * p["bird_span"]
    start = (number - BIRDS / 2) * 0.085 + 0.05 * chance[1] - 0.1 * way
    middle_x = start + way * p["time"] * 0.075 - p["travel"]
    middle_y = p["horizon_now"] - 0.13 - 0.17 * chance[2] + 0.01 * torch.sin(p["time"] + number)
    across = (x - middle_x) / span  # n bird w
    reach = across.abs()
    flap = torch.sin(p["time"] * (7.0 + 2 * chance[3]) + 40 * chance[1])
    wing = middle_y - span * (0.55 * flap + 0.15) * reach * (1.6 - 0.75 * reach) + span * 0.1
    width = (span * 0.10 * (1.25 - reach)).clamp(min=0) + 0.25 * pixel
    inside = ((1.0 - reach) * span / pixel).clamp(0, 1)
    shadow = torch.zeros_like(picture[:, 0])
    for bird in range(BIRDS):
        off = (y - wing[:, bird, None]).abs() - width[:, bird, None]
        shadow = torch.maximum(shadow, (0.5 - off / pixel).clamp(0, 1) * inside[:, bird, None])
    dark = p["ambient"] * 0.25 + p["edge"] * 0.06
    return torch.lerp(picture, dark, (0.85 * shadow)[:, None])


def rain(p: Values, picture: Tensor, tile: Tensor, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """Two depths of slanted streaks."""
    streaks = torch.zeros_like(picture[:, 0])
    slant = 0.10 * p["wind"]
    for fine, fast, strength in ((58.0, 9.0, 0.20), (105.0, 7.0, 0.14)):
        u = ((x + slant * y) * fine + 40.0).expand_as(streaks)
        v = (y * (fine / 22.0) - p["time"] * fast).expand_as(streaks)
        values = fetch(tile, u, v)
        streaks = streaks + strength * (values[0] * 1.7 - 0.65).clamp(0, 1)
    return picture + (p["edge"] * 1.1 + 0.06) * streaks[:, None]


def snowfall(
    p: Values, picture: Tensor, cells: Tensor, x: Tensor, y: Tensor, pixel: float
) -> Tensor:
    """Three depths of soft flakes."""
    white = torch.zeros_like(picture[:, 0])
    for grid, radius, fall, strength in (
        (8.0, 0.0062, 0.34, 0.62),
        (16.0, 0.0036, 0.21, 0.6),
        (30.0, 0.0022, 0.13, 0.5),
    ):
        sway = 0.012 * torch.sin(p["time"] * 1.7 + grid) + p["time"] * p["wind"] * 0.05
        u = ((x - sway) * grid + 300.0).expand_as(white)
        v = ((y - p["time"] * fall) * grid + 300.0).expand_as(white)
        column, row = torch.floor(u), torch.floor(v)
        chance = cell_values(cells, column, row)
        across = (u - column - 0.2 - 0.6 * chance[0]) / grid
        down = (v - row - 0.2 - 0.6 * chance[1]) / grid
        size = radius * (0.6 + 0.7 * chance[2])
        soft = size + 0.4 * pixel
        flake = torch.exp(-(across * across + down * down) / (soft * soft)) * (size / soft)
        white = torch.maximum(white, flake * strength * (chance[3] > 0.4))
    bright = p["edge"] * 0.8 + p["ambient"] * 1.2 + 0.12
    return picture + (bright - picture * 0.8) * white[:, None]


def develop(p: Values, picture: Tensor) -> Tensor:
    """From exposures to the screen: mood, film curve, saturation."""
    exposed = picture.clamp(min=0) * p["gain"]
    screen = torch.sqrt(1.0 - torch.exp(-exposed) + 1e-6)
    weights = torch.tensor([0.30, 0.59, 0.11], device=picture.device).reshape(1, 3, 1, 1)
    grey = (screen * weights).sum(dim=1, keepdim=True)
    screen = torch.lerp(grey, screen, p["saturation"][:, None])
    lift = p["lift"][:, None]
    return torch.lerp(lift, torch.ones_like(lift), screen).clamp(0, 1)
