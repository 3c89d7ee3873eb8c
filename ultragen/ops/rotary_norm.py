"""The norm of queries or keys across heads, the rotation by their positions, and the cut into
windows, as one operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import fused_runs
from .window_order import Rectangle, split_windows

Rotary = tuple[Tensor, Tensor]
"""cos and sin, t h w × half the head size each."""


def rotary_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    rotary: Rotary,
    heads: int,
    rectangles: Sequence[Rectangle],
    tile: int = 1,
) -> list[Tensor]:
    """RMS norm over all features, rotation of pairs of neighbouring features, cut into windows.

    Args:
        x: Queries or keys of all heads, b t h w d.
        weight: Factors of the norm, d; may be of another precision than `x`.
        eps: What the norm adds to the mean square.
        rotary: cos and sin of the whole grid.
        heads: Attention heads.
        rectangles: The groups of equal windows.
        tile: The first token of a window, repeated behind its last one, makes their number a
            multiple of it; only where `tiles.tile_of` asks for that.

    Returns:
        Windows as `split_windows` gives them, in the precision of `x`.
    """
    if fused_runs("triton_rotary_norm", x.device):
        from .triton_rotary_norm import rotary_norm as fused

        return fused(x, weight, rotary, eps, rectangles, tile)
    # The norm's factor, one a token, turns with the positions: a pass less over all features.
    precise = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
    factor = torch.rsqrt(norm.square() / x.shape[-1] + eps)
    weighted = (x * weight.to(precise)).unflatten(-1, (heads, -1))
    turned = apply_rotary(weighted, rotary, factor[..., None])
    return split_windows(turned.flatten(-2).type_as(x), rectangles)


def apply_rotary(x: Tensor, rotary: Rotary, scale: Tensor | None = None) -> Tensor:
    """Rotates pairs of neighbouring features by their position's angles.

    Args:
        x: b … heads d, in float32 or float64.
        rotary: cos and sin, … × d/2 each.
        scale: b … 1 1, multiplied in.
    """
    # As complex numbers: one product in one pass.
    turn = torch.complex(*(table.to(x.dtype) for table in rotary))[..., None, :]
    turn = turn if scale is None else turn * scale
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn
    return torch.view_as_real(turned).flatten(-2)
