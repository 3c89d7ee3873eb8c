"""Where in the clip a latent lies, as three more input channels of a transformer.

Rotary positions tell how far tokens are from each other, not where they are; a small model learns
hardly any of "the sun at the left" by them. The 1.3B model has no such channels.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from einops import repeat
from torch import Tensor

CHANNELS = 3


def with_coordinates(latents: Tensor, in_channels: int) -> Tensor:
    """The input of a transformer: latents, and their coordinates if it has channels for these.

    Args:
        latents: b c t h w.
        in_channels: Channels that the transformer takes: c, or c + 3.

    Returns:
        b in_channels t h w. The coordinates, of moment, row and column, go from -1 at the first
        border of the clip to 1 at the last one.

    Raises:
        ValueError: for any other number of channels.
    """
    b, c, *size = latents.shape
    if in_channels == c:
        return latents
    if in_channels != c + CHANNELS:
        raise ValueError(
            f"A transformer of {in_channels} input channels does not fit latents of {c}: it needs "
            f"{c}, or {c + CHANNELS} with coordinates."
        )
    axes = [(torch.arange(n, device=latents.device) * 2.0 + 1) / n - 1 for n in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).to(latents.dtype)
    return torch.cat([latents, repeat(grid, "c t h w -> b c t h w", b=b)], dim=1)


def add_coordinates(transformer: WanTransformer3DModel) -> None:
    """Gives a transformer the input channels for coordinates; its output stays the same until they
    are trained. One that has them stays as it is."""
    config = transformer.config
    if config.in_channels == config.out_channels:
        insert_channels(transformer, config.in_channels, CHANNELS)


def insert_channels(transformer: WanTransformer3DModel, at: int, number: int) -> None:
    """Gives a transformer more input channels; its output stays the same until they are trained.

    Args:
        transformer: Changed in place.
        at: The first of the new ones; channels from there on come after them.
        number: How many.
    """
    old = transformer.patch_embedding
    new = type(old)(
        old.in_channels + number,
        old.out_channels,
        old.kernel_size,
        old.stride,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :at] = old.weight[:, :at]
        new.weight[:, at + number :] = old.weight[:, at:]
        new.bias.copy_(old.bias)  # type: ignore[union-attr, arg-type]
    transformer.patch_embedding = new
    transformer.register_to_config(in_channels=new.in_channels)
