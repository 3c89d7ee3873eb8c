"""What makes the grid of a compressed branch smaller and large again (paper §4.2, eq. 2 and 5): the
convolutions before and after its attention, and the resampling between sizes."""

from __future__ import annotations

from functools import cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import kernel_works
from .kernels.axes import Axis, plan_axis


class Compression(nn.Conv2d):
    """Depthwise convolution whose stride is its size, on tokens (eq. 2)."""

    def forward(self, grid: Tensor) -> Tensor:
        """b t h w d → b t ⌈h/factor⌉ ⌈w/factor⌉ d; edges are repeated where needed."""
        if not torch.is_grad_enabled() and kernel_works("compression", grid.device):
            from .kernels.compression import compress

            return compress(grid, self.weight, self.bias)
        for axis, size in zip((2, 3), self.kernel_size, strict=True):
            if missing := -grid.shape[axis] % size:
                edge = grid.narrow(axis, grid.shape[axis] - 1, 1)
                grid = torch.cat([grid, *[edge] * missing], dim=axis)
        if grid.requires_grad and (grid.is_cuda or grid.dtype == torch.bfloat16):
            return self.weighted_sum(grid)
        frames = rearrange(grid, "b t h w d -> (b t) d h w")
        return rearrange(super().forward(frames), "(b t) d h w -> b t h w d", t=grid.shape[1])

    def weighted_sum(self, grid: Tensor) -> Tensor:
        """The same for patches that fit, which don't overlap: the library's gradients of a
        depthwise convolution are slow on a GPU, and in bfloat16 on a CPU."""
        i, j = self.kernel_size
        patches = rearrange(grid, "b t (h i) (w j) d -> b t h i w j d", i=i, j=j)
        weight = rearrange(self.weight, "d 1 i j -> i 1 j d").to(grid.dtype)
        out = (patches * weight).sum((3, 5))
        return out if self.bias is None else out + self.bias.to(grid.dtype)


class Decompression(nn.Conv3d):
    """Depthwise 3 × 3 × 3 convolution on tokens (eq. 5)."""

    def forward(self, grid: Tensor) -> Tensor:
        """b t h w d → b t h w d."""
        if kernel_works("depthwise", grid.device):
            from .kernels.depthwise import depthwise_conv3d

            return depthwise_conv3d(grid, self.weight, self.bias)
        if grid.requires_grad and not grid.is_cuda:
            return self.sum_of_frames(grid)
        volume = rearrange(grid, "b t h w d -> b d t h w")
        if volume.is_cuda:
            # On a CPU the channels-last view is the faster one, see benchmarks/decompression.py.
            volume = volume.contiguous()
        return rearrange(super().forward(volume), "b d t h w -> b t h w d")

    def sum_of_frames(self, grid: Tensor) -> Tensor:
        """The same as convolutions of the frame before, of the frame itself and of the one after:
        the library's gradients of three dimensions are slow on a CPU, in bfloat16 above all."""
        b, t = grid.shape[:2]
        frames = rearrange(F.pad(grid, (0, 0) * 3 + (1, 1)), "b t h w d -> b t d h w")
        before, here, after = (
            F.conv2d(frames[:, k : k + t].flatten(0, 1), weight, bias, 1, 1, groups=self.groups)
            for k, weight, bias in zip(
                range(3), self.weight.unbind(2), (None, self.bias, None), strict=True
            )
        )
        return rearrange(before + here + after, "(b t) d h w -> b t h w d", b=b)


def resize(grid: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Bilinear resampling of b t h w d to other rows and columns; the same size is returned as
    it is."""
    if grid.shape[2:4] == size:
        return grid
    if grid.is_cuda and grid.requires_grad:
        return resize_by_products(grid, size, antialias)
    # Filtered, a token may be made of more than two.
    if not antialias and not torch.is_grad_enabled() and kernel_works("resampling", grid.device):
        from .kernels.resampling import resample

        rows, columns = (
            resampled_axis(old, new, grid.device)
            for old, new in zip(grid.shape[2:4], size, strict=True)
        )
        return resample(grid, rows, columns)
    frames = rearrange(grid, "b t h w d -> (b t) d h w")
    frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=antialias)
    return rearrange(frames, "(b t) d h w -> b t h w d", t=grid.shape[1])


def resize_by_products(grid: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """`resize` as two matrix products: on a GPU the library's gradient adds up atomically, takes
    many times as long, and does not give the same sum twice."""
    b, t, height, width, _ = grid.shape
    rows = interpolation(height, size[0], antialias, grid.device, grid.dtype)
    columns = interpolation(width, size[1], antialias, grid.device, grid.dtype)
    grid = rows.expand(b * t, -1, -1) @ rearrange(grid, "b t h w d -> (b t) h (w d)")
    grid = rearrange(grid, "n h (w d) -> (n h) w d", w=width)
    grid = columns.expand(len(grid), -1, -1) @ grid
    return rearrange(grid, "(b t h) w d -> b t h w d", b=b, t=t)


# What follows is kept for ever, because recorded steps read the tensors, and is a constant of what
# is compiled, whose compiler would not see the cache.


@torch.compiler.assume_constant_result
def upsampled_axis(
    length: int, padded: int, small: int, group: int, device: torch.device
) -> Axis | None:
    """What the fused decompression needs to know of an axis; None where it does not fit.

    Args:
        length: Tokens of the full axis.
        padded: The same, rounded up to a multiple of the factor.
        small: Tokens of the small axis.
        group: Places that share their small tokens, see `plan_axis`.
        device: Where the result is wanted.
    """
    return _upsampled_axis(length, padded, small, group, device)


@cache
def _upsampled_axis(
    length: int, padded: int, small: int, group: int, device: torch.device
) -> Axis | None:
    matrix = interpolation(small, padded, False, torch.device("cpu"), torch.float64)[:length]
    try:
        return Axis(*(x.to(device) for x in plan_axis(matrix, group)))
    except ValueError:  # the plain code takes any size
        return None


@torch.compiler.assume_constant_result
def resampled_axis(length: int, to: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the fused resampling needs to know of an axis."""
    return _resampled_axis(length, to, device)


@cache
def _resampled_axis(length: int, to: int, device: torch.device) -> tuple[Tensor, Tensor]:
    from .kernels.resampling import plan_axis

    axis = plan_axis(interpolation(length, to, False, torch.device("cpu"), torch.float64))
    return axis[0].to(device), axis[1].to(device)


@cache
def interpolation(
    length: int, to: int, antialias: bool, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The matrix to × length that resamples an axis linearly."""
    with torch.inference_mode(False), torch.no_grad():  # kept for training, whoever asks first
        units = torch.eye(length, device=device, dtype=torch.float64)[None, None]
        matrix = F.interpolate(
            units, (to, length), mode="bilinear", align_corners=False, antialias=antialias
        )
        return matrix[0, 0].to(dtype)
