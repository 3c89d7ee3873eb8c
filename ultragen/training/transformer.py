"""Stages 2 and 3: the dense base model, and the base model converted to UltraGen's attention."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..pipeline import UltraGenPipeline
from ..transformer import UltraGenTransformer3DModel
from .data import ClipMaker, Pool, SceneStream
from .loop import Stage
from .sheets import grid, to_image

SAMPLE_PROMPTS = (
    "a calm lake under snowy mountains at sunset, the camera pans right",
    "night over sand dunes with a full moon, stars, the camera is still",
    "rolling green hills at noon with scattered clouds, the camera zooms in",
    "islands in the sea at dawn, soft fog, birds in the sky",
    "a red canyon in golden morning light, clear sky, the camera rises",
    "pine trees on the plains in heavy snowfall at dusk",
)
UNCONDITIONAL = 0.1


@dataclass(frozen=True)
class ClipSize:
    """One kind of clip that a transformer is trained on.

    Attributes:
        height: Rows in pixels.
        width: Columns in pixels.
        num_frames: Frames, 4n + 1.
        batch_size: Clips a step in each process.
        pool: Clips kept on the device.
        first: Clips made before training starts.
        chunk: Clips rendered at a time.
        weight: How often a step uses this kind.
        windows: Settings of K to draw from; empty for a dense model.
    """

    height: int
    width: int
    num_frames: int = 17
    batch_size: int = 128
    pool: int = 24_000
    first: int = 3_000
    chunk: int = 32
    weight: float = 1.0
    windows: tuple[int, ...] = ()


# Single frames have a fifth of a clip's tokens and cost a seventeenth of its rendering, and teach
# all but motion: half of the steps use them.
BASE_SIZES = (
    ClipSize(288, 512, num_frames=1, batch_size=512, pool=60_000, first=6_000, chunk=128),
    ClipSize(288, 512, batch_size=128, pool=24_000, first=1_500, chunk=32),
)
ULTRAGEN_SIZES = (
    ClipSize(
        544, 960, num_frames=1, batch_size=128, pool=16_000, first=1_500, chunk=32, weight=0.35,
        windows=(2, 4),
    ),
    ClipSize(
        544, 960, batch_size=24, pool=4_000, first=200, chunk=8, weight=0.25, windows=(2, 4)
    ),
    ClipSize(
        1088, 1920, num_frames=1, batch_size=32, pool=4_000, first=400, chunk=8, weight=0.25,
        windows=(4, 6),
    ),
    ClipSize(1088, 1920, batch_size=6, pool=1_000, first=40, chunk=2, weight=0.15, windows=(4, 6)),
)  # fmt: skip


class TextToLatents(nn.Module):
    """Text encoder and transformer as one module, for joint training."""

    def __init__(self, text_encoder: nn.Module, transformer: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer

    def forward(self, latents: Tensor, timestep: Tensor, ids: Tensor, **extra: Any) -> Tensor:
        """Noisy latents b c t h w, timestep b in 0..1000, token ids b n → velocity b c t h w."""
        mask = (ids != 0).long()
        text = self.text_encoder(ids, mask).last_hidden_state * mask[..., None]
        return self.transformer(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=text,
            return_dict=False,
            **extra,
        )[0]


class FlowMatchingStage(Stage):
    """Flow matching on rendered clips (Wan's objective): x_σ = (1 − σ)x + σε, v = ε − x.

    Args:
        pipeline: Holds what is trained and what is needed for samples.
        sizes: Kinds of clips; a step uses one of them.
        train_text: Whether the text encoder is trained along.
        share: Part of the time that goes into rendering new clips.
        seed: Of the data; another one for each resumption.
    """

    def __init__(
        self,
        pipeline: UltraGenPipeline,
        sizes: Sequence[ClipSize],
        train_text: bool,
        share: float = 0.45,
        seed: int = 0,
    ) -> None:
        self.pipeline, self.sizes, self.share, self.seed = pipeline, tuple(sizes), share, seed
        pipeline.vae.requires_grad_(False)
        pipeline.text_encoder.requires_grad_(train_text)
        # diffusers and transformers load models in evaluation mode and half precision.
        pipeline.text_encoder.float()
        pipeline.transformer.float().requires_grad_(True)
        self.model = TextToLatents(pipeline.text_encoder, pipeline.transformer)
        if torch.cuda.is_available() and not any(size.windows for size in sizes):
            # One kind of block: a compilation for each size serves all layers. Windows come in
            # many sizes and would each be compiled.
            pipeline.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
        pipeline.set_progress_bar_config(disable=True)

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        self.pipeline.vae.to(device, memory_format=torch.channels_last)
        self.random = random.Random(self.seed * 64 + rank)
        stream = SceneStream(rank, self.seed)
        self.pools = [
            Pool(
                ClipMaker(
                    stream,
                    self.pipeline.vae,
                    self.pipeline.tokenizer,
                    size.height,
                    size.width,
                    size.num_frames,
                    size.chunk,
                ),
                size.pool,
                self.share * size.weight / sum(s.weight for s in self.sizes),
                size.first,
            )
            for size in self.sizes
        ]
        empty = self.pipeline.tokenizer(
            "", padding="max_length", max_length=self.pipeline.tokenizer.model_max_length
        ).input_ids
        self.empty = torch.tensor(empty, device=device)

    def batch(self, step: int) -> tuple[ClipSize, Tensor, Tensor]:
        [number] = self.random.choices(range(len(self.sizes)), [s.weight for s in self.sizes])
        size, pool = self.sizes[number], self.pools[number]
        pool.refresh()
        latents, ids = pool.sample(size.batch_size)
        wording = torch.randint(ids.shape[1], (len(ids),), device=ids.device)
        ids = ids[torch.arange(len(ids), device=ids.device), wording]
        drop = torch.rand(len(ids), device=ids.device) < UNCONDITIONAL
        return size, latents.float(), torch.where(drop[:, None], self.empty, ids)

    def loss(self, model: nn.Module, batch: tuple[ClipSize, Tensor, Tensor]) -> dict[str, Tensor]:
        size, clean, ids = batch
        sigma = self.draw_sigmas(len(clean), size, clean.device)
        weight = sigma.view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(clean)
        noisy = (1 - weight) * clean + weight * noise
        extra = {"windows": self.random.choice(size.windows)} if size.windows else {}
        velocity = model(noisy, sigma * 1000, ids, **extra)
        loss = F.mse_loss(velocity.float(), noise - clean)
        return {"loss": loss, f"loss_{size.height}": loss}

    def draw_sigmas(self, number: int, size: ClipSize, device: torch.device) -> Tensor:
        """Logit-normal noise levels, shifted as the pipeline shifts its schedule at this size."""
        token = self.pipeline.pixels_per_token
        shift = exp(self.pipeline.log_shift((size.height // token) * (size.width // token)))
        u = torch.sigmoid(torch.randn(number, device=device))
        return shift * u / (1 + (shift - 1) * u)

    def sample_sheet(self) -> Image.Image:
        """First, middle and last frame for some prompts, at the smallest size of clips."""
        size = min(self.sizes, key=lambda s: (-s.num_frames, s.height))
        rows = []
        for prompt in SAMPLE_PROMPTS:
            with torch.autocast(self.empty.device.type, torch.bfloat16, self.empty.is_cuda):
                frames = self.pipeline(
                    prompt=prompt,
                    height=size.height,
                    width=size.width,
                    num_frames=size.num_frames,
                    windows=max(size.windows) if size.windows else None,
                    num_inference_steps=12,
                    guidance_scale=3.0,
                    generator=torch.Generator().manual_seed(0),
                    output_type="pt",
                ).frames[0]
            rows.append([to_image(frames[i]) for i in (0, len(frames) // 2, -1)])
        return grid(rows)

    def export(self, folder: Path) -> None:
        name = (
            "transformer"
            if isinstance(self.pipeline.transformer, UltraGenTransformer3DModel)
            else "base_transformer"
        )
        self.pipeline.transformer.save_pretrained(folder / name)
        self.pipeline.text_encoder.save_pretrained(folder / "text_encoder")
        self.pipeline.tokenizer.save_pretrained(folder / "tokenizer")
        self.pipeline.scheduler.save_pretrained(folder / "scheduler")
