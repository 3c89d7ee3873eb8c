"""What stands in rows on the ground: woods on slopes, grass and flowers, and a single tree.

A row is a function of x with a foot and tops above it. At each pixel only the few rows can be seen
whose feet lie closely below it; the nearest one covers the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .noise import cell_values, fade, fetch

Values = dict[str, Tensor]
WOOD_ROWS = 3
GRASS_ROWS = 3
GRASS_STEP = math.log(1.055)  # between the rows of grass, in logarithms of distance
GRASS_HEIGHT = 0.15  # of the grass, in heights of the camera
FLOWER_ROWS = 3
FLOWER_STEP = math.log(1.10)


def crowns(
    p: Values, cells: Tensor, world: Tensor, depth: Tensor, size: Tensor, layer: Tensor,
    grows: Tensor, edge: Tensor, pixel: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Trees on a slope, row behind row, each n h w.

    Args:
        p: The scenes' numbers.
        cells: Random numbers.
        world: Place across the slope, n h w, as all others where nothing else is said.
        depth: How far below the slope's upper edge, in frame heights.
        size: Height of a tall tree, in frame heights.
        layer: Number of the slope.
        grows: Share of the trees that stand there.
        edge: How deep a wood reaches that stands on the upper edge, in frame heights.
        pixel: Size of a pixel in frame heights.

    Returns:
        How much of the ground is covered, how bright a place is, and how much each tree differs.
    """
    pines = p["pines"]
    wide = size * (0.72 - 0.36 * pines)
    step = size * 0.40
    level = depth / step
    first = torch.ceil(level)
    cover, tone, kind = (torch.zeros_like(world) for _ in range(3))
    u = world / wide
    blur = (pixel / wide).clamp(max=1.0)
    for number in range(WOOD_ROWS):
        row = first + number
        place = u + 0.5 * row + 0.31 * torch.sin(row * 2.3)
        cell = torch.floor(place)
        chance = cell_values(cells, cell + 17 * layer, row + 5 * layer)
        stands = torch.maximum(grows, ((edge - row * step) * 60.0 + 0.5).clamp(0, 1))
        stands = ((stands - 0.85 * chance[2]) * 6.0).clamp(0, 1)
        tall = (0.62 + 0.48 * chance[0]) * (0.4 + 0.6 * stands)
        up = ((row - level) * 0.40 / tall).clamp(0, 1)
        across = place - cell - 0.5 - 0.26 * (chance[1] - 0.5)
        twig = up * 7.0 + 9.0 * chance[2]
        pine = (1.0 - up) ** 0.85 * (0.40 + 0.10 * (twig - torch.floor(twig)))
        bulge = 2.0 * up - 0.85
        crown = 0.5 * torch.sqrt((1.0 - bulge * bulge * 0.9).clamp(min=0)) * (up < 1.0)
        half = crown + (pine - crown) * pines
        inside = ((half - across.abs()) / blur + 0.5).clamp(0, 1) * (stands > 0)
        side = (across / half.clamp(min=0.05)).clamp(-1, 1) * p["light_x"]
        bright = 0.18 + 0.62 * up + 0.45 * side + 0.22 * (chance[3] - 0.5)
        tone = tone + (bright - tone) * inside
        kind = kind + (chance[3] - kind) * inside
        cover = torch.maximum(cover, inside)
    fine = (0.9 / blur - 0.6).clamp(0, 1)  # trees narrower than pixels are a mean colour
    tone = 0.42 + (tone - 0.42) * fine
    return cover + (0.9 * grows - cover) * (1 - fine), tone.clamp(0, 1.2), kind


def grass(
    p: Values, cells: Tensor, across: Tensor, below: Tensor, tall: Tensor, pixel: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Blades of grass, each n h w.

    Args:
        p: The scenes' numbers.
        cells: Random numbers.
        across: Place from the middle of the picture, in frame heights.
        below: Place below the horizon, in frame heights.
        tall: Height of the grass there, around 1.
        pixel: Size of a pixel in frame heights.

    Returns:
        How much is covered by blades, how bright they are from foot to tip, and how dry.
    """
    level = torch.log(below) / GRASS_STEP
    first = torch.ceil(level)
    cover, tone, dry = (torch.zeros_like(below) for _ in range(3))
    # Neighbours lean together, as the wind has them, and sway.
    wind = 0.9 * torch.sin(across / below * 2.3 + 1.7 / below)
    wind = wind + 0.7 * torch.sin(across / below * 7.1 - 3.9 / below + p["time"] * 2.0)
    for number in range(GRASS_ROWS):
        row = first + number
        foot = torch.exp(row * GRASS_STEP)
        up = (foot - below) / (GRASS_HEIGHT * foot)
        for density, shift in ((34.0, 0.0), (57.0, 37.0)):
            u = across * density / foot + 3.7 * row + shift - wind * up * (0.6 + 0.4 * up)
            cell = torch.floor(u)
            chance = cell_values(cells, cell, row + shift)
            high = (0.25 + 0.75 * chance[0]) * tall
            # Feet lie anywhere between two rows.
            share = ((up - 0.30 * chance[3]) / high).clamp(0, 1)
            lean = 0.9 * (chance[1] - 0.5) * share * share
            off = (u - cell - 0.5 - 0.4 * (chance[2] - 0.5) - 0.5 * lean).abs()
            blur = density / foot * pixel
            half = (0.14 + 0.16 * chance[1]) * (1.0 - share * share)
            inside = ((half - off) / blur + 0.5).clamp(0, 1) * (1.4 - 1.1 * blur).clamp(0, 1)
            bright = 0.10 + 0.70 * share + 0.50 * (chance[3] - 0.5)
            tone = tone + (bright - tone) * inside
            dry = dry + (chance[2] - dry) * inside
            cover = torch.maximum(cover, inside)
    return cover, tone.clamp(0, 1.1), dry


def flowers(
    p: Values, cells: Tensor, across: Tensor, below: Tensor, patch: Tensor, pixel: float
) -> tuple[Tensor, Tensor]:
    """Flowers above the grass.

    Args:
        p: The scenes' numbers.
        cells: Random numbers.
        across: See `grass`.
        below: See `grass`.
        patch: Where they grow: more above 0.
        pixel: Size of a pixel in frame heights.

    Returns:
        How much is covered, n h w, and their reflectance, n 3 h w.
    """
    level = torch.log(below) / FLOWER_STEP
    first = torch.ceil(level)
    cover = torch.zeros_like(below)
    colour = torch.zeros_like(p["flower_a"].expand(-1, -1, *below.shape[1:]))
    for number in range(FLOWER_ROWS):
        row = first + number
        for density, shift in ((11.0, 0.0), (17.0, 23.0)):
            foot = torch.exp(row * FLOWER_STEP)
            u = across * density / foot + 5.3 * row + shift
            cell = torch.floor(u)
            chance = cell_values(cells, cell + 29, row + shift)
            # In units of the distance, as all that shrinks with it.
            x = (u - cell - 0.25 - 0.5 * chance[0]) / density
            head = 0.06 + 0.11 * chance[1]
            y = (foot - below) / foot - head
            radius = 0.0085 + 0.0075 * chance[2]
            petal = 1.0 + 0.22 * torch.cos(5.0 * torch.atan2(y * 1.5, x) + 6.0 * chance[2])
            blur = pixel / foot
            reach = torch.sqrt(x * x + y * y * 2.2 + 1e-9)
            inside = ((radius * petal - reach) / blur + 0.5).clamp(0, 1)
            grows = (patch + 1.3 * (chance[3] - 0.5)) > 0.05
            inside = inside * grows * (1.6 * radius / blur).clamp(0, 1)
            pick = torch.remainder(chance[3] * 7.0, 1.0)[:, None]
            tint = torch.where(pick < 0.5, p["flower_a"], p["flower_b"])
            tint = torch.where(pick > 0.82, p["flower_c"], tint)
            heart = (reach < 0.35 * radius)[:, None]
            tint = torch.where(heart, tint * 0.35 + p["flower_b"] * 0.35, tint)
            tint = tint * (0.75 + 0.35 * (y / radius).clamp(-1, 1))[:, None]
            colour = torch.lerp(colour, tint, inside[:, None])
            cover = torch.maximum(cover, inside)
    return cover, colour


BLOBS = (  # of a crown: across, up, radius, in heights of the tree
    (0.00, 0.78, 0.21), (-0.21, 0.64, 0.19), (0.22, 0.66, 0.19), (-0.34, 0.49, 0.14),
    (0.35, 0.50, 0.145), (0.02, 0.58, 0.22), (-0.12, 0.83, 0.14), (0.14, 0.84, 0.14),
    (-0.16, 0.45, 0.13), (0.18, 0.46, 0.13),
)  # fmt: skip
BRANCHES = (  # from, to, in heights of the tree, and how thick
    (0.00, 0.00, 0.01, 0.34, 0.030), (0.01, 0.32, -0.20, 0.66, 0.016),
    (0.01, 0.32, 0.20, 0.68, 0.016), (0.01, 0.34, 0.00, 0.82, 0.017),
    (-0.10, 0.50, -0.33, 0.58, 0.009), (0.10, 0.50, 0.33, 0.60, 0.009),
    (-0.15, 0.58, -0.17, 0.84, 0.008), (0.15, 0.58, 0.20, 0.86, 0.008),
    (0.00, 0.55, -0.10, 0.92, 0.008), (0.00, 0.60, 0.10, 0.93, 0.008),
    (-0.25, 0.55, -0.38, 0.72, 0.006), (0.25, 0.56, 0.38, 0.74, 0.006),
)  # fmt: skip


def lone_tree(
    p: Values, picture: Tensor, tile: Tensor, x: Tensor, y: Tensor, haze: Tensor, pixel: float
) -> Tensor:
    """A tree on the near ground, with its shadow.

    Args:
        p: The scenes' numbers.
        picture: What it is drawn over, n 3 h w.
        tile: The noise texture.
        x: Place of each column, 1 1 w.
        y: Place of each row, 1 h 1.
        haze: Colour of the air, n 3 1 1.
        pixel: Size of a pixel in frame heights.
    """
    zoom = p["layer_magnify"][:, -1:]
    size = p["tree_size"]
    foot = p["horizon"] + p["tree_y"] * zoom + p["layer_lift"][:, -1:]
    across = ((x / zoom + p["layer_travel"][:, -1:]) - p["tree_x"]) / size
    up = (foot - y) / (size * zoom)
    across, up = torch.broadcast_tensors(across, up)
    shadow_y = (up + 0.012) * 7.0
    shadow_x = (across + 0.35 * p["light_x"]) * 1.9
    dark = 0.5 * torch.exp(-1.6 * (shadow_x * shadow_x + shadow_y * shadow_y))
    picture = picture * (1.0 - dark * (up < 0.03))[:, None]
    bend = across - p["tree_lean"] * up * up
    seed = p["tree_seed"]
    large = fetch(tile, bend * 3.1 + seed, up * 3.1 + seed)
    bend, tall = bend + 0.035 * large[0], up + 0.03 * large[3]
    blur = pixel / (size * zoom)
    wood = torch.zeros_like(bend)
    for x0, y0, x1, y1, thick in BRANCHES:
        along_x, along_y = x1 - x0, y1 - y0
        length = along_x * along_x + along_y * along_y
        share = (((bend - x0) * along_x + (tall - y0) * along_y) / length).clamp(0, 1)
        off_x, off_y = bend - x0 - share * along_x, tall - y0 - share * along_y
        thickness = thick * (1.0 - 0.55 * share)
        away = torch.sqrt(off_x * off_x + off_y * off_y + 1e-9)
        wood = torch.maximum(wood, ((thickness - away) / blur + 0.5).clamp(0, 1))
    field, lit = torch.full_like(bend, -1.0), torch.zeros_like(bend)
    for middle, level, radius in BLOBS:
        off_x, off_y = (bend - middle) / radius, (tall - level) / radius
        bulge = 1.0 - torch.sqrt(off_x * off_x + off_y * off_y + 1e-9)
        lit = torch.where(bulge > field, off_x * p["light_x"] + off_y * 0.55, lit)
        field = torch.maximum(field, bulge)
    leaf, fine = torch.zeros_like(bend), blur * 9.0
    u, v, weight = bend * 9.0 + seed, up * 9.0 - seed, 0.42
    for octave in range(6):
        values = fetch(tile, u, v)
        leaf = leaf + weight * fade(fine, octave) * values[0]
        lit = lit + 0.55 * weight * fade(fine, octave) * values[3]
        u, v, weight = u * 2.03 + 3.1, v * 2.03 + 7.7, weight * 0.80
    edge = field + 0.34 * leaf - 0.03
    leaves = (edge / (blur * 7.0 + 0.02) + 0.5).clamp(0, 1) * (1.0 - p["tree_bare"])
    bark = p["ambient"] * 0.10 + p["sunlight"] * 0.05
    tone = (0.55 + 0.50 * lit).clamp(0.08, 1.3)[:, None]
    green = p["leaves"] * (p["ambient"] * 1.1 + p["sunlight"] * 1.0) * tone * 1.5
    picture = torch.lerp(picture, torch.lerp(bark, haze, 0.06), wood[:, None])
    return torch.lerp(picture, torch.lerp(green, haze, 0.06), leaves[:, None])
