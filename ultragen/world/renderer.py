"""Draws scenes: n = b·t frames at once, every pixel evaluated once, no loop over scenes.

A picture is a sky, six ridges from far to near and a foreground, all in parallax. Outlines are
functions of x alone and live on vectors (n, layer, w); per pixel the front-most layer is found
and only its surface is shaded. Water costs next to nothing: below a layer's waterline the lookup
is mirrored, so that sky, clouds and land are evaluated once, either directly or as a reflection.

Coordinates do not depend on the resolution: y from 0 at the top to 1, x from the middle of the
frame in frame heights. Noise octaves continue down to the size of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.dispatch import fused_runs
from . import effects, grown, land, sky
from .effects import optional
from .grown_values import grown_values
from .noise import LOOPS, random_cells, texture
from .palette import LAYERS, scene_values
from .scene import Scene

FRAMES_PER_SECOND = 12
MIDDLE = 8 / FRAMES_PER_SECOND  # seconds; the composition is exact in the middle of 17 frames
MAX_PIXELS = {"cpu": 600_000, "cuda": 32_000_000}  # of a chunk of frames, some 300 bytes each

Values = dict[str, Tensor]


def render(
    scenes: Sequence[Scene],
    height: int,
    width: int,
    num_frames: int,
    *,
    region: tuple[int, int, int, int] | None = None,
    chosen: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws clips at 12 frames a second: b 3 t h w in [0, 1].

    `region` = (top, left, height, width) in pixels draws only that part of the full frame, and
    `chosen` only the frames with these numbers.

    Raises:
        ValueError: No scenes, scenes of several editions, sizes below 1, a region outside the
            frame, or frames outside the clip.
    """
    region = region or (0, 0, height, width)
    _check(scenes, height, width, num_frames, region)
    device = torch.device(device)
    fused_runs(LOOPS, device)  # tried before the first picture, not in the middle of it
    chosen = range(num_frames) if chosen is None else chosen
    if not chosen or not 0 <= min(chosen) <= max(chosen) < num_frames:
        raise ValueError(f"frames {list(chosen)} do not lie in a clip of {num_frames}")
    values = _frame_values(scenes, width / height, chosen, device)
    num_frames = len(chosen)
    top, left, rows, columns = region
    y = (torch.arange(top, top + rows, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(left, left + columns, device=device, dtype=torch.float32) + 0.5) / height
    x = x - 0.5 * width / height
    draw = _draw if scenes[0].edition == 1 else grown.draw
    frames = len(scenes) * num_frames
    most = MAX_PIXELS["cpu" if device.type == "cpu" else "cuda"] / (rows * columns)
    chunk = math.ceil(frames / math.ceil(frames / max(1.0, most)))
    clips = torch.empty(frames, 3, rows, columns, device=device, dtype=dtype)
    for start in range(0, frames, chunk):
        part = {name: value[start : start + chunk] for name, value in values.items()}
        owners = [i // num_frames for i in range(start, min(start + chunk, frames))]
        clips[start : start + chunk] = draw(part, [scenes[i] for i in owners], x, y, 1 / height)
    return clips.reshape(len(scenes), num_frames, 3, rows, columns).transpose(1, 2)


def _check(
    scenes: Sequence[Scene],
    height: int,
    width: int,
    num_frames: int,
    region: tuple[int, int, int, int],
) -> None:
    if not scenes:
        raise ValueError("nothing to render: give at least one scene")
    if len(editions := {scene.edition for scene in scenes}) > 1:
        raise ValueError(f"scenes of editions {sorted(editions)}: render those of one at a time")
    if min(height, width, num_frames) < 1:
        raise ValueError(f"height, width and frames must be ≥ 1: {height}, {width}, {num_frames}")
    top, left, rows, columns = region
    inside = top >= 0 and left >= 0 and top + rows <= height and left + columns <= width
    if not inside or min(rows, columns) < 1:
        raise ValueError(f"region {region} does not lie in a frame of {height}×{width}")


def _frame_values(
    scenes: Sequence[Scene], aspect: float, frames: Sequence[int], device: torch.device
) -> Values:
    """The scenes' numbers and the camera of every frame, each n 1 1, n 3 1 1 or n layer 1."""
    numbers = scene_values if scenes[0].edition == 1 else grown_values
    rows = [numbers(scene, aspect) for scene in scenes]
    sizes = {n: len(v) if isinstance(v, (list, tuple)) else 0 for n, v in rows[0].items()}
    table = torch.tensor([[x for v in row.values() for x in _flat(v)] for row in rows])
    table = table.to(device).repeat_interleave(len(frames), dim=0)
    values, start = {}, 0
    for name, size in sizes.items():
        column = table[:, start : start + max(size, 1)]
        values[name] = column[..., None] if size == LAYERS else column[..., None, None]
        if size == 0:
            values[name] = column[..., None]
        start += max(size, 1)
    seconds = torch.tensor(frames, device=device, dtype=torch.float32) / FRAMES_PER_SECOND
    seconds = seconds.repeat(len(scenes))[:, None, None]
    values["time"] = seconds
    _add_camera(values, seconds - MIDDLE)
    return values


def _flat(value: float | Sequence[float]) -> Sequence[float]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _add_camera(values: Values, seconds: Tensor) -> None:
    """Where the camera looks: of the far view (n 1 1) and of each layer (n layer 1)."""
    depth = torch.linspace(0, 1, LAYERS, device=seconds.device).reshape(1, LAYERS, 1)
    parallax = 1 + 1.3 * depth**1.3
    values["parallax"] = parallax.expand(seconds.shape[0], -1, -1)
    values["travel"] = values["pan"] * seconds
    values["lift_view"] = values["rise"] * seconds
    values["magnify"] = (values["zoom"] * seconds).exp()
    values["layer_travel"] = values["travel"] * parallax
    values["layer_lift"] = values["lift_view"] * parallax
    values["layer_magnify"] = (values["zoom"] * seconds * parallax).exp()
    values["forward"] = values["zoom"] * seconds
    values["horizon_now"] = values["horizon"] + values["lift_view"]


def _draw(p: Values, scenes: Sequence[Scene], x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """n 3 h w: one picture for each row of the values."""
    tile = texture(x.device)
    cells = random_cells(x.device)
    x, y = x.reshape(1, 1, -1), y.reshape(1, -1, 1)
    column = land.outlines(p, tile, x, pixel)
    waves = land.water_surface(p, tile, x, y, pixel)
    place = land.find_layers(p, column, waves, y, pixel)
    sky_x, elevation, glow = sky.directions(p, x, place)
    picture = sky.backdrop(p, sky_x, elevation, glow, pixel)
    picture = optional(picture, p, scenes, sky.starry, sky.stars, cells, sky_x, elevation, pixel)
    picture = optional(picture, p, scenes, sky.polar, sky.aurora, tile, sky_x, elevation, pixel)
    picture = sky.clouds(p, tile, picture, sky_x, elevation, glow, pixel)
    picture = land.shade(p, tile, picture, column, waves, place, y, glow, pixel)
    picture = land.shade_water(p, picture, waves, place, x, y, pixel)
    picture = optional(picture, p, scenes, effects.winged, effects.birds, cells, x, y, pixel)
    picture = effects.air(p, tile, picture, x, y, glow)
    picture = optional(picture, p, scenes, effects.rainy, effects.rain, tile, x, y, pixel)
    picture = optional(picture, p, scenes, effects.snowy, effects.snowfall, cells, x, y, pixel)
    return effects.develop(p, picture)
