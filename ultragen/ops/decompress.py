"""Decompression of a branch's grid and its fusion with the finer branches (paper eq. 3, 5)."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .axes import Axis, plan_axis
from .dispatch import fused_runs, left_to_the_compiler
from .interpolation import interpolation, multiply_axes, resize, seen_by
from .layer_checks import is_untouched


def decompress(
    coarse: Tensor, size: tuple[int, int], factor: int, convolution: nn.Module
) -> Tensor:
    """Bilinear upsampling, then the branch's convolution (eq. 5).

    Args:
        coarse: b t h' w' d.
        size: Rows and columns of the full grid.
        factor: Tokens of an axis that became one.
        convolution: On tokens b t h w d.

    Returns:
        b t h w d.
    """
    height, width = size
    volume = resize(coarse, padded(size, factor))[:, :, :height, :width]
    return convolution(volume)


def decompress_and_fuse(
    fine: Tensor,
    coarse: Tensor,
    gate: Tensor,
    factor: int,
    convolution: nn.Conv3d,
    kind: type[nn.Conv3d],
) -> Tensor:
    """gate · fine + (1 − gate) · decompressed coarse (eq. 3).

    Args:
        fine: The sum of the finer branches, b t h w d.
        coarse: What the branch attended to, b t h' w' d.
        gate: Weights of the finer branches, b d or 1 d.
        factor: Tokens of an axis that became one.
        convolution: The branch's depthwise 3 × 3 × 3 convolution, on tokens. It is called, unless
            it is just what its class makes it: then its parameters may be read.
        kind: The class of a convolution that nobody has changed.

    Returns:
        b t h w d.
    """
    size = (fine.shape[2], fine.shape[3])
    plain = left_to_the_compiler() or not is_untouched(convolution, kind)
    if not plain and fused_runs("triton_decompress", fine.device):
        lengths = [*zip(size, padded(size, factor), coarse.shape[2:4], strict=True)]
        pairs = zip(lengths, (1, 2), strict=True)
        rows, columns = (upsampled_axis(*axis, group, fine.device) for axis, group in pairs)
        if rows and columns:
            from .triton_decompress import decompress_and_fuse as fused

            backwards = lengths if torch.is_grad_enabled() else []
            adjoints = [adjoint_axis(*axis, fine.device) for axis in backwards]
            weight, bias = convolution.weight, convolution.bias
            return fused(fine, coarse.type_as(fine), weight, bias, gate, rows, columns, adjoints)
    coarse = decompress(coarse, size, factor, convolution)
    gate = gate[:, None, None, None]
    return torch.lerp(coarse, fine.type_as(coarse), gate.type_as(coarse))


class Upsampled(NamedTuple):
    """Neighbouring places of a full axis, and the small tokens that they and the places beside them
    are made of.

    Attributes:
        length: Tokens of the full axis.
        padded: The same, rounded up to a multiple of the factor.
        small: Tokens of the small axis.
        first: The first place.
        stop: Behind the last one.
        low: The first small token.
        high: Behind the last one.
    """

    length: int
    padded: int
    small: int
    first: int
    stop: int
    low: int
    high: int


def upsampled(length: int, factor: int, small: int, first: int, stop: int) -> Upsampled:
    """Some places of a full axis, with the small tokens that they need.

    Args:
        length: Tokens of the full axis.
        factor: Tokens that became one.
        small: Tokens of the small axis.
        first: The first place.
        stop: Behind the last one.
    """
    whole = length + -length % factor
    matrix = _upsampling(length, whole, small)
    low, high = seen_by(matrix[max(0, first - 1) : stop + 1])
    return Upsampled(length, whole, small, first, stop, low, high)


def decompress_part_and_fuse(
    fine: Tensor,
    coarse: Tensor,
    gate: Tensor,
    rows: Upsampled,
    columns: Upsampled,
    convolution: nn.Conv3d,
    kind: type[nn.Conv3d],
) -> Tensor:
    """`decompress_and_fuse` for some rows and columns of the grid, without gradients.

    Args:
        fine: These rows and columns, b t h w d.
        coarse: The small tokens that they and their neighbours are made of, b t h' w' d.
        gate: As there.
        rows: Which ones they are.
        columns: The same.
        convolution: As there.
        kind: As there.

    Returns:
        b t h w d.
    """
    if is_untouched(convolution, kind) and fused_runs("triton_decompress", fine.device):
        pairs = zip((rows, columns), (1, 2), strict=True)
        row_axis, column_axis = (_part_of_axis(part, group, fine.device) for part, group in pairs)
        if row_axis and column_axis:
            from .triton_decompress import decompress_and_fuse as fused

            weight, bias = convolution.weight, convolution.bias
            return fused(fine, coarse.type_as(fine), weight, bias, gate, row_axis, column_axis)
    around = [(max(0, x.first - 1), min(x.length, x.stop + 1)) for x in (rows, columns)]
    matrices = (
        _upsampling(x.length, x.padded, x.small)[start:end, x.low : x.high].to(coarse)
        for x, (start, end) in zip((rows, columns), around, strict=True)
    )
    volume = convolution(multiply_axes(coarse, *matrices))
    (top, _), (left, _) = around
    volume = volume[
        :, :, rows.first - top : rows.stop - top, columns.first - left : columns.stop - left
    ]
    gate = gate[:, None, None, None]
    return torch.lerp(volume, fine.type_as(volume), gate.type_as(volume))


@cache
def _part_of_axis(part: Upsampled, group: int, device: torch.device) -> Axis | None:
    """What the fused decompression needs to know of a part of an axis; None where it does not
    fit."""
    matrix = _upsampling(part.length, part.padded, part.small)[:, part.low : part.high]
    return _axis(matrix, group, device, slice(part.first, part.stop))


def padded(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Rows and columns rounded up to what the compression covers."""
    height, width = size
    return height + -height % factor, width + -width % factor


@torch.compiler.assume_constant_result
def upsampled_axis(
    length: int, padded_length: int, small: int, group: int, device: torch.device
) -> Axis | None:
    """What the fused decompression needs to know of an axis; None where it does not fit. Kept for
    ever, and a constant of what is compiled, see `interpolation`.

    Args:
        length: Tokens of the full axis.
        padded_length: The same, rounded up to a multiple of the factor.
        small: Tokens of the small axis.
        group: Places that share their small tokens, see `plan_axis`.
        device: Where the result is wanted.
    """
    return _upsampled_axis(length, padded_length, small, group, device)


@torch.compiler.assume_constant_result
def adjoint_axis(length: int, padded_length: int, small: int, device: torch.device) -> Any:
    """What the gradient of the fused decompression needs to know of an axis, which is given as in
    `upsampled_axis`. Kept like that."""
    return _adjoint_axis(length, padded_length, small, device)


@cache
def _adjoint_axis(length: int, padded_length: int, small: int, device: torch.device) -> Any:
    from .triton_decompress_gradients import Adjoint, plan_adjoint

    adjoint = plan_adjoint(_upsampling(length, padded_length, small))
    return Adjoint(*(part.to(device) for part in adjoint))


def _upsampling(length: int, padded_length: int, small: int) -> Tensor:
    """The matrix length × small, in float64."""
    return interpolation(small, padded_length, torch.device("cpu"), torch.float64)[:length]


@cache
def _upsampled_axis(
    length: int, padded_length: int, small: int, group: int, device: torch.device
) -> Axis | None:
    return _axis(_upsampling(length, padded_length, small), group, device)


def _axis(
    matrix: Tensor, group: int, device: torch.device, places: slice = slice(None)
) -> Axis | None:
    try:
        return Axis(*(x.to(device) for x in plan_axis(matrix, group, places=places)))
    except ValueError:  # the plain code takes any size
        return None
