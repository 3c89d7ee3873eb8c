"""Trained networks that become larger and at first do what they did before: a training goes on from
them instead of starting anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from ..model.autoencoder import CompactAutoencoder
from ..model.coordinates import insert_channels

BLOCKS = ("encoder_blocks", "decoder_blocks")


def grown_autoencoder(
    vae: CompactAutoencoder,
    z_dim: int | None = None,
    encoder_blocks: Sequence[int] | None = None,
    decoder_blocks: Sequence[int] | None = None,
) -> CompactAutoencoder:
    """An autoencoder with more latent channels or residual blocks, in float32, whose copies are the
    same until it is trained.

    The channels that are there keep their latents. New ones are made by a convolution that is drawn
    anew and are read with a weight of zero; new blocks stand behind the old ones of their size, and
    are the identity.

    Args:
        vae: Stays as it is.
        z_dim: Latent channels; fewer than there are, or None, leave them.
        encoder_blocks: Residual blocks by size, as `CompactAutoencoder` has them; likewise.
        decoder_blocks: Likewise.

    Raises:
        ValueError: if there are other than three numbers of blocks.
    """
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    channels = max(vae.config.z_dim, z_dim or 0)
    added = channels - vae.config.z_dim
    config["z_dim"] = channels
    for name, wanted in zip(BLOCKS, (encoder_blocks, decoder_blocks), strict=True):
        if wanted and len(wanted) != len(config[name]):
            raise ValueError(f"{name} has three numbers, one for each size, not {wanted}.")
        config[name] = tuple(map(max, config[name], wanted or config[name]))
    if vae.config.latents_mean is not None:
        config["latents_mean"] = [*vae.config.latents_mean, *[0.0] * added]
        config["latents_std"] = [*vae.config.latents_std, *vae.config.latents_std[:1] * added]
    grown = CompactAutoencoder(**config).to(vae.device)
    state = grown.state_dict()
    with torch.no_grad():
        for name, old in vae.state_dict().items():
            _put(state[name], old, added if name == "decoder.0.weight" else None)
    return grown


def _put(new: Tensor, old: Tensor, added: int | None) -> None:
    """Copies a layer's weights to where they belong in a larger one.

    Args:
        new: Changed in place.
        old: As large on all axes, or smaller on the first one.
        added: Latent channels that the decoder's first layer has more of, twice: it reads the
            frame before as well.
    """
    if added is None:
        new[: len(old)] = old
        return
    new.zero_()
    for own, half in zip(new.chunk(2, 1), old.chunk(2, 1), strict=True):
        own[:, : half.shape[1]] = half


def grow_channels(transformer: WanTransformer3DModel, z_dim: int) -> None:
    """Has a transformer take and give more latent channels: what it made of the others stays the
    same, and it gives zeros for the new ones, until it is trained.

    Args:
        transformer: Changed in place; one that has as many channels stays as it is.
        z_dim: Latent channels.

    Raises:
        ValueError: if it has more.
    """
    config: Any = transformer.config
    before = config.out_channels
    if z_dim < before:
        raise ValueError(
            f"The transformer has {before} latent channels and the autoencoder {z_dim}: take both "
            "from one folder."
        )
    if z_dim == before:
        return
    insert_channels(transformer, before, z_dim - before)
    old = transformer.proj_out
    rows = old.out_features // before
    new = nn.Linear(old.in_features, rows * z_dim, device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        for own, kept in ((new.weight, old.weight), (new.bias, old.bias)):
            own.zero_()
            own.unflatten(0, (rows, z_dim))[:, :before] = kept.unflatten(0, (rows, before))
    transformer.proj_out = new
    transformer.register_to_config(out_channels=z_dim)
