"""Depthwise 3 × 3 × 3 convolution on tokens (paper §4.2, eq. 5)."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .dispatch import fused_runs


def depthwise_conv3d(grid: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3 × 3 × 3 convolution of each feature, zeros beyond the edges.

    Args:
        grid: b t h w d.
        weight: d 1 3 3 3, as `nn.Conv3d` keeps it; may be of another precision than `grid` under
            autocast.
        bias: d, or None.

    Returns:
        b t h w d.
    """
    if fused_runs("triton_depthwise", grid.device):
        from .triton_depthwise import depthwise_conv3d as fused

        return fused(grid, weight, bias)
    if grid.requires_grad and not grid.is_cuda:
        return sum_of_frames(grid, weight, bias)
    volume = rearrange(grid, "b t h w d -> b d t h w")
    if volume.is_cuda:
        # On a CPU the channels-last view is the faster one, see benchmarks/decompression.py.
        volume = volume.contiguous()
    volume = F.conv3d(volume, weight, bias, padding=1, groups=len(weight))
    return rearrange(volume, "b d t h w -> b t h w d")


def sum_of_frames(grid: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as convolutions of the frame before, of the frame itself and of the one after: the
    library's gradients of three dimensions are slow on a CPU, in bfloat16 above all."""
    b, t = grid.shape[:2]
    frames = rearrange(F.pad(grid, (0, 0) * 3 + (1, 1)), "b t h w d -> b t d h w")
    before, here, after = (
        F.conv2d(frames[:, k : k + t].flatten(0, 1), taps, offset, 1, 1, groups=len(weight))
        for k, taps, offset in zip(range(3), weight.unbind(2), (None, bias, None), strict=True)
    )
    return rearrange(before + here + after, "(b t) d h w -> b t h w d", b=b)
