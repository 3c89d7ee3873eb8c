"""Small datasets of latents, written as `dataset` writes them."""

from __future__ import annotations

from pathlib import Path

import torch

from ultragen.dataset.shard_files import (
    DatasetSettings,
    EncodedClip,
    EncodedSource,
    ShardWriter,
    Size,
    create_settings,
    latents_digest,
    size_text,
)
from ultragen.dataset.shards import text_fingerprint, vae_fingerprint
from ultragen.model.wan_1_3b import PIXELS_PER_LATENT
from ultragen.presets import FRAMES_PER_LATENT
from ultragen.training.build import TINY_SIZE
from ultragen.weights.random import SIZES

SMALL: Size = (64, 96, 9)
WIDE: Size = (64, 128, 5)


def write_embedded(folder: Path, size: Size, captions: list[tuple[str, ...]]) -> Path:
    """A dataset of the tiny embedded model: noise, one clip for each tuple of captions."""
    create_settings(folder, DatasetSettings("embedded", "vae", None, 12.0, (size_text(size),)))
    chance = torch.Generator().manual_seed(7)
    height, width, frames = size
    shape = (TINY_SIZE.z_dim, (frames + 3) // FRAMES_PER_LATENT, height // 16, width // 16)
    writer = ShardWriter(folder, "latents")
    for number, said in enumerate(captions):
        values = torch.randn(shape, generator=chance).bfloat16()
        clip = EncodedClip(0.0, *size, str(number), latents_digest(values))
        writer.add_source(
            EncodedSource(f"{number}.mp4", 1, 1, said, (clip,)), {clip.tensor: values}
        )
    writer.flush()
    return folder


def write_latents(
    folder: Path, base: Path, sizes: tuple[Size, ...] = (SMALL, SMALL, SMALL, WIDE, WIDE), **changes
) -> Path:
    """A dataset of noise for tiny Wan: one clip of each size, each with two captions."""
    settings = {
        "model": "wan",
        "vae": vae_fingerprint(base),
        "text_encoder": text_fingerprint(base),
        "frame_rate": 16.0,
        "buckets": tuple(dict.fromkeys(map(size_text, sizes))),
    }
    create_settings(folder, DatasetSettings(**{**settings, **changes}))
    chance = torch.Generator().manual_seed(7)
    channels = SIZES["tiny"].transformer["in_channels"]
    features = SIZES["tiny"].transformer["text_dim"]
    latents, texts = ShardWriter(folder, "latents"), ShardWriter(folder, "text")
    captions = {""}
    for number, (height, width, frames) in enumerate(sizes):
        shape = (
            channels,
            (frames - 1) // FRAMES_PER_LATENT + 1,
            height // PIXELS_PER_LATENT,
            width // PIXELS_PER_LATENT,
        )
        values = torch.randn(shape, generator=chance).bfloat16()
        key = f"clip-{number}"
        clip = EncodedClip(0.0, height, width, frames, key, latents_digest(values))
        said = (f"a lake {number}", f"{number} hills at dawn")
        captions |= set(said)
        latents.add_source(EncodedSource(f"{number}.mp4", 1, 1, said, (clip,)), {key: values})
    for number, caption in enumerate(sorted(captions)):
        texts.add_text(caption, torch.randn((3 + number, features), generator=chance).bfloat16())
    latents.flush()
    texts.flush()
    return folder
