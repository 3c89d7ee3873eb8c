"""The compressing convolution of a branch (paper §4.2, eq. 2)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .dispatch import fused_runs


def compress(grid: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depthwise convolution whose stride is its size, on tokens; edges are repeated where needed.

    Args:
        grid: b t h w d.
        weight: d 1 factor factor, as `nn.Conv2d` keeps it; may be of another precision than `grid`
            under autocast.
        bias: d, or None.

    Returns:
        b t ⌈h/factor⌉ ⌈w/factor⌉ d.
    """
    factor, fused = weight.shape[-1], fused_runs("triton_compress", grid.device)
    if torch.is_grad_enabled() or not fused:
        for axis in (2, 3):
            if missing := -grid.shape[axis] % factor:
                edge = grid.narrow(axis, grid.shape[axis] - 1, 1)
                grid = torch.cat([grid, *[edge] * missing], dim=axis)
    if fused:
        from .triton_compress import compress as in_one_pass

        return in_one_pass(grid, weight, bias)
    if grid.requires_grad and (grid.is_cuda or grid.dtype == torch.bfloat16):
        return weighted_sum(grid, weight, bias)
    frames = rearrange(grid, "b t h w d -> (b t) d h w")
    small = F.conv2d(frames, weight, bias, stride=factor, groups=len(weight))
    return rearrange(small, "(b t) d h w -> b t h w d", t=grid.shape[1])


def weighted_sum(grid: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same for patches that fit, which don't overlap: the library's gradients of a depthwise
    convolution are slow on a GPU, and in bfloat16 on a CPU."""
    i, j = weight.shape[2:]
    patches = rearrange(grid, "b t (h i) (w j) d -> b t h i w j d", i=i, j=j)
    factors = rearrange(weight, "d 1 i j -> i 1 j d").to(grid.dtype)
    out = (patches * factors).sum((3, 5))
    return out if bias is None else out + bias.to(grid.dtype)
