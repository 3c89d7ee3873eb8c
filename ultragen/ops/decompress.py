"""Decompression of a branch's grid and its fusion with the finer branches (paper eq. 3, 5)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .axes import Axis, plan_axis
from .dispatch import fused_runs, left_to_the_compiler
from .interpolation import interpolation, resize
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
    matrix = _upsampling(length, padded_length, small)
    try:
        return Axis(*(x.to(device) for x in plan_axis(matrix, group)))
    except ValueError:  # the plain code takes any size
        return None
