"""The networks that encode clips and captions, and how they do it piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ..hardware import find_hardware
from ..model.autoencoder import FRAMES_PER_LATENT, CompactAutoencoder, normalize
from ..model.strict_loading import load_strictly
from ..presets import EMBEDDED, EMBEDDED_MODEL, WAN, ModelPreset
from ..sampling.prompts import count_tokens, embed_prompts
from ..sampling.wan_encoding import encode_wan
from ..weights.fingerprint import check_shipped
from ..weights.json_files import read_object
from ..weights.wan import load_text_encoder, load_tokenizer, load_vae, locate_encoders
from .buckets import Bucket

PRESETS: dict[str, ModelPreset] = {"wan": WAN, "embedded": EMBEDDED}
BATCH = 16  # captions that are encoded together
Autoencoder: TypeAlias = AutoencoderKLWan | CompactAutoencoder


def locate_base(model: str, base: str | Path | None = None) -> Path:
    """The folder of the pipeline whose autoencoder encodes; Wan's is downloaded where it is not
    there yet.

    Args:
        model: A key of `PRESETS`.
        base: A folder, for Wan also a repository on the Hub; None takes the model's own.

    Raises:
        ValueError: The model is unknown, or `base` is another one.
        OSError: Files are missing, incomplete or damaged.
    """
    if model not in PRESETS:
        raise ValueError(f"model must be one of {', '.join(PRESETS)}, not {model!r:.40}.")
    if model == "wan":
        return locate_encoders(base)
    folder = Path(base or EMBEDDED_MODEL)
    if not (folder / "vae" / "config.json").is_file():
        raise ValueError(
            f"{folder} has no vae/config.json: take a folder that `assemble` wrote, or leave out "
            "--base for the shipped autoencoder."
        )
    return folder


def load_autoencoder(model: str, folder: Path, device: torch.device) -> Autoencoder:
    """The autoencoder of a pipeline's folder, in the device's precision; errors as in
    `load_strictly`."""
    if model == "wan":
        vae = load_vae(folder / "vae", getattr(torch, find_hardware().dtype))
    else:
        check_shipped(folder / "vae")
        vae = load_strictly(CompactAutoencoder, folder / "vae", use_safetensors=True)
    return vae.to(device).eval().requires_grad_(False)


@torch.no_grad()
def encode_clip(vae: Autoencoder, pieces: Iterable[Tensor]) -> Tensor:
    """A clip in consecutive pieces → its latents.

    Args:
        vae: Wan's autoencoder or the compact one.
        pieces: 3 t h w in [-1, 1], on any device; the first has 4n + 1 frames, the others 4n.

    Returns:
        c t h w, of unit variance, in bfloat16 on the CPU.
    """
    batches = (piece[None] for piece in pieces)
    if isinstance(vae, CompactAutoencoder):
        latents = torch.cat(list(_encode_compact(vae, batches)), dim=2)
    else:
        latents = encode_wan(vae, batches)
    return normalize(vae, latents)[0].bfloat16().cpu()


def _encode_compact(vae: CompactAutoencoder, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    last = None
    for piece in pieces:
        # A group of four frames is encoded by itself, the first frame too: one that stands before
        # a further piece makes it 4n + 1 frames long, and its own latents are dropped.
        video = piece if last is None else torch.cat([last, piece], dim=2)
        # A GPU's autocast takes any type; elsewhere it must be that of the weights.
        video = video.to(vae.device, None if vae.device.type == "cuda" else vae.dtype)
        with torch.autocast(video.device.type, torch.bfloat16, enabled=video.is_cuda):
            latents = vae.encode(video).latent_dist.mode()
        yield latents if last is None else latents[:, :, 1:]
        last = piece[:, :, -1:]


class CaptionEncoder:
    """Wan's tokenizer and text encoder.

    Args:
        folder: A pipeline's.
        device: Where they compute.

    Raises:
        OSError: A file is missing or damaged.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.tokenizer: Any = load_tokenizer(folder / "tokenizer")
        dtype = getattr(torch, find_hardware().dtype)
        model = load_text_encoder(folder / "text_encoder", dtype)
        self.model, self.device = model.to(device).eval().requires_grad_(False), device

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Each caption with its embedding n d in bfloat16 on the CPU, valid tokens only: what
        `UltraGenPipeline.encode_prompt` gives without the zeros behind it, in the order of
        `caption_batches`."""
        for batch in caption_batches(self.tokenizer, captions):
            texts = [caption for _, caption in batch]
            # Tokens behind the longest one of the batch would be padding for all.
            longest = batch[0][0]
            embeds = embed_prompts(self.tokenizer, self.model, texts, longest, self.device)
            for (count, caption), embedding in zip(batch, embeds.bfloat16().cpu(), strict=True):
                yield caption, embedding[:count].clone()  # files hold no views


def caption_batches(tokenizer: Any, captions: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Captions that are encoded together, with the number of their tokens: the longest come first,
    those that are about as long together."""
    counts = count_tokens(tokenizer, list(captions), WAN.max_sequence_length) if captions else []
    order = sorted(zip(counts, captions, strict=True), reverse=True)
    return [order[first : first + BATCH] for first in range(0, len(order), BATCH)]


def caption_bytes(folder: Path, captions: list[str]) -> int:
    """Bytes that the embeddings of captions take.

    Raises:
        OSError: A file of the tokenizer or the text encoder is missing or damaged.
    """
    from transformers import AutoConfig

    width = AutoConfig.from_pretrained(folder / "text_encoder", local_files_only=True).d_model
    tokenizer = load_tokenizer(folder / "tokenizer")
    counts = count_tokens(tokenizer, captions, WAN.max_sequence_length) if captions else []
    return 2 * width * sum(counts)


def latent_bytes(folder: Path, bucket: Bucket) -> int:
    """Bytes that the latents of a clip take, with the autoencoder of a pipeline's folder.

    Raises:
        OSError: The autoencoder's configuration is missing or damaged.
    """
    fields = {"z_dim": int, "scale_factor_spatial": int}
    # Configurations that were written by older releases lack what was the only choice then.
    config = {"z_dim": 16, "scale_factor_spatial": 8}
    config |= read_object(folder / "vae" / "config.json", fields)
    scale = config["scale_factor_spatial"]
    frames = 1 + (bucket.num_frames - 1) // FRAMES_PER_LATENT
    return 2 * config["z_dim"] * frames * (bucket.height // scale) * (bucket.width // scale)
