"""White noise of any size from one spectrum, so that a seed is the same scene at every size.

A key stands for one white noise without end. A grid takes the lowest frequencies of its orthonormal
cosine transform, in time, rows and columns. The transform keeps white noise white, so that these
coefficients are white noise themselves: they are drawn, and nothing larger than the grid is made.
"""

from __future__ import annotations

from itertools import product
from math import pi

import numpy as np
import torch
from torch import Tensor

BLOCK = (8, 32, 32)
"""Frequencies in time, rows and columns that are drawn together. Other numbers, other noise."""


def draw_key(generator: torch.Generator | None) -> int:
    """A number of 63 bits, which stands for a clip's noise; the next one differs.

    Args:
        generator: Source of the number; None for PyTorch's own.
    """
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def spectral_noise(key: int, shape: tuple[int, int, int, int]) -> Tensor:
    """Gaussian white noise c t h w in float32 on the CPU, whose low frequencies are those of the
    same key's noise of any other size.

    Args:
        key: Which noise, from `draw_key`.
        shape: Channels c, latent frames t, rows h and columns w; the first channels are the same
            whatever c is.
    """
    noise = torch.empty(shape)
    # In float64, because settings for speed round float32's products on a CPU too
    # (`torch.set_float32_matmul_precision`), and a seed's clip must not depend on them.
    frames, rows, columns = (cosines(size) for size in shape[1:])
    for channel in range(shape[0]):
        grid = torch.from_numpy(coefficients(key, channel, shape[1:])).double()
        grid = torch.einsum("tfg,wg->tfw", grid, columns)
        grid = torch.einsum("tfw,hf->thw", grid, rows)
        noise[channel] = torch.einsum("fhw,tf->thw", grid, frames)
    return noise


def cosines(size: int) -> Tensor:
    """The inverse of the orthonormal cosine transform (DCT-II) of a line: size × frequencies."""
    frequency = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(pi / size * (frequency[:, None] + 0.5) * frequency)
    basis[:, 0] /= 2**0.5
    return basis * (2 / size) ** 0.5


def coefficients(key: int, channel: int, shape: tuple[int, ...]) -> np.ndarray:
    """A channel's lowest frequencies t h w, float32: those of a smaller grid begin a larger one's.

    Each block has a place of its own in the sequence of a counter-based generator (Philox, Salmon
    et al. 2011), so that it holds the same numbers whatever else is drawn.
    """
    spectrum = np.empty(shape, np.float32)
    corners = (range(0, size, length) for size, length in zip(shape, BLOCK, strict=True))
    for corner in product(*corners):
        # The lowest part of the counter is left to count what a block draws.
        place = [0, *(start // length for start, length in zip(corner, BLOCK, strict=True))]
        philox = np.random.Philox(
            key=np.array([key, channel], np.uint64), counter=np.array(place, np.uint64)
        )
        values = np.random.Generator(philox).standard_normal(BLOCK, np.float32)
        wanted = spectrum[tuple(slice(i, i + size) for i, size in zip(corner, BLOCK, strict=True))]
        wanted[...] = values[tuple(slice(size) for size in wanted.shape)]
    return spectrum
