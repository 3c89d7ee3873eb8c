"""Band-limited noise from one tileable texture, sampled with hardware-friendly bilinear lookups.

One fetch returns a noise, its two derivatives and a second independent noise, so that a surface
can be lit from a single lookup per octave (wavelet-like noise: Cook and DeRose, "Wavelet Noise",
2005; here the band is cut out in the Fourier domain, which makes the tile seamless).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.dispatch import fused_runs

PERIOD = 64.0  # noise units until the texture repeats
SIZE = 512  # texels a side
WAVES = 0.6  # dominant frequency, cycles per noise unit
LACUNARITY = 2.03  # not 2, or the octaves' repetitions would coincide
SEED = 20261123


@lru_cache(maxsize=8)
def texture(device: torch.device) -> Tensor:
    """The noise texture, 1 4 s s: height, its derivative in u, in v, a second height.

    Both heights have standard deviation 0.5; derivatives are per noise unit.
    """
    generator = torch.Generator().manual_seed(SEED)
    white = torch.fft.fft2(torch.randn(2, SIZE, SIZE, generator=generator, dtype=torch.float64))
    cycles = torch.fft.fftfreq(SIZE, 1 / SIZE, dtype=torch.float64) / PERIOD
    radius = (cycles[:, None] ** 2 + cycles[None, :] ** 2).sqrt().clamp(min=1e-9)
    band = torch.exp(-((radius / WAVES).log() ** 2) / (2 * 0.33**2))
    spectrum = white * band
    heights = torch.fft.ifft2(spectrum).real
    spectrum = spectrum * (0.5 / heights.std(dim=(1, 2), keepdim=True))
    wave = 2j * math.pi * cycles
    channels = torch.stack(
        [
            spectrum[0],
            spectrum[0] * wave[None, :],
            spectrum[0] * wave[:, None],
            spectrum[1],
        ]
    )
    tile = torch.fft.ifft2(channels).real.float()
    # The first row and column are repeated at the end: bilinear lookups then wrap by themselves.
    tile = F.pad(tile[None], (0, 1, 0, 1), mode="circular")
    return tile.contiguous().to(device)


@lru_cache(maxsize=8)
def random_cells(device: torch.device) -> Tensor:
    """Uniform random numbers, 1 4 4096, one vector for every cell of a repeating 64 × 64 grid."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.rand(1, 4, 64 * 64, generator=generator).to(device)


def fetch(tile: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Looks the noise up at u, v (broadcast to a b c, in noise units): 4 a b c."""
    u, v = torch.broadcast_tensors(u, v)
    a, b, c = u.shape
    grid = torch.stack([u, v], dim=-1) * (2 / PERIOD)
    grid = (torch.remainder(grid, 2.0) - 1.0).reshape(1, a * b, c, 2)
    values = F.grid_sample(tile, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return values.reshape(4, a, b, c)


def cell_values(cells: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """The random vectors of integer-valued float cells column, row (same shape s): 4 s."""
    index = (row.long() & 63) * 64 + (column.long() & 63)
    return cells[0][:, index]


def octaves(pixel: float, frequency: float, largest: int) -> int:
    """How many octaves starting at `frequency` (noise units per frame height) a frame can show.

    `pixel` is the size of a pixel in frame heights.
    """
    count = math.ceil(math.log(0.45 / (pixel * frequency), LACUNARITY)) + 1
    return max(1, min(largest, count))


def fade(footprint: Tensor, octave: int) -> Tensor:
    """Weight of an octave whose base octave covers `footprint` noise units per pixel."""
    return (1.6 - footprint * (2.4 * LACUNARITY**octave)).clamp(0, 1)


LOOPS = "ultragen.world.triton_loops"
"""The module of the renderer's kernels."""


def fused(name: str, plain: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The kernel of that name where kernels run, elsewhere its plain twin."""
    if not fused_runs(LOOPS, device):
        return plain
    from . import triton_loops as kernels

    return getattr(kernels, name)
