"""Losses and scores that several stages use."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURHOOD = 15  # pixels a side, over which contrast is measured
SEEN_TOGETHER = 16  # pixels a side, over which the amount of fine detail is compared
LEAST_DETAIL = 0.01  # of the Laplacian, where pictures span [-1, 1]: less is not seen
LEVELS = 4
LEAST_CONTRAST = 0.05  # below it errors count no more, where pictures span [-1, 1]


def gradient_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the pictures' horizontal and vertical differences: keeps edges
    that a plain L1 would blur. Inputs … h w; the weight of each pixel's error may broadcast."""
    error = prediction - target
    across, down = error.diff(dim=-1).abs(), error.diff(dim=-2).abs()
    if weight is not None:
        across, down = across * weight[..., 1:], down * weight[..., 1:, :]
    return across.mean() + down.mean()


def contrast_weight(video: Tensor) -> Tensor:
    """How much an error shows at each pixel, b 1 t h w, with mean 1 in each clip: the less, the
    stronger the contrast around it, which hides errors.

    Args:
        video: b c t h w in [-1, 1].
    """
    grey = rearrange(video.mean(1), "b t h w -> (b t) 1 h w")

    def around(x: Tensor) -> Tensor:
        return F.avg_pool2d(
            x, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=False
        )

    variance = (around(grey.square()) - around(grey).square()).clamp(min=0)
    weight = (variance.sqrt() + LEAST_CONTRAST).rsqrt()
    weight = rearrange(weight, "(b t) 1 h w -> b 1 t h w", b=len(video))
    return weight / weight.mean((1, 2, 3, 4), keepdim=True)


def detail_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """How far the amount of fine detail is from the target's, place by place: the mean absolute
    logarithm of the ratio of their mean absolute Laplacians, at full and at half size.

    Errors of pixels are least where texture that can't be told is left out; this asks for as much
    of it as there was, wherever exactly it lies.

    Args:
        prediction: b c t h w in [-1, 1].
        target: The same.
    """
    pictures = torch.cat([prediction, target]).float().mean(1).flatten(0, 1)[:, None]
    losses = []
    for _ in range(2):
        # Not a convolution, which autocast would compute in bfloat16, whose steps are as large as
        # the detail of a sky.
        middle = pictures[..., 1:-1, 1:-1]
        found = pictures[..., 2:, 1:-1] + pictures[..., :-2, 1:-1] - 2 * middle
        found = (found + pictures[..., 1:-1, 2:] + pictures[..., 1:-1, :-2] - 2 * middle).abs()
        found = F.avg_pool2d(found, min(SEEN_TOGETHER, *found.shape[-2:]), SEEN_TOGETHER // 2)
        ours, theirs = (found + LEAST_DETAIL).log().chunk(2)
        losses.append((ours - theirs).abs().mean())
        pictures = F.avg_pool2d(pictures, 2)
    return torch.stack(losses).mean()


def psnr(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of an error whose signal spans 1."""
    return -10 * torch.log10(error.square().mean())


def by_noise_level(errors: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Mean error of the samples in each quarter of the noise levels, of those that have any.

    Args:
        errors: One a sample, b.
        sigma: Noise levels in [0, 1], b, on the CPU: no device is waited for.
    """
    levels = (sigma * LEVELS).long().clamp(max=LEVELS - 1)
    return {
        f"loss/sigma_{level / LEVELS:.2f}-{(level + 1) / LEVELS:.2f}": errors[
            (levels == level).nonzero()[:, 0].to(errors.device)
        ].mean()
        for level in levels.unique().tolist()
    }
