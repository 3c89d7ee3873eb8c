"""Draws a picture of the second edition: the far view first, then the near ground before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import effects, grown_land, land, plants, sky
from .effects import optional
from .noise import random_cells, texture
from .scene import Scene

Values = dict[str, Tensor]


def draw(p: Values, scenes: Sequence[Scene], x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """n 3 h w: one picture for each row of the values."""
    tile, cells = texture(x.device), random_cells(x.device)
    x, y = x.reshape(1, 1, -1), y.reshape(1, -1, 1)
    column = grown_land.outlines(p, tile, x, pixel)
    ground = grown_land.plane(p, tile, column, x, y, pixel)
    # Each half is drawn where something of it is seen, which spares a third of the pixels.
    behind = _rows(ground["cover"] < 1)
    before = _rows(ground["cover"] > 0)
    picture = x.new_zeros(len(scenes), 3, y.shape[1], x.shape[2])
    picture[:, :, behind] = _far(p, tile, cells, column, scenes, x, y[:, behind], pixel)
    if before.stop > before.start:
        near = {name: value[:, before] for name, value in ground.items()}
        glow = _glow(p, x, y[:, before])
        drawn = grown_land.shade_near(p, tile, cells, near, scenes, glow, pixel)
        cover = near["cover"][:, None]
        picture[:, :, before] = torch.lerp(picture[:, :, before], drawn, cover)
    haze = p["edge"] * 0.40 + p["middle"] * 0.44
    picture = optional(
        picture, p, scenes, grown_land.lonely, plants.lone_tree, tile, x, y, haze, pixel
    )
    picture = optional(picture, p, scenes, effects.winged, effects.birds, cells, x, y, pixel)
    picture = effects.air(p, tile, picture, x, y, _glow(p, x, y))
    picture = optional(picture, p, scenes, effects.rainy, effects.rain, tile, x, y, pixel)
    picture = optional(picture, p, scenes, effects.snowy, effects.snowfall, cells, x, y, pixel)
    return effects.develop(p, picture)


def _rows(seen: Tensor) -> slice:
    """The rows between the first and the last that something is seen in."""
    found = seen.any(dim=2).any(dim=0).nonzero()
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _glow(p: Values, x: Tensor, y: Tensor) -> Tensor:
    """Closeness to the sun, n h w."""
    sky_y = y.expand(p["time"].shape[0], -1, x.shape[2])
    _, _, glow = sky.directions(p, x, {"sky_y": sky_y})
    return glow


def _far(
    p: Values, tile: Tensor, cells: Tensor, column: Values, scenes: Sequence[Scene], x: Tensor,
    y: Tensor, pixel: float,
) -> Tensor:  # fmt: skip
    """Sky, ridges and water: n 3 h w."""
    ridges = {**column, **{name: column[name][:, : grown_land.RIDGES] for name in ("top", "base")}}
    waves = land.water_surface(p, tile, x, y, pixel)
    place = land.find_layers(p, ridges, waves, y, pixel)
    sky_x, elevation, glow = sky.directions(p, x, place)
    picture = sky.backdrop(p, sky_x, elevation, glow, pixel)
    picture = optional(picture, p, scenes, sky.starry, sky.stars, cells, sky_x, elevation, pixel)
    picture = optional(picture, p, scenes, sky.polar, sky.aurora, tile, sky_x, elevation, pixel)
    picture = sky.clouds(p, tile, picture, sky_x, elevation, glow, pixel)
    picture = grown_land.shade_ridges(
        p, tile, cells, picture, ridges, place, scenes, y, glow, pixel
    )
    water = land.shade_water(p, picture, waves, place, x, y, pixel)
    return optional(
        water, p, scenes, grown_land.frozen, grown_land.shade_ice, tile, waves, place, picture,
        x, y, pixel,
    )  # fmt: skip
