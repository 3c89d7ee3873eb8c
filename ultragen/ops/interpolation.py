"""Bilinear resampling of grids of tokens between sizes, and its matrices."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

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


class Span(NamedTuple):
    """Neighbouring places of an axis that is resampled, and the tokens that they are made of.

    Attributes:
        length: Tokens of the axis.
        to: Places of the resampled axis.
        first: The first one of these.
        stop: Behind the last one.
        low: The first token that they are made of.
        high: Behind the last one.
    """

    length: int
    to: int
    first: int
    stop: int
    low: int
    high: int


def span_of(length: int, to: int, first: int, stop: int) -> Span:
    """Some places of an axis that is resampled, with the tokens that they are made of."""
    if length == to:
        return Span(length, to, first, stop, first, stop)
    return Span(length, to, first, stop, *seen_by(_exactly(length, to)[first:stop]))


def seen_by(matrix: Tensor) -> tuple[int, int]:
    """The first and, excluded, the last column of a matrix that has values other than zero."""
    seen = matrix.ne(0).any(dim=0).nonzero()
    return int(seen[0]), int(seen[-1]) + 1


def resize_part(grid: Tensor, rows: Span, columns: Span) -> Tensor:
    """Some rows and columns of what `resize` gives, of the tokens that these are made of, without
    gradients: b t h w d → b t h' w' d."""
    if rows.length == rows.to and columns.length == columns.to:
        return grid
    if fused_runs("triton_resampling", grid.device):
        from .triton_resampling import resample

        axes = (resampled_part(*span, grid.device) for span in (rows, columns))
        return resample(grid, *axes)
    down, across = (
        _exactly(span.length, span.to)[span.first : span.stop, span.low : span.high].to(grid)
        for span in (rows, columns)
    )
    return multiply_axes(grid, down, across)


def resize_by_products(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize` as two matrix products: on a GPU the library's gradient adds up atomically, takes
    many times as long, and does not give the same sum twice."""
    _, _, height, width, _ = grid.shape
    rows = interpolation(height, size[0], grid.device, grid.dtype)
    columns = interpolation(width, size[1], grid.device, grid.dtype)
    return multiply_axes(grid, rows, columns)


def multiply_axes(grid: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Both axes of b t h w d, each multiplied by a matrix: new length × length."""
    b, t, _, width, _ = grid.shape
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

    axis = plan_axis(_exactly(length, to))
    return axis[0].to(device), axis[1].to(device)


@torch.compiler.assume_constant_result
def resampled_part(
    length: int, to: int, first: int, stop: int, low: int, high: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The same for some places of an axis, which are given as a `Span`."""
    return _resampled_part(Span(length, to, first, stop, low, high), device)


@cache
def _resampled_part(span: Span, device: torch.device) -> tuple[Tensor, Tensor]:
    from .triton_resampling import plan_axis

    matrix = _exactly(span.length, span.to)[span.first : span.stop, span.low : span.high]
    first, share = plan_axis(matrix)
    return first.to(device), share.to(device)


def _exactly(length: int, to: int) -> Tensor:
    return interpolation(length, to, torch.device("cpu"), torch.float64)


@cache
def interpolation(length: int, to: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix to × length that resamples an axis linearly."""
    with torch.inference_mode(False), torch.no_grad():  # kept for training, whoever asks first
        units = torch.eye(length, device=device, dtype=torch.float64)[None, None]
        matrix = F.interpolate(units, (to, length), mode="bilinear", align_corners=False)
        return matrix[0, 0].to(dtype)
