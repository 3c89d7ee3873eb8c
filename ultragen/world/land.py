"""Land and water: outlines on vectors, one surface per pixel, reflections by mirrored lookups."""

from __future__ import annotations

import torch
from torch import Tensor

from .noise import LACUNARITY, fade, fetch, fused, octaves
from .palette import LAYERS

Values = dict[str, Tensor]
OUTLINE_OCTAVES = 10
SURFACE_OCTAVES = 8
WAVE_OCTAVES = 6


def outlines(p: Values, tile: Tensor, x: Tensor, pixel: float) -> Values:
    """Screen heights of all layers' upper edges and waterlines: n layer w."""
    world = x / p["layer_magnify"] + p["layer_travel"]  # n layer w
    u = world * p["frequency"] + p["offset_u"]
    v = p["offset_v"].expand_as(u)
    large = fetch(tile, u * 0.37, v + 11.0)
    smooth, ridge = 0.0, 0.0
    slope = torch.zeros_like(u)
    weight, carry = 1.0, 1.0
    fine = pixel * p["frequency"]
    for octave in range(octaves(pixel, 1.0, OUTLINE_OCTAVES)):
        values = fetch(tile, u, v)
        amount = weight * fade(fine, octave)
        crest = 1.0 - torch.sqrt(values[0] * values[0] + 0.002) * 1.3
        smooth = smooth + amount * values[0]
        ridge = ridge + amount * carry * crest
        if octave < 3:
            slope = slope + amount * values[1] * LACUNARITY**octave
        carry = (0.35 + crest * 0.9).clamp(0, 1)
        weight = weight * p["gain_outline"]
        u, v = u * LACUNARITY + 5.1, v * LACUNARITY + 1.7
    shape = (smooth * 0.75 + 0.5) * (1 - p["ridged"]) + (ridge * 0.62 - 0.08) * p["ridged"]
    terrace = _terraces(shape)
    shape = shape + (terrace - shape) * p["terraces"]
    shape = shape + 0.45 * large[0] - p["hollow"]
    tree, wood, bright = _tree_line(p, tile, world, shape)
    top = p["rest"] - p["height"] * shape - tree
    horizon = p["horizon"]
    return {
        "world": world,
        "top": horizon + top * p["layer_magnify"] + p["layer_lift"],
        "base": horizon + p["base"] * p["layer_magnify"] + p["layer_lift"],
        "crown": horizon + (p["rest"] - p["height"]) * p["layer_magnify"] + p["layer_lift"],
        "slope": slope,
        "wood": wood,
        "bright": bright,
    }


def _terraces(shape: Tensor) -> Tensor:
    """Mesas: steep walls between flat steps."""
    steps = 2.2
    level = shape * steps
    floor = torch.floor(level)
    rise = ((level - floor - 0.5) * 5.0 + 0.5).clamp(0, 1)
    return (floor + rise * rise * (3 - 2 * rise) + 0.12 * (level - floor)) / steps


def _tree_line(
    p: Values, tile: Tensor, world: Tensor, shape: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Forest edges as functions of x, each n layer w, in frame heights.

    Returns how far tree tops stand above the ground, how deep the wood reaches, and how bright
    each tree is.
    """
    depth = torch.linspace(0, 1, LAYERS, device=world.device).reshape(1, LAYERS, 1)
    size = (0.007 + 0.048 * depth**2.4) * (depth > 0.25)
    spread = 0.007 + 0.048 * depth**2.4
    clump = fetch(tile, world * 1.9 + p["offset_v"], p["offset_u"].expand_as(world))
    total, bright = torch.zeros_like(world), torch.zeros_like(world)
    for index, spacing in enumerate((0.50, 0.37, 0.29)):
        u = world / (spread * spacing * (2.2 - 1.2 * p["pines"])) + 17.3 * index
        cell = torch.floor(u)
        pick = fetch(tile, cell * 7.77 + p["offset_v"] + 200.0, cell * 3.33 + 90.0 + 5.0 * index)
        tall = (0.66 + 0.55 * pick[0]).clamp(0.0, 1.0) * (1.0 - 0.22 * index)
        across = (u - cell - 0.5 - 0.22 * pick[3].clamp(-1, 1)).abs() * 2.3
        branch = across * 5.0 + pick[0] * 9.0
        jag = 0.10 * (branch - torch.floor(branch))
        pine = ((1.0 - across).clamp(min=0) ** 1.25 * (1.0 + jag)).clamp(max=1.0)
        lobes = 0.12 * torch.sin(across * 9.0 + pick[0] * 20.0)
        crown = (1.0 - across * across).clamp(min=0) * (0.62 + 0.7 * lobes)
        tree = tall * (crown + (pine - crown) * p["pines"])
        bright = torch.where(tree > total, 0.5 + 0.5 * pick[3] + 0.6 * tree, bright)
        total = torch.maximum(total, tree)
    twigs = fetch(tile, world / (spread * 0.045), p["offset_u"].expand_as(world) + 31.0)
    leaves = fetch(tile, world / (spread * 0.016), p["offset_u"].expand_as(world) + 13.0)
    total = total * (1.0 + 0.16 * twigs[0] + 0.09 * leaves[0])
    wood = (clump[0] * 2.2 + 0.75 - p["sparse"]).clamp(0, 1) * (shape * 9.0).clamp(0, 1)
    wood = wood * size * p["trees"]
    return total * wood, wood, bright.clamp(0, 1.3)


def water_surface(p: Values, tile: Tensor, x: Tensor, y: Tensor, pixel: float) -> Values:
    """Waves in perspective: their slopes, and the distance of the plane below the horizon."""
    below = (y - p["horizon_now"]).clamp(min=0) + 0.004
    far = 0.1 / below
    u = (x / p["magnify"] + p["travel"]) * far * 5.0 + p["cloud_v"]
    v = far * 11.0 + p["forward"] * 9.0 + p["cloud_u"]
    v = v.expand_as(u)
    drift = p["time"] * 0.55
    footprint = far * far * (110.0 * pixel)
    add_up = fused("wave_octaves", wave_octaves, x.device)
    tilt, rough = add_up(tile, u, v, footprint, drift, octaves(pixel, 5.0, WAVE_OCTAVES))
    return {"tilt": tilt, "rough": rough, "far": far, "below": below.expand_as(u)}


def wave_octaves(
    tile: Tensor, u: Tensor, v: Tensor, footprint: Tensor, drift: Tensor, octaves: int
) -> tuple[Tensor, Tensor]:
    """Slope of the waves away from the viewer, and their roughness, each n h w.

    Args:
        tile: The noise texture.
        u: Noise coordinate of the first octave, n h w, as all others where nothing else is said.
        v: The other one.
        footprint: Noise units a pixel.
        drift: How far the first octave has moved, n 1 1.
        octaves: How many.
    """
    tilt, rough = torch.zeros_like(u), torch.zeros_like(u)
    weight = 1.0
    for octave in range(octaves):
        values = fetch(tile, u + drift * 0.4, v + drift)
        amount = weight * fade(footprint, octave)
        tilt = tilt + amount * values[2]
        rough = rough + amount * values[3]
        u, v, drift = u * 1.9 + 3.3, v * 2.1 + 9.1, drift * 1.5
        weight *= 0.67
    return tilt, rough


def find_layers(p: Values, column: Values, waves: Values, y: Tensor, pixel: float) -> Values:
    """The front-most layer of each pixel, the one behind it, and where the lookup really goes."""
    below = waves["below"]
    ripple = waves["tilt"] * below * (0.055 * p["waves"])
    find = fused("cover_layers", cover_layers, y.device)
    front, behind, alpha, body = find(column["top"], column["base"], ripple, y, pixel)
    horizon = p["horizon_now"]
    wet = (front != body) | ((body < 0) & (y > horizon))
    wet = wet & (p["water"] > 0.5)
    # Mirrored under the foreground too: its edge blends with the water's picture.
    sky_y = torch.where(
        (y > horizon) & (p["water"] > 0.5), 2 * horizon - y + ripple, y + torch.zeros_like(below)
    )
    return {"front": front, "behind": behind, "alpha": alpha, "wet": wet, "sky_y": sky_y,
            "ripple": ripple}  # fmt: skip


def cover_layers(
    top: Tensor, base: Tensor, ripple: Tensor, y: Tensor, pixel: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Layers from far to near laid over each other, with their reflections.

    Args:
        top: Screen heights of the layers' upper edges, n layer w.
        base: Screen heights of the layers' waterlines, n layer w or n layer 1.
        ripple: How far a reflection is shifted, n h w.
        y: Screen height of each row, 1 h 1.
        pixel: Size of a pixel in frame heights.

    Returns:
        Numbers of the front-most layer, of the one behind it, and of the front-most land that is no
        reflection, -1 where there is none; before the last how much of the pixel the front-most
        layer covers. Each n h w.
    """
    front, behind, body = (torch.full_like(ripple, -1.0) for _ in range(3))
    alpha = torch.ones_like(ripple)
    for layer in range(top.shape[1]):
        waterline = base[:, layer, None]
        under = y - waterline
        mirrored = torch.where(under > 0, waterline - under + ripple, y)
        cover = (mirrored.minimum(waterline) - top[:, layer, None]) / pixel + 0.5
        hit = cover > 0
        behind = torch.where(hit, front, behind)
        front = torch.where(hit, float(layer), front)
        alpha = torch.where(hit, cover.clamp(max=1.0), alpha)
        body = torch.where(hit & (under <= 0), float(layer), body)
    return front, behind, alpha, body


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Picks each pixel's layer from values n layer w or n layer 1: n h w."""
    values = values.expand(-1, -1, index.shape[-1])
    return torch.gather(values, 1, index)


def shade(
    p: Values,
    tile: Tensor,
    picture: Tensor,
    column: Values,
    waves: Values,
    place: Values,
    y: Tensor,
    glow: Tensor,
    pixel: float,
) -> Tensor:
    """Draws the land (or its mirror image) over the sky."""
    index = place["front"].clamp(min=0).long()
    top, base = pick(column["top"], index), pick(column["base"], index)
    zoom = pick(p["layer_magnify"], index)
    under = y - base
    seen_y = torch.where(under > 0, base - under + place["ripple"], y + torch.zeros_like(base))
    depth = ((seen_y - top) / zoom).clamp(min=0)
    near = place["front"].clamp(min=0) * (1 / (LAYERS - 1))
    world = pick(column["world"], index)
    surface = _surface(p, tile, waves, index, world, depth, near, pixel)
    rise = ((pick(column["crown"], index) - seen_y) / zoom) / pick(p["height"], index) + 1.0
    normal_u = surface["u"] + 0.16 * pick(column["slope"], index) * torch.exp(-depth * 16)
    wood = pick(column["wood"], index)
    forest = ((wood * (1.9 + 0.3 * surface["variety"]) - depth) * 90.0).clamp(0, 1)
    forest = forest * (wood * 400.0).clamp(0, 1)
    bright = (pick(column["bright"], index) - 0.6) * (1.3 - depth / (wood + 1e-4)).clamp(0, 1)
    bright = bright * near
    shadow = forest * (0.55 - 0.42 * bright)
    colour = albedo(p, surface, rise, near, forest) * (1.0 - shadow)[:, None]
    lit = light(p, normal_u, surface["v"], surface["height"])
    colour = colour * (p["ambient"] * (0.9 + 0.35 * surface["height"])[:, None]
                       + p["sunlight"] * lit[:, None])  # fmt: skip
    haze, air = aerial(p, near, depth, glow)
    colour = torch.lerp(colour, air, haze[:, None])
    back_near = place["behind"].clamp(min=0) * (1 / (LAYERS - 1))
    back_haze, _ = aerial(p, back_near, depth, glow)
    plain = (p["low"] + p["high"]) * 0.5 * (p["ambient"] + 0.4 * p["sunlight"])
    back = torch.lerp(plain, air, back_haze[:, None])
    back = torch.where((place["behind"] >= 0)[:, None], back, picture)
    land = torch.lerp(back, colour, place["alpha"][:, None])
    return torch.where((place["front"] >= 0)[:, None], land, picture)


def _surface(
    p: Values, tile: Tensor, waves: Values, index: Tensor, world: Tensor, depth: Tensor,
    near: Tensor, pixel: float,
) -> Values:  # fmt: skip
    """A layer's relief: slopes across and down, height, and a slow variation for colours."""
    larger = 1.7 - near  # features of near layers are larger on screen
    u = world * p["grain_u"] * larger + pick(p["offset_v"], index)
    v = depth * p["grain_v"] * larger + pick(p["offset_u"], index)
    footprint = pixel * larger * torch.maximum(p["grain_u"], p["grain_v"])
    # Plains and every foreground lie flat: their grain is seen in perspective.
    flat = (p["plane"] * (near > 0.4) + near) > 0.99
    far = waves["far"].clamp(max=8.0)
    u = torch.where(flat, world * far * 15.0 + p["cloud_u"], u)
    v = torch.where(flat, far * 9.0 + p["forward"] * 9.0 + p["cloud_v"], v)
    footprint = torch.where(flat, far * far * (90.0 * pixel), footprint)
    gully = torch.where(flat, 0.0, 0.30)
    add_up = fused("relief_octaves", relief_octaves, world.device)
    slope_u, slope_v, height, variety = add_up(
        tile, u, v, footprint, gully, p["crease"], p["grain_gain"],
        octaves(pixel, 5.0, SURFACE_OCTAVES),
    )  # fmt: skip
    return {"u": slope_u * p["rough"], "v": slope_v * p["rough"], "height": height.clamp(-1, 1),
            "variety": variety}  # fmt: skip


def relief_octaves(
    tile: Tensor,
    u: Tensor,
    v: Tensor,
    footprint: Tensor,
    gully: Tensor,
    crease: Tensor,
    gain: Tensor,
    octaves: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slopes across and down, height, and a slow variation of a surface, each n h w.

    Args:
        tile: The noise texture.
        u: Noise coordinate of the first octave, n h w, as all others where nothing else is said.
        v: The other one.
        footprint: Noise units a pixel.
        gully: How far an octave's gullies follow the slopes of the octaves before.
        crease: How sharp valleys are, n 1 1.
        gain: Weight of an octave against the one before, n h w or n 1 1.
        octaves: How many.
    """
    zeros = torch.zeros_like(u)
    slope_u, slope_v, height, variety = zeros, zeros, zeros, zeros
    weight: float | Tensor = 0.5
    for octave in range(octaves):
        values = fetch(tile, u, v)
        visible = fade(footprint, octave)
        amount = weight * visible
        sign = 1.0 - crease * (1.0 + (values[0] * 7.0).clamp(-1, 1))
        slope_u = slope_u + amount * sign * values[1]
        slope_v = slope_v + amount * sign * values[2]
        height = height + amount * sign * values[0] * 0.75**octave
        if octave < 2:
            variety = variety + (0.6 + 0.4 * octave) * visible * values[3]
        u = u * LACUNARITY + gully * slope_u + 4.3
        v = v * LACUNARITY + 2.9
        weight = weight * gain
    return slope_u, slope_v, height, variety


def albedo(p: Values, surface: Values, rise: Tensor, near: Tensor, forest: Tensor) -> Tensor:
    """Valley and height colours, strata, forest, snow: n 3 h w."""
    share = (rise * 1.3 - 0.35 + 0.5 * surface["variety"] + 0.4 * surface["u"].abs()).clamp(0, 1)
    colour = torch.lerp(p["low"], p["high"], share[:, None])
    tint = 1.0 + 0.22 * surface["variety"].clamp(-1, 1)
    strata = torch.sin(rise * 30.0 + 0.7 * surface["variety"] + 2.4 * torch.sin(rise * 8.3))
    tint = tint * (1.0 + 0.26 * p["bands"] * strata)
    colour = colour * tint[:, None]
    colour = torch.lerp(colour, p["leaves"], (0.75 * forest)[:, None])
    line = (rise - p["snow_line"] + 0.22 * surface["variety"] + 0.30 * surface["height"]) * 6.0
    line = line - 5.0 * near * near * (1 - p["winter"])
    steep = 1.0 - (surface["v"].abs() + surface["u"].abs()) * 0.25
    snow = p["snow"] * (line.clamp(0, 1) * (0.55 + 0.6 * steep)).clamp(0, 0.96)
    white = torch.tensor([0.90, 0.93, 0.98], device=rise.device).reshape(1, 3, 1, 1)
    return torch.lerp(colour, white, (snow * (1 - 0.7 * forest))[:, None])


def light(p: Values, u: Tensor, v: Tensor, height: Tensor) -> Tensor:
    """Direct light on a surface with slopes u, v (Lambert), darker in hollows."""
    facing = p["light_z"] + u * p["light_x"] + v * p["light_y"] * 0.6
    lit = facing * torch.rsqrt(1.0 + u * u + v * v)
    return lit.clamp(0, 1.2) * (1.05 + 0.35 * height)


def aerial(p: Values, near: Tensor, depth: Tensor, glow: Tensor) -> tuple[Tensor, Tensor]:
    """Haze in front of a layer and its colour, brighter towards the sun and in the valleys."""
    far = 1.0 - near
    thick = p["air"] * (0.05 + 0.72 * far * far + 0.22 * far)
    thick = thick + p["mist"] * (depth * 9.0).clamp(0, 1.2) * (0.12 + 0.85 * far)
    haze = 1.0 - torch.exp(-thick)
    shine = (glow * p["glow_strength"] * 0.5).clamp(0, 1)[:, None]
    air = p["edge"] * 0.40 + p["middle"] * 0.44
    return haze, torch.lerp(air, p["glow"], shine)


def shade_water(
    p: Values, picture: Tensor, waves: Values, place: Values, x: Tensor, y: Tensor, pixel: float
) -> Tensor:
    """Turns the mirrored picture into water: Fresnel, depth colour, glitter."""
    below = waves["below"]
    grazing = torch.exp(-below * (3.2 + 1.2 * p["waves"]))
    reflect = (0.30 + 0.62 * grazing + waves["tilt"] * 0.10 * p["waves"]).clamp(0.05, 0.96)
    body = p["deep"] * (p["ambient"] * 1.6 + p["sunlight"] * 0.5)
    water = torch.lerp(body, picture, reflect[:, None])
    sun_x = (p["sun_x"] - p["travel"]) * p["magnify"]
    width = 0.035 + below * (0.25 + 0.35 * p["waves"])
    across = (x - sun_x) / width
    path = torch.exp(-across * across) * torch.exp(-p["sun_y"] * 2.0)
    sparkle = (waves["rough"] * 0.9 + waves["tilt"] * 0.35 - 0.25).clamp(0, 1.2)
    path = path * (0.10 + sparkle) * p["visible"] * p["glow_strength"].clamp(0.25, 1)
    water = water + p["disc"] * (0.55 * path)[:, None]
    return torch.where(place["wet"][:, None], water, picture)
