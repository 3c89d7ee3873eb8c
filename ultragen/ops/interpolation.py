"""Bilinear resampling of grids of tokens between sizes, and its matrices."""

from __future__ import annotations

from functools import cache

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .dispatch import fused_runs


def resize(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling of b t h w d to other rows and columns, without a filter; the same size
    is returned as it is."""
    if grid.shape[2:4] == size:
        return grid
    if grid.is_cuda and grid.requires_grad:
        return resize_by_products(grid, size)
    if not torch.is_grad_enabled() and fused_runs("triton_resampling", grid.device):
        from .triton_resampling import resample

        rows, columns = (
            resampled_axis(old, new, grid.device)
            for old, new in zip(grid.shape[2:4], size, strict=True)
        )
        return resample(grid, rows, columns)
    frames = rearrange(grid, "b t h w d -> (b t) d h w")
    frames = F.interpolate(frames, size, mode="bilinear", align_corners=False)
    return rearrange(frames, "(b t) d h w -> b t h w d", t=grid.shape[1])


def resize_by_products(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize` as two matrix products: on a GPU the library's gradient adds up atomically, takes
    many times as long, and does not give the same sum twice."""
    b, t, height, width, _ = grid.shape
    rows = interpolation(height, size[0], grid.device, grid.dtype)
    columns = interpolation(width, size[1], grid.device, grid.dtype)
    grid = rows.expand(b * t, -1, -1) @ rearrange(grid, "b t h w d -> (b t) h (w d)")
    grid = rearrange(grid, "n h (w d) -> (n h) w d", w=width)
    grid = columns.expand(len(grid), -1, -1) @ grid
    return rearrange(grid, "(b t h) w d -> b t h w d", b=b, t=t)


# What follows is kept for ever, because recorded steps read the tensors, and is a constant of what
# is compiled, whose compiler would not see the cache.


@torch.compiler.assume_constant_result
def resampled_axis(length: int, to: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the fused resampling needs to know of an axis."""
    return _resampled_axis(length, to, device)


@cache
def _resampled_axis(length: int, to: int, device: torch.device) -> tuple[Tensor, Tensor]:
    from .triton_resampling import plan_axis

    axis = plan_axis(interpolation(length, to, torch.device("cpu"), torch.float64))
    return axis[0].to(device), axis[1].to(device)


@cache
def interpolation(length: int, to: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix to × length that resamples an axis linearly."""
    with torch.inference_mode(False), torch.no_grad():  # kept for training, whoever asks first
        units = torch.eye(length, device=device, dtype=torch.float64)[None, None]
        matrix = F.interpolate(units, (to, length), mode="bilinear", align_corners=False)
        return matrix[0, 0].to(dtype)
