"""Latents → frames: decoded piece by piece, checked, and in the form asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..model.autoencoder import CompactAutoencoder, denormalize
from ..pictures import is_black, to_uint8
from .sampler import GenerationError
from .wan_decoding import decode_wan

OutputType = Literal["np", "pil", "pt", "uint8", "latent"]
Frames = np.ndarray | Tensor | list[list[Image.Image]]


@torch.no_grad()
def decode_pieces(
    vae: AutoencoderKLWan | CompactAutoencoder,
    latents: Tensor,
    group: dist.ProcessGroup | None = None,
) -> Iterator[Tensor]:
    """Latents of unit variance b c t h w → pieces of the clip, b 3 t h w in [0, 1].

    Args:
        vae: The autoencoder.
        latents: The same in all processes.
        group: Processes that share the work of Wan's autoencoder; all get the pieces.

    Raises:
        GenerationError: if a piece is not finite.
    """
    z = denormalize(vae, latents)
    pieces = (
        vae.decode_groups(z) if isinstance(vae, CompactAutoencoder) else decode_wan(vae, z, group)
    )
    for piece in pieces:
        if not torch.isfinite(piece).all():
            raise GenerationError(
                "The autoencoder's frames are not finite. Use another seed, or run the autoencoder "
                "in float32."
            )
        yield (piece.float() / 2 + 0.5).clamp(0, 1)


def join_pieces(pieces: Iterable[Tensor], output_type: OutputType) -> Frames:
    """Pieces of a clip, b 3 t h w in [0, 1] → its frames in the form asked for.

    Raises:
        GenerationError: if the frames are black.
    """
    # Each piece leaves the device, as bytes where these are asked for, before the next one comes.
    if output_type == "pt":
        frames = torch.cat([piece.cpu() for piece in pieces], dim=2)
        frames = rearrange(frames, "b c t h w -> b t c h w")
    else:
        whole = output_type in ("pil", "uint8")
        parts = [
            rearrange(to_uint8(piece) if whole else piece, "b c t h w -> b t h w c").cpu()
            for piece in pieces
        ]
        frames = torch.cat(parts, dim=1).numpy()
    if is_black(frames):
        raise GenerationError("The autoencoder's frames are all black. Use another seed or prompt.")
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in clip] for clip in frames]
    return frames
