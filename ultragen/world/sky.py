"""The sky: gradient and glow, sun and moon, stars, aurora, clouds."""

from __future__ import annotations

import torch
from torch import Tensor

from .noise import LACUNARITY, cell_values, fade, fetch, fused, octaves
from .scene import Scene

Values = dict[str, Tensor]
CLOUD_OCTAVES = 7


def starry(scene: Scene) -> bool:
    a = scene.attributes
    return a.time_of_day in ("dusk", "night") and a.weather in ("clear", "scattered", "aurora")


def polar(scene: Scene) -> bool:
    return scene.attributes.weather == "aurora"


def directions(p: Values, x: Tensor, place: Values) -> tuple[Tensor, Tensor, Tensor]:
    """Where a pixel looks into the sky: x, elevation above the horizon, closeness to the sun."""
    elevation = (p["horizon_now"] - place["sky_y"]) / p["magnify"]
    sky_x = (x / p["magnify"] + p["travel"]).expand_as(elevation)
    # Squeezed in height, the glow spreads along the horizon as in real air.
    across, up = sky_x - p["sun_x"], (elevation - p["sun_y"]) * 1.25
    glow = torch.exp(-2.1 * torch.sqrt(across * across + up * up + 1e-5))
    return sky_x, elevation, glow


def backdrop(p: Values, x: Tensor, elevation: Tensor, glow: Tensor, pixel: float) -> Tensor:
    """The cloudless sky with sun or moon: n 3 h w."""
    up = elevation.clamp(min=0)
    low = torch.exp(-up * 7.5)[:, None]
    mid = torch.exp(-up * up * 9.0)[:, None]
    sky = torch.lerp(p["zenith"], p["middle"], mid)
    sky = torch.lerp(sky, p["edge"], low)
    halo = (glow * glow * p["glow_strength"])[:, None]
    sky = sky + (p["glow"] - 0.35 * sky) * halo
    return sky + p["disc"] * disc(p, x, elevation, pixel)[:, None]


def disc(p: Values, x: Tensor, elevation: Tensor, pixel: float) -> Tensor:
    """Brightness of the sun with its bloom or of the moon with its maria."""
    across, up = x - p["sun_x"], elevation - p["sun_y"]
    square = across * across + up * up
    distance = torch.sqrt(square + 1e-9)
    radius = p["disc_radius"]
    edge = ((radius - distance) / (1.5 * pixel + 0.05 * radius) + 0.5).clamp(0, 1)
    bloom = 0.30 * torch.exp(-distance * 15.0) + 0.5 * torch.exp(-distance * 55.0)
    inner = 1.0 / radius.clamp(min=1e-3)
    maria = torch.sin(across * inner * 3.1 + 1.2) * torch.sin(up * inner * 2.7 - across * inner)
    face = edge * (1.0 - p["is_moon"] * (0.16 + 0.16 * maria))
    return (face + bloom * (1.0 - 0.55 * p["is_moon"])) * p["visible"]


def clouds(
    p: Values,
    tile: Tensor,
    sky: Tensor,
    x: Tensor,
    elevation: Tensor,
    glow: Tensor,
    pixel: float,
) -> Tensor:
    """Lays a cloud deck, seen in perspective from below, over the sky."""
    near = 1.0 / (elevation.clamp(min=0) + 0.17)
    u = x * near * 0.80 + p["cloud_u"] + p["time"] * p["wind"] * 0.10
    v = near * 1.15 + p["cloud_v"]
    warp = fetch(tile, u * 0.4, v * 0.4)
    u, v = u + 0.35 * warp[0], v + 0.35 * warp[3]
    footprint = near * near * (1.2 * pixel)
    density = p["cover"] + 0.35 * warp[0]
    toward_u, toward_v = p["sun_x"] - x, 0.35 - 0.9 * p["sun_y"]
    norm = torch.rsqrt(toward_u * toward_u + toward_v * toward_v + 0.02)
    number = octaves(pixel, 0.9, CLOUD_OCTAVES)
    add_up = fused("cloud_octaves", cloud_octaves, x.device)
    density, slope = add_up(tile, u, v, footprint, toward_u, toward_v, density, number)
    thin = ((density + 0.06) / p["softness"]).clamp(0, 1)
    cover = thin * thin * (3.0 - 2.0 * thin)
    bulk = (density * 1.1).clamp(0, 1)
    lit = 0.85 - 1.5 * bulk - 1.1 * slope * norm
    lit = 0.52 + 0.52 * lit * torch.rsqrt(1.0 + lit * lit)
    # Forward scattering: thin cloud near the sun shines.
    silver = (1.0 - thin) * glow * glow * p["glow_strength"]
    colour = torch.lerp(p["cloud_shade"], p["cloud_lit"], lit[:, None])
    colour = colour + p["glow"] * (silver * 0.9 + 0.35 * glow * glow * p["glow_strength"])[:, None]
    distance = torch.exp(-elevation.clamp(min=0) * 9.0) * 0.75
    colour = torch.lerp(colour, sky, distance[:, None])
    return torch.lerp(sky, colour, (cover * 0.94)[:, None])


def cloud_octaves(
    tile: Tensor,
    u: Tensor,
    v: Tensor,
    footprint: Tensor,
    toward_u: Tensor,
    toward_v: Tensor,
    density: Tensor,
    octaves: int,
) -> tuple[Tensor, Tensor]:
    """Density of the clouds, and how it rises towards the sun, each n h w.

    Args:
        tile: The noise texture.
        u: Noise coordinate of the first octave, n h w, as all others where nothing else is said.
        v: The other one.
        footprint: Noise units a pixel.
        toward_u: Direction of the sun.
        toward_v: The same across, n 1 1.
        density: What the octaves are added to.
        octaves: How many.
    """
    slope, weight = torch.zeros_like(u), 0.62
    for octave in range(octaves):
        values = fetch(tile, u, v)
        amount = weight * fade(footprint, octave)
        density = density + amount * values[0]
        slope = slope + amount * (values[1] * toward_u + values[2] * toward_v)
        u, v = u * LACUNARITY + 7.3, v * LACUNARITY + 3.1
        weight *= 0.54
    return density, slope


def stars(
    p: Values, sky: Tensor, cells: Tensor, x: Tensor, elevation: Tensor, pixel: float
) -> Tensor:
    """Adds points of light, about a pixel wide in small frames, never thinner than a pixel."""
    light = torch.zeros_like(x)
    for frequency, shift in ((17.0, 3.0), (31.0, 19.0)):
        u, v = x * frequency + 512.0 + shift, elevation * frequency + 512.0 + shift
        column, row = torch.floor(u), torch.floor(v)
        chance = cell_values(cells, column, row)
        across = (u - column - 0.15 - 0.7 * chance[0]) / frequency
        up = (v - row - 0.15 - 0.7 * chance[1]) / frequency
        size = 0.0009 + 0.0009 * chance[2] ** 4
        wide = (size * size + 0.35 * pixel * pixel).sqrt()
        power = (chance[3] ** 6) * (0.85 + 0.15 * torch.sin(p["time"] * 5 + chance[0] * 60))
        spot = torch.exp(-(across * across + up * up) / (wide * wide))
        light = light + spot * power * (size / wide)
    light = light * p["stars"] * (elevation * 6.0).clamp(0, 1) * 3.0
    return sky + light[:, None]


def aurora(
    p: Values, sky: Tensor, tile: Tensor, x: Tensor, elevation: Tensor, pixel: float
) -> Tensor:
    """Adds three curtains of light; their folds are functions of x alone."""
    row = x[:, :1]
    green = torch.zeros_like(x)
    violet = torch.zeros_like(x)
    for index, (level, height, strength) in enumerate(
        ((0.20, 0.30, 1.0), (0.30, 0.24, 0.7), (0.13, 0.16, 0.5))
    ):
        start = p["aurora_seed"] + 9.7 * index + torch.zeros_like(row)
        drift = p["time"] * 0.05
        fold = fetch(tile, row * (1.3 + 0.5 * index) + start, start + drift)
        base = level + 0.07 * fold[0] + 0.03 * fold[3]
        rays = fetch(tile, row * 9 + 2.2 * fold[0] + start, start + drift * 3)
        fine = fetch(tile, row * 31 + 5.0 * fold[0] + start, start + drift * 5)
        power = (0.55 + 0.45 * rays[0] + 0.25 * fine[0] + 0.4 * fold[3]).clamp(0.05, 1.6)
        up = elevation - base
        body = torch.exp(-up.clamp(min=0) / (height * (0.35 + 0.3 * power)))
        foot = ((up + 0.03) / 0.045).clamp(0, 1)
        glow = body * foot * foot * power * strength
        green = green + glow * (1 - (up / height).clamp(0, 1) * 0.6)
        violet = violet + glow * (up / height).clamp(0, 1.2)
    colour = torch.stack(
        [0.06 * green + 0.45 * violet, 0.85 * green + 0.08 * violet, 0.38 * green + 0.55 * violet],
        dim=1,
    )
    return sky + colour * p["aurora"][:, None] * 0.9
