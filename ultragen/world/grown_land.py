"""Land and water of the second edition: ridges and woods, and the near ground in perspective."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import land, plants
from .noise import LACUNARITY, cell_values, fade, fetch, fused, octaves
from .palette import LAYERS
from .scene import Scene

Values = dict[str, Tensor]
NEAR_OCTAVES = 9
RIDGES = LAYERS - 1


def material(kind: str):
    """A question: whether a scene's near ground is of that kind."""
    return lambda scene: getattr(scene.attributes, "near_ground", None) == kind


def green(scene: Scene) -> bool:
    return scene.attributes.near_ground in ("grass", "flowers")  # type: ignore[attr-defined]


def wooded(scene: Scene) -> bool:
    return scene.attributes.trees not in ("none", "lone tree")


def lonely(scene: Scene) -> bool:
    return scene.attributes.trees == "lone tree"


def frozen(scene: Scene) -> bool:
    return scene.attributes.water == "ice"


def outlines(p: Values, tile: Tensor, x: Tensor, pixel: float) -> Values:
    """As `land.outlines`, with a gap before a low sun, and with flanks beside a valley."""
    world = x / p["layer_magnify"] + p["layer_travel"]
    from_sun = (world - p["sun_x"]) / 0.30
    gap = 1.0 - p["gap"] * torch.exp(-from_sun * from_sun * from_sun * from_sun)
    side = (world.abs() / 0.62).clamp(max=1.5)
    flank = 1.0 + p["flanks"] * (0.18 + 1.05 * side * side / (0.5 + side) - 1.0)
    # No trees on the near ground's own edge: its material would be drawn in their shape.
    last = torch.arange(LAYERS, device=x.device).reshape(1, -1, 1) == RIDGES
    changed = {"height": p["height"] * gap * flank, "trees": p["trees"] * ~last}
    return land.outlines({**p, **changed}, tile, x, pixel)


def plane(p: Values, tile: Tensor, column: Values, x: Tensor, y: Tensor, pixel: float) -> Values:
    """The near ground's coordinates, and how much of each pixel it covers, each n h w."""
    zoom = p["layer_magnify"][:, -1:]
    across = x / zoom + p["layer_travel"][:, -1:]
    below = (y - p["horizon"] - p["layer_lift"][:, -1:]) / zoom
    below = below.clamp(min=0.006)
    across, below = torch.broadcast_tensors(across, below)
    gx, gz = across / below, 1.0 / below  # on the ground, in heights of the camera
    cover = ((y - column["top"][:, -1:]) / pixel + 0.5).clamp(0, 1)
    # Past its shore lies water: the coast runs across the picture.
    bay = fetch(tile, gx * 0.55 + p["river_u"], gz * 0.55 + p["cloud_v"])
    fine = fetch(tile, gx * 3.1 + p["cloud_u"], gz * 3.1)
    coast = (0.055 * bay[0] + 0.008 * fine[0]) * (below * 5.0).clamp(max=1.0)
    inland = below - p["shore"] - 0.11 * p["shore_side"] * across - coast
    inland = torch.where(p["shore"] > 0, inland, 1.0)
    # A river winds from afar to the viewer.
    bend = fetch(tile, gz * 0.060 + p["river_u"], p["cloud_u"].expand_as(gz))
    middle = p["river_x"] * 2.2 + 2.1 * bend[0] * (gz * 0.25).clamp(max=1.0)
    bank = (gx - middle).abs() - 0.52 * p["river_width"] * (1.0 + 0.25 * bay[3])
    bank = (bank + 0.07 * fine[0]) * below / (1.0 + 0.06 * gz)
    bank = torch.where(p["river"] > 0.5, bank, 1.0)
    edge = torch.minimum(inland, bank)
    cover = cover * (edge / (1.2 * pixel) + 0.5).clamp(0, 1) * (1.0 - p["open"])
    return {"across": across, "below": below, "gx": gx, "gz": gz, "edge": edge, "cover": cover}


def shade_ridges(
    p: Values, tile: Tensor, cells: Tensor, picture: Tensor, column: Values, place: Values,
    scenes: Sequence[Scene], y: Tensor, glow: Tensor, pixel: float,
) -> Tensor:  # fmt: skip
    """Draws the ridges (or their mirror image) over the sky."""
    index = place["front"].clamp(min=0).long()
    top, base = land.pick(column["top"], index), land.pick(column["base"], index)
    zoom = land.pick(p["layer_magnify"], index)
    under = y - base
    seen_y = torch.where(under > 0, base - under + place["ripple"], y + torch.zeros_like(base))
    depth = ((seen_y - top) / zoom).clamp(min=0)
    near = place["front"].clamp(min=0) * (1 / (LAYERS - 1))
    world = land.pick(column["world"], index)
    larger = 1.7 - near
    u = world * p["grain_u"] * larger + land.pick(p["offset_v"], index)
    v = depth * p["grain_v"] * larger + land.pick(p["offset_u"], index)
    footprint = pixel * larger * torch.maximum(p["grain_u"], p["grain_v"])
    gain = p["grain_gain"] + 0.06 * near
    surface = relief(p, tile, u, v, footprint, gain, 0.30, octaves(pixel, 5.0, NEAR_OCTAVES))
    rise = ((land.pick(column["crown"], index) - seen_y) / zoom) / land.pick(p["height"], index)
    rise = rise + 1.0
    normal_u = surface["u"] + 0.22 * land.pick(column["slope"], index) * torch.exp(-depth * 11)
    colour, snow = _ridge_colour(p, surface, rise, near)
    # Towards the near ground the slopes are made of what it is made of.
    share = (0.5 + 0.35 * surface["variety"] + 0.5 * surface["height"]).clamp(0, 1)
    soil = torch.lerp(p["near_dark"], p["near_light"], share[:, None])
    colour = torch.lerp(colour, soil, (0.75 * near**3 * (1 - p["open"]) * (1 - snow))[:, None])
    lit = land.light(p, normal_u, surface["v"], surface["height"])
    lit = lit + 0.55 * snow * (0.95 - lit).clamp(min=0)  # snow scatters light into its shadows
    wood = {"index": index, "world": world, "depth": depth, "near": near, "rise": rise,
            "edge": land.pick(column["wood"], index)}  # fmt: skip
    colour, lit = _woods(p, cells, colour, lit, surface, wood, scenes, pixel)
    shaded = 0.86 + 0.40 * surface["height"]
    colour = colour * (p["ambient"] * shaded[:, None] + p["sunlight"] * lit[:, None])
    haze, air = land.aerial(p, near, depth, glow)
    haze = haze * (0.75 - 0.25 * p["snow"])  # snow stays white in the distance
    colour = torch.lerp(colour, air, haze[:, None])
    back_near = place["behind"].clamp(min=0) * (1 / (LAYERS - 1))
    back_haze, _ = land.aerial(p, back_near, depth, glow)
    plain = (p["low"] + p["high"]) * 0.5 * (p["ambient"] + 0.4 * p["sunlight"])
    back = torch.lerp(plain, air, back_haze[:, None])
    back = torch.where((place["behind"] >= 0)[:, None], back, picture)
    drawn = torch.lerp(back, colour, place["alpha"][:, None])
    return torch.where((place["front"] >= 0)[:, None], drawn, picture)


def relief(
    p: Values, tile: Tensor, u: Tensor, v: Tensor, footprint: Tensor, gain: Tensor, gully: float,
    number: int,
) -> Values:  # fmt: skip
    """A surface's slopes across and down, its height, and a slow variation for colours."""
    add_up = fused("relief_octaves", land.relief_octaves, u.device)
    bent = torch.full_like(u, gully)
    slope_u, slope_v, height, variety = add_up(
        tile, u, v, footprint.expand_as(u), bent, p["crease"], gain.expand_as(u), number
    )
    return {"u": slope_u * p["rough"], "v": slope_v * p["rough"], "height": height.clamp(-1, 1),
            "variety": variety}  # fmt: skip


def _ridge_colour(p: Values, surface: Values, rise: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Valley and height colours, strata and snow from the tops down, n 3 h w; how much snow."""
    steep = surface["u"].abs() + surface["v"].abs()
    share = (rise * 1.3 - 0.35 + 0.5 * surface["variety"] + 0.4 * surface["u"].abs()).clamp(0, 1)
    colour = torch.lerp(p["low"], p["high"], share[:, None])
    tint = 1.0 + 0.24 * surface["variety"].clamp(-1, 1) + 0.30 * surface["height"]
    strata = torch.sin(rise * 30.0 + 0.7 * surface["variety"] + 2.4 * torch.sin(rise * 8.3))
    strata = strata + 0.5 * torch.sin(rise * 83.0 + 1.1 * surface["variety"])
    tint = tint * (1.0 + 0.22 * p["bands"] * strata)
    colour = colour * tint[:, None]
    line = (rise - p["snow_line"] + 0.20 * surface["variety"] + 0.35 * surface["height"]) * 5.0
    line = line - 4.0 * near**3 * (1 - p["winter"])  # low ridges in front are bare
    snow = p["snow"] * (line * (1.25 - 0.22 * steep)).clamp(0, 0.97)
    white = torch.tensor([0.90, 0.93, 0.98], device=rise.device).reshape(1, 3, 1, 1)
    return torch.lerp(colour, white, snow[:, None]), snow


def _woods(
    p: Values, cells: Tensor, colour: Tensor, lit: Tensor, surface: Values, wood: Values,
    scenes: Sequence[Scene], pixel: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Covers slopes with trees, up to the tree line."""
    chosen = [i for i, scene in enumerate(scenes) if wooded(scene)]
    if not chosen:
        return colour, lit
    index = torch.tensor(chosen, device=lit.device)
    q = {name: value[index] for name, value in p.items()}
    near, rise, depth = (wood[name][index] for name in ("near", "rise", "depth"))
    variety, edge = surface["variety"][index], wood["edge"][index]
    size = 0.008 + 0.040 * near**2.2
    layer = wood["index"][index].float()
    patch = 0.25 + 0.9 * variety + 1.4 * q["forest"] - 2.2 * (rise - 0.62).clamp(min=0)
    grows = (patch * 4.0).clamp(0, 1) * (near * 12.0 - 0.5).clamp(0, 1)
    cover, tone, kind = plants.crowns(
        q, cells, wood["world"][index], depth, size, layer, grows, edge * 1.2, pixel
    )
    leaves = q["leaves"] * (0.55 + 0.9 * tone + 0.35 * (kind - 0.5))[:, None]
    winter_tone = (tone * 1.5 - 0.55).clamp(0, 0.85) * q["winter"]
    leaves = torch.lerp(leaves, torch.full_like(leaves, 0.8), winter_tone[:, None])
    ground = colour[index] * (1.0 - 0.40 * grows)[:, None]
    trees_lit = (0.25 + 0.95 * tone) * q["light_y"].clamp(min=0.3) * 1.2
    trees_lit = trees_lit * (0.9 + 0.3 * surface["height"][index])
    mixed_lit = torch.lerp(lit[index], trees_lit, cover)
    mixed = torch.lerp(ground, leaves, cover[:, None])
    return colour.index_copy(0, index, mixed), lit.index_copy(0, index, mixed_lit)


def shade_near(
    p: Values, tile: Tensor, cells: Tensor, ground: Values, scenes: Sequence[Scene], glow: Tensor,
    pixel: float,
) -> Tensor:  # fmt: skip
    """The near ground's picture, n 3 h w."""
    below, gx, gz = ground["below"], ground["gx"], ground["gz"]
    # Along the view a pixel covers more ground than across.
    footprint = 1.15 * pixel * gz * (1.2 + 0.30 * gz)
    smooth = p["sandy"] + p["white_ground"]
    gain = 0.88 - 0.14 * smooth
    surface = relief(
        {**p, "rough": p["near_rough"], "crease": p["crease"] * (1 - smooth)}, tile,
        gx * 1.15 + p["offset_u"][:, -1:], gz * 1.15 + p["offset_v"][:, -1:],
        footprint, gain, 0.0, octaves(pixel, 2.0, NEAR_OCTAVES),
    )  # fmt: skip
    share = (0.5 + 0.38 * surface["variety"] + 0.55 * surface["height"]).clamp(0, 1)
    colour = torch.lerp(p["near_dark"], p["near_light"], share[:, None])
    state = {**ground, **surface, "glow": glow}
    state["colour"] = colour
    state["shine"] = torch.zeros_like(below)
    state["shade"] = torch.ones_like(below)
    for has, lay in (
        (green, _grass), (material("flowers"), _flowers), (material("sand"), _sand),
        (material("pebbles"), _pebbles), (material("rocks"), _rocks), (material("snow"), _snow),
    ):  # fmt: skip
        state = _where(state, p, scenes, has, lay, tile, cells, pixel)
    u, v = state["u"], state["v"]
    facing = p["light_y"] * 1.25 + u * p["light_x"] + v * p["light_z"] * 0.8
    lit = (facing * torch.rsqrt(1.0 + 0.6 * (u * u + v * v))).clamp(0, 1.3) * state["shade"]
    # Wet and dark where the water reaches it.
    wet = torch.exp(-(state["edge"].clamp(min=0) * 40.0)) * (p["water"] * (1 - p["ice"]))
    colour = state["colour"] * (1.0 - 0.45 * wet)[:, None]
    dim = state["shade"] * (0.92 + 0.25 * state["height"])
    colour = colour * (p["ambient"] * dim[:, None] + p["sunlight"] * lit[:, None])
    colour = colour + (p["sunlight"] + 0.3 * p["ambient"]) * state["shine"][:, None]
    haze, air = land.aerial(p, 1.0 - 0.30 * torch.exp(-below * 9.0), 0.06 + 0.0 * below, glow)
    return torch.lerp(colour, air, haze[:, None])


def _where(
    state: Values, p: Values, scenes: Sequence[Scene], has, lay, tile: Tensor, cells: Tensor,
    pixel: float,
) -> Values:  # fmt: skip
    """Lays a material on the ground of those scenes that have it."""
    chosen = [i for i, scene in enumerate(scenes) if has(scene)]
    if not chosen:
        return state
    if len(chosen) == len(scenes):
        return state | lay(p, state, tile, cells, pixel)
    index = torch.tensor(chosen, device=state["u"].device)
    part = {name: value[index] for name, value in state.items()}
    laid = lay({name: value[index] for name, value in p.items()}, part, tile, cells, pixel)
    return state | {name: state[name].index_copy(0, index, value) for name, value in laid.items()}


def _grass(p: Values, g: Values, tile: Tensor, cells: Tensor, pixel: float) -> Values:
    tall = (0.75 + 0.45 * g["variety"] + 0.4 * g["height"]).clamp(0.25, 1.3)
    cover, tone, dry = plants.grass(p, cells, g["across"], g["below"], tall, pixel)
    blade = torch.lerp(p["near_dark"] * 0.8, p["near_light"] * 1.15, tone[:, None])
    straw = torch.lerp(blade, blade * blade.new_tensor([1.35, 1.05, 0.6]).reshape(1, 3, 1, 1),
                       ((dry - 0.6) * 2.0).clamp(0, 1)[:, None])  # fmt: skip
    tint = (1.0 + 0.25 * g["variety"] + 0.3 * g["height"]).clamp(0.4, 1.6)
    colour = torch.lerp(g["colour"] * 0.8, straw * tint[:, None], cover[:, None])
    shade = 1.0 - 0.30 * cover * (0.7 - tone).clamp(min=0)
    return {"colour": colour, "u": g["u"] * (1 - 0.6 * cover), "v": g["v"] * (1 - 0.6 * cover),
            "shade": shade}  # fmt: skip


def _flowers(p: Values, g: Values, tile: Tensor, cells: Tensor, pixel: float) -> Values:
    patch = g["variety"] * 0.9 + 0.05
    cover, colour = plants.flowers(p, cells, g["across"], g["below"], patch, pixel)
    far = ((0.16 - g["below"]) * 9.0).clamp(0, 0.35) * (patch * 1.4).clamp(0, 1)
    mixed = torch.lerp(g["colour"], p["flower_a"].expand_as(colour), far[:, None])
    mixed = torch.lerp(mixed, colour, cover[:, None])
    return {"colour": mixed, "shade": torch.lerp(g["shade"], torch.ones_like(cover), cover)}


def _sand(p: Values, g: Values, tile: Tensor, cells: Tensor, pixel: float) -> Values:
    """Ripples of the wind, and grains."""
    gx, gz = g["gx"], g["gz"]
    warp = fetch(tile, gx * 0.9 + p["cloud_u"], gz * 0.9)
    phase = (gz * 4.6 + gx * 0.9 + 0.42 * warp[0] + 0.10 * g["variety"]) * 6.2832
    clear = (1.7 - 3.4 * 4.6 * pixel * gz * gz).clamp(0, 1) * (0.7 + 0.7 * warp[3]).clamp(0.15, 1)
    wave = torch.cos(phase) + 0.35 * torch.cos(2 * phase + 0.6)
    grain, size = torch.zeros_like(gx), 26.0
    for octave in range(3):
        step = size * LACUNARITY**octave
        values = fetch(tile, gx * step + 9.0, gz * step + 3.0)
        grain = grain + values[0] * fade(1.15 * pixel * gz * (1.0 + 0.3 * gz) * size, octave)
    tint = 1.0 + 0.16 * grain + 0.10 * clear * wave
    return {"v": g["v"] * 0.4 + 0.50 * clear * wave, "colour": g["colour"] * tint[:, None],
            "u": g["u"] * 0.4 + 0.30 * clear * wave + 0.10 * grain}  # fmt: skip


def _pebbles(p: Values, g: Values, tile: Tensor, cells: Tensor, pixel: float) -> Values:
    """Round stones of several sizes, lit from the sun's side, each with a shadow."""
    colour, u, v, shade = g["colour"] * 0.55, g["u"], g["v"], g["shade"]
    warp = fetch(tile, g["gx"] * 1.7 + p["cloud_u"], g["gz"] * 1.7)
    gx, gz = g["gx"] + 0.05 * warp[0], g["gz"] + 0.05 * warp[3]
    for size, shift in ((13.0, 0.0), (13.0, 0.5), (7.0, 0.25), (7.0, 0.75), (4.0, 0.1)):
        turn = 0.6 + 1.9 * shift
        along, over = math.cos(turn) * size, math.sin(turn) * size
        place_u, place_v = gx * along + gz * over + 9 * shift, gz * along - gx * over
        cell_u, cell_v = torch.floor(place_u), torch.floor(place_v)
        chance = cell_values(cells, cell_u + 7, cell_v + 11 * shift)
        radius = 0.22 + 0.26 * chance[2] * chance[2]
        off_u = (place_u - cell_u - 0.5 - (0.5 - radius) * (2 * chance[0] - 1)) / radius
        off_v = (place_v - cell_v - 0.5 - (0.5 - radius) * (2 * chance[1] - 1)) / radius
        reach = torch.sqrt(off_u * off_u + off_v * off_v * (1.0 + 0.8 * chance[0]) + 1e-9)
        blur = size * pixel * g["gz"] * (0.5 + 0.5 * g["gz"]) / radius
        there = (chance[3] > (0.25 if size > 5 else 0.72)) * (2.2 - 1.6 * blur).clamp(0, 1)
        inside = ((1.0 - reach) / blur.clamp(max=4.0) + 0.5).clamp(0, 1) * there
        dark = (1.25 - reach).clamp(0, 1) * there
        shade = shade * (1.0 - 0.45 * dark * (1 - inside))
        tint = 0.55 + 0.95 * torch.remainder(chance[3] * 13.0, 1.0)
        warm = torch.remainder(chance[3] * 29.0, 1.0) - 0.5
        stone = torch.lerp(p["near_dark"], p["near_light"], 0.5) * tint[:, None]
        stone = stone * (1.0 + warm[:, None] * warm.new_tensor([0.25, 0, -0.2]).reshape(1, 3, 1, 1))
        stone = stone * (1.0 + 0.35 * g["height"])[:, None]
        colour = torch.lerp(colour, stone, inside[:, None])
        shade = torch.lerp(shade, torch.ones_like(shade), inside)
        u = torch.lerp(u, off_u * 0.85 + 0.3 * g["u"], inside)
        v = torch.lerp(v, -off_v * 0.75 + 0.3 * g["v"], inside)
    return {"colour": colour, "u": u, "v": v, "shade": shade}


def _rocks(p: Values, g: Values, tile: Tensor, cells: Tensor, pixel: float) -> Values:
    """Boulders with facets and cracks that stand on stony ground."""
    colour, u, v, shade = g["colour"], g["u"], g["v"], g["shade"]
    for number in range(3):
        step, density = 0.13, 2.6
        level = torch.log(g["below"]) / step
        row = torch.ceil(level) + number
        foot = torch.exp(row * step)
        place = g["across"] * density / foot + 0.37 * row
        cell = torch.floor(place)
        chance = cell_values(cells, cell + 3, row + 19)
        there = chance[3] > 0.35
        wide = 0.10 + 0.38 * chance[0] * chance[0]
        off = (place - cell - 0.5 - (0.48 - wide) * (2 * chance[1] - 1)) / wide
        tall = wide / density * (0.7 + 0.5 * chance[2])
        up = (foot - g["below"]) / foot / tall
        facet = fetch(tile, off * 0.8 + 7.3 * cell, up * 0.8 + 3.1 * row)
        profile = (1.0 - off.abs() ** 3).clamp(min=0).sqrt() * (0.80 + 0.36 * facet[0])
        profile = profile * (1.0 - 0.10 * g["height"])
        blur = pixel / foot / tall
        inside = ((profile - up) / blur + 0.5).clamp(0, 1) * there * (off.abs() < 1)
        sunk = 0.24 * off * off + 0.10 * facet[3]  # its foot is no straight line
        inside = inside * ((up - sunk) / blur + 0.5).clamp(0, 1)
        # Planes of cleavage: steps of the facets' slopes.
        plane_u, plane_v = torch.round(facet[1] * 0.9), torch.round(facet[2] * 0.9)
        contact = torch.exp(-up.clamp(min=0) * 4.0)
        share = (0.45 + 0.35 * facet[3] + 0.5 * g["height"]).clamp(0, 1)
        stone = torch.lerp(p["near_dark"], p["near_light"], share[:, None])
        stone = stone * (0.85 + 0.30 * up.clamp(0, 1) + 0.3 * g["height"])[:, None]
        colour = torch.lerp(colour, stone, inside[:, None])
        shade = torch.lerp(shade, 1.0 - 0.5 * contact, inside)
        u = torch.lerp(u, 0.7 * off + 0.55 * plane_u + 0.6 * g["u"], inside)
        v = torch.lerp(v, 0.7 * (0.4 - up) + 0.45 * plane_v + 0.6 * g["v"], inside)
    return {"colour": colour, "u": u, "v": v, "shade": shade}


def _snow(p: Values, g: Values, tile: Tensor, cells: Tensor, pixel: float) -> Values:
    """Drifts, grains, and crystals that sparkle."""
    gx, gz = g["gx"], g["gz"]
    size = 30.0
    grain, foot = torch.zeros_like(gx), 1.15 * pixel * gz * (1.0 + 0.3 * gz) * size
    for octave in range(3):
        step = size * LACUNARITY**octave
        values = fetch(tile, gx * step + 5.0, gz * step + 8.0)
        grain = grain + values[0] * fade(foot, octave)
    drift = fetch(tile, gx * 0.5 + p["cloud_u"], gz * 1.6 + p["cloud_v"])
    u, v = 0.7 * g["u"] + 0.5 * drift[1] * 0.3 + 0.16 * grain, 0.7 * g["v"] + 0.16 * drift[2]
    sparkle = ((grain - 1.05) * 2.5).clamp(0, 1)
    blue = (0.5 - 0.5 * u - 0.5 * v + 0.4 * drift[0]).clamp(0, 1)[:, None]
    colour = torch.lerp(p["near_light"], p["near_dark"], blue) * (1 + 0.05 * grain)[:, None]
    return {"colour": colour, "u": u, "v": v, "shine": 0.8 * sparkle}


def shade_ice(
    p: Values, picture: Tensor, tile: Tensor, waves: Values, place: Values, mirrored: Tensor,
    x: Tensor, y: Tensor, pixel: float,
) -> Tensor:  # fmt: skip
    """Turns a mirrored picture into a frozen lake: pale, cracked, dusted with snow."""
    below = waves["below"] / p["magnify"]
    across = (x / p["magnify"] + p["travel"]).expand_as(below)
    gx, gz = across / below, 1.0 / below
    warp = fetch(tile, gx * 0.35 + p["cloud_u"], gz * 0.35 + p["cloud_v"])
    cracks = torch.zeros_like(below)
    for size, wide in ((0.22, 0.020), (0.61, 0.026), (1.7, 0.035)):
        values = fetch(tile, gx * size + 0.25 * warp[0] + 9.0, gz * size + 0.25 * warp[3])
        steep = torch.sqrt(values[1] ** 2 + values[2] ** 2 + 1e-3)
        blur = size * pixel * gz * (0.6 + 0.4 * gz)
        line = (1.0 - values[0].abs() / steep / (0.35 * wide + 0.6 * blur)).clamp(0, 1)
        cracks = torch.maximum(cracks, line * (wide / (wide + blur)).clamp(0, 1))
    dust = (0.45 + 0.9 * warp[0] + 0.5 * warp[3]).clamp(0, 1)
    fine = fetch(tile, gx * 9.0, gz * 9.0)[0] * fade(1.2 * pixel * gz * (1 + 0.3 * gz) * 9.0, 0)
    ice = p["near_light"].new_tensor([0.42, 0.58, 0.70]).reshape(1, 3, 1, 1)
    white = ice.new_tensor([0.80, 0.86, 0.93]).reshape(1, 3, 1, 1)
    colour = torch.lerp(ice, white, (dust * (0.85 + 0.25 * fine)).clamp(0, 1)[:, None])
    colour = torch.lerp(colour, white, (0.75 * cracks)[:, None])
    colour = colour * (p["ambient"] + p["sunlight"] * (p["light_y"] * 1.1)[:, None])
    grazing = torch.exp(-below * 5.0)
    gloss = (0.16 + 0.40 * grazing) * (1.0 - 0.55 * dust) * (1.0 - 0.5 * cracks)
    frozen_over = torch.lerp(colour, mirrored, gloss[:, None])
    return torch.where(place["wet"][:, None], frozen_over, picture)
