"""Clips of the 1.3B model on its way: native, small, of prompts that were embedded beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...dataset.shard_files import Size
from ...files import whole_file
from ...model.transformer import UltraGenTransformer3DModel
from ...pictures import picture_grid, to_image
from ...pipeline import UltraGenPipeline
from ...presets import WAN, WAN_SHIFT
from ...sampling.prompts import embed_prompts
from ...weights.wan import load_text_encoder, load_tokenizer
from .transformer_stage import mixed_precision

SIDE = 32  # rows and columns of a sample are multiples of it
MOST_FRAMES = 17


class WanSamples:
    """Makes sample sheets.

    Args:
        vae: Wan's, which is on the device only while a sheet is made.
        prompts: Embeddings n m d.
        negative: Embedding 1 m d of what guidance leads away from.
        size: Rows, columns and frames.
        num_inference_steps: Denoising steps.
        guidance_scale: Guidance; 1 for none.
        shift: Of the noise levels.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        prompts: Tensor,
        negative: Tensor,
        size: Size,
        num_inference_steps: int,
        guidance_scale: float = WAN.guidance_scale,
        shift: float = WAN_SHIFT,
    ) -> None:
        self.vae, self.prompts, self.negative = vae.requires_grad_(False), prompts, negative
        self.size, self.num_inference_steps = size, num_inference_steps
        self.guidance_scale, self.shift = guidance_scale, shift

    def sheet(self, transformer: UltraGenTransformer3DModel, device: torch.device) -> Image.Image:
        """First, middle and last frame of each prompt's clip."""
        pipe = UltraGenPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=self.vae.to(device),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=self.shift),
            transformer=transformer,
        )
        pipe.set_progress_bar_config(disable=True)
        try:
            with mixed_precision(device):
                return picture_grid([self.row(pipe, prompt) for prompt in self.prompts])
        finally:
            self.vae.to("cpu")

    def row(self, pipe: UltraGenPipeline, prompt: Tensor) -> list[Image.Image]:
        height, width, num_frames = self.size
        device = pipe.vae.device
        frames = pipe(
            prompt_embeds=prompt[None].to(device),
            negative_prompt_embeds=self.negative.to(device),
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).frames[0]
        return [to_image(frames[i]) for i in (0, len(frames) // 2, -1)]


def sample_size(size: Size) -> Size:
    """A size with half the sides, in the steps that a model takes, and some frames."""

    def half(side: int) -> int:
        return max(2 * SIDE, round(side / 2 / SIDE) * SIDE)

    return half(size[0]), half(size[1]), min(size[2], MOST_FRAMES)


def embed_sample_prompts(
    base: Path, prompts: tuple[str, ...], path: Path, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Embeddings of prompts, n m d, and of the negative prompt, 1 m d: read from a file, or made
    and left there, so that a training that goes on needs no text encoder.

    Args:
        base: Wan's folder.
        prompts: What samples show.
        path: The file.
        device: Where the text encoder runs, and is dropped.
    """
    texts = [*prompts, WAN.negative_prompt]
    if (found := _read(path, texts)) is None:
        found = _embed(base, texts, device)
        with whole_file(path) as unfinished:
            save_file({"text": found}, unfinished, {"prompts": json.dumps(texts)})
    return found[:-1], found[-1:]


def _read(path: Path, texts: list[str]) -> Tensor | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if json.loads((file.metadata() or {}).get("prompts", "null")) != texts:
            return None
        return file.get_tensor("text")


@torch.no_grad()
def _embed(base: Path, texts: list[str], device: torch.device) -> Tensor:
    tokenizer = load_tokenizer(base / "tokenizer")
    encoder: Any = load_text_encoder(base / "text_encoder", torch.bfloat16).to(device)
    embedded = [
        embed_prompts(tokenizer, encoder, [text], WAN.max_sequence_length, device).cpu()
        for text in texts
    ]
    return torch.cat(embedded)
