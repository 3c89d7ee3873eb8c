"""The renderer's loops in Triton: sums over octaves of noise, and layers laid over each other.

An octave is a lookup in the noise texture and a little arithmetic. One by one they pass some
hundred bytes a pixel through memory, and make up half of the cost of a picture
(`python -m ultragen scenes --benchmark`). Here a program takes some neighbouring pixels, and what
it sums up stays in registers. Each function does what its plain twin of the same name does, in
`sky` or `land` of the training package.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # pixels of one program
LACUNARITY = tl.constexpr(2.03)
TEXELS = tl.constexpr(512)  # a side, without the repeated last row and column
TEXELS_PER_UNIT = tl.constexpr(8.0)


@triton.jit
def _place(u):
    """The texel at or before a coordinate in noise units, and how far beyond it that lies."""
    position = u * TEXELS_PER_UNIT
    position = position - tl.floor(position / TEXELS) * TEXELS
    texel = tl.minimum(position.to(tl.int32), TEXELS - 1)
    return texel, position - texel.to(tl.float32)


@triton.jit
def _mix(tile_ptr, at, across, down, channel: tl.constexpr):
    """One channel between four texels."""
    row: tl.constexpr = 4 * (TEXELS + 1)
    upper = tl.load(tile_ptr + at + channel)
    upper += (tl.load(tile_ptr + at + 4 + channel) - upper) * across
    lower = tl.load(tile_ptr + at + row + channel)
    lower += (tl.load(tile_ptr + at + row + 4 + channel) - lower) * across
    return upper + (lower - upper) * down


@triton.jit
def _lookup(u, v):
    """Where the texels around u, v begin in the tile, rows columns 4, and the place among them."""
    column, across = _place(u)
    row, down = _place(v)
    return (row * (TEXELS + 1) + column) * 4, across, down


@triton.jit
def _fade(footprint, scale):
    return tl.minimum(tl.maximum(1.6 - footprint * (2.4 * scale), 0.0), 1.0)


@triton.jit
def _clouds(
    tile_ptr, u_ptr, v_ptr, footprint_ptr, toward_u_ptr, toward_v_ptr, density_ptr, slope_ptr,
    octaves, pixels, total, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    u, v = tl.load(u_ptr + index, mask=inside), tl.load(v_ptr + index, mask=inside)
    footprint = tl.load(footprint_ptr + index, mask=inside)
    toward_u = tl.load(toward_u_ptr + index, mask=inside)
    toward_v = tl.load(toward_v_ptr + index // pixels, mask=inside)
    density = tl.load(density_ptr + index, mask=inside)
    slope = tl.zeros((BLOCK,), dtype=tl.float32)
    weight, scale = 0.62, 1.0
    for _ in range(octaves):
        at, across, down = _lookup(tl.where(inside, u, 0.0), tl.where(inside, v, 0.0))
        amount = weight * _fade(footprint, scale)
        density += amount * _mix(tile_ptr, at, across, down, 0)
        slope += amount * (
            _mix(tile_ptr, at, across, down, 1) * toward_u
            + _mix(tile_ptr, at, across, down, 2) * toward_v
        )
        u, v = u * LACUNARITY + 7.3, v * LACUNARITY + 3.1
        weight, scale = weight * 0.54, scale * LACUNARITY
    tl.store(density_ptr + index, density, mask=inside)
    tl.store(slope_ptr + index, slope, mask=inside)


@triton.jit
def _relief(
    tile_ptr, u_ptr, v_ptr, footprint_ptr, gully_ptr, gain_ptr, crease_ptr,
    slope_u_ptr, slope_v_ptr, height_ptr, variety_ptr,
    octaves, pixels, total, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    u, v = tl.load(u_ptr + index, mask=inside), tl.load(v_ptr + index, mask=inside)
    footprint = tl.load(footprint_ptr + index, mask=inside)
    gully = tl.load(gully_ptr + index, mask=inside)
    crease = tl.load(crease_ptr + index // pixels, mask=inside)
    gain = tl.load(gain_ptr + index, mask=inside)
    slope_u = tl.zeros((BLOCK,), dtype=tl.float32)
    slope_v, height, variety = slope_u, slope_u, slope_u
    weight, scale, flatter, varied = slope_u + 0.5, 1.0, 1.0, 0.6
    for octave in range(octaves):
        at, across, down = _lookup(tl.where(inside, u, 0.0), tl.where(inside, v, 0.0))
        visible = _fade(footprint, scale)
        value = _mix(tile_ptr, at, across, down, 0)
        bent = tl.minimum(tl.maximum(value * 7.0, -1.0), 1.0)
        amount = weight * visible * (1.0 - crease * (1.0 + bent))
        slope_u += amount * _mix(tile_ptr, at, across, down, 1)
        slope_v += amount * _mix(tile_ptr, at, across, down, 2)
        height += amount * value * flatter
        if octave < 2:
            variety += varied * visible * _mix(tile_ptr, at, across, down, 3)
        u, v = u * LACUNARITY + gully * slope_u + 4.3, v * LACUNARITY + 2.9
        weight, scale, flatter = weight * gain, scale * LACUNARITY, flatter * 0.75
        varied = 1.0
    tl.store(slope_u_ptr + index, slope_u, mask=inside)
    tl.store(slope_v_ptr + index, slope_v, mask=inside)
    tl.store(height_ptr + index, height, mask=inside)
    tl.store(variety_ptr + index, variety, mask=inside)


@triton.jit
def _waves(
    tile_ptr, u_ptr, v_ptr, footprint_ptr, drift_ptr, tilt_ptr, rough_ptr,
    octaves, pixels, total, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    u, v = tl.load(u_ptr + index, mask=inside), tl.load(v_ptr + index, mask=inside)
    footprint = tl.load(footprint_ptr + index, mask=inside)
    drift = tl.load(drift_ptr + index // pixels, mask=inside)
    tilt = tl.zeros((BLOCK,), dtype=tl.float32)
    rough = tilt
    weight, scale = 1.0, 1.0
    for _ in range(octaves):
        moved_u, moved_v = u + drift * 0.4, v + drift
        at, across, down = _lookup(tl.where(inside, moved_u, 0.0), tl.where(inside, moved_v, 0.0))
        amount = weight * _fade(footprint, scale)
        tilt += amount * _mix(tile_ptr, at, across, down, 2)
        rough += amount * _mix(tile_ptr, at, across, down, 3)
        u, v, drift = u * 1.9 + 3.3, v * 2.1 + 9.1, drift * 1.5
        weight, scale = weight * 0.67, scale * LACUNARITY
    tl.store(tilt_ptr + index, tilt, mask=inside)
    tl.store(rough_ptr + index, rough, mask=inside)


@triton.jit
def _layers(
    top_ptr, base_ptr, ripple_ptr, y_ptr, front_ptr, behind_ptr, alpha_ptr, body_ptr,
    layers, pixel, rows, columns, total, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    frame, place = index // (rows * columns), index % (rows * columns)
    at = frame * layers * columns + place % columns
    ripple = tl.load(ripple_ptr + index, mask=inside, other=0.0)
    y = tl.load(y_ptr + place // columns, mask=inside, other=0.0)
    front = tl.full((BLOCK,), -1.0, tl.float32)
    behind, body, alpha = front, front, front + 2.0
    for layer in range(layers):
        base = tl.load(base_ptr + at + layer * columns, mask=inside, other=0.0)
        top = tl.load(top_ptr + at + layer * columns, mask=inside, other=0.0)
        under = y - base
        mirrored = tl.where(under > 0, base - under + ripple, y)
        cover = (tl.minimum(mirrored, base) - top) / pixel + 0.5
        hit = cover > 0
        behind = tl.where(hit, front, behind)
        front = tl.where(hit, layer * 1.0, front)
        alpha = tl.where(hit, tl.minimum(cover, 1.0), alpha)
        body = tl.where(hit & (under <= 0), layer * 1.0, body)
    tl.store(front_ptr + index, front, mask=inside)
    tl.store(behind_ptr + index, behind, mask=inside)
    tl.store(alpha_ptr + index, alpha, mask=inside)
    tl.store(body_ptr + index, body, mask=inside)


def _launch(kernel, tile: Tensor, pixelwise: tuple, framewise: tuple, out: tuple, octaves: int):
    """Runs a kernel on values of every pixel, n h w or less, and of every frame, n 1 1."""
    shape = torch.broadcast_shapes(*(x.shape for x in pixelwise))
    pixelwise = tuple(x.expand(shape).contiguous() for x in pixelwise)
    framewise = tuple(x.expand(shape[0], 1, 1).contiguous() for x in framewise)
    # The four channels of a texel lie together, and so do most of those that are read with it.
    texels = tile[0].permute(1, 2, 0).contiguous()
    total, pixels = shape.numel(), shape[1] * shape[2]
    with torch.cuda.device_of(tile):  # Triton takes the current device, wherever the tensors are
        kernel[(triton.cdiv(total, BLOCK),)](
            texels, *pixelwise, *framewise, *out, octaves, pixels, total, BLOCK
        )


def cloud_octaves(
    tile: Tensor, u: Tensor, v: Tensor, footprint: Tensor, toward_u: Tensor, toward_v: Tensor,
    density: Tensor, octaves: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `sky.cloud_octaves`."""
    density, slope = density.expand_as(u).clone(), torch.empty_like(u)
    pixelwise = (u, v, footprint, toward_u)
    _launch(_clouds, tile, pixelwise, (toward_v,), (density, slope), octaves)
    return density, slope


def relief_octaves(
    tile: Tensor, u: Tensor, v: Tensor, footprint: Tensor, gully: Tensor, crease: Tensor,
    gain: Tensor, octaves: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `land.relief_octaves`."""
    slope_u, slope_v, height, variety = (torch.empty_like(u) for _ in range(4))
    sums = (slope_u, slope_v, height, variety)
    _launch(_relief, tile, (u, v, footprint, gully, gain), (crease,), sums, octaves)
    return sums


def wave_octaves(
    tile: Tensor, u: Tensor, v: Tensor, footprint: Tensor, drift: Tensor, octaves: int
) -> tuple[Tensor, Tensor]:
    """See `land.wave_octaves`."""
    sums = torch.empty_like(u), torch.empty_like(u)
    _launch(_waves, tile, (u, v, footprint), (drift,), sums, octaves)
    return sums


def cover_layers(
    top: Tensor, base: Tensor, ripple: Tensor, y: Tensor, pixel: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `land.cover_layers`."""
    n, rows, columns = ripple.shape
    layers = top.shape[1]
    top, base = (x.expand(n, layers, columns).contiguous() for x in (top, base))
    ripple, y = ripple.contiguous(), y.contiguous()
    front, behind, alpha, body = (torch.empty_like(ripple) for _ in range(4))
    total = ripple.numel()
    with torch.cuda.device_of(ripple):
        _layers[(triton.cdiv(total, BLOCK),)](
            top, base, ripple, y, front, behind, alpha, body,
            layers, pixel, rows, columns, total, BLOCK,
        )  # fmt: skip
    return front, behind, alpha, body


def try_on(device: torch.device) -> None:
    """Runs a kernel on next to nothing; raises where it does not run."""
    tile, one = torch.ones(1, 4, 513, 513, device=device), torch.ones(1, 1, 1, device=device)
    wave_octaves(tile, one, one, one, one, 1)
