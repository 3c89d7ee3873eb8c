"""Stage 4: the in-domain ×4 upscaler, so that the two-stage pipeline is as strong as it can be."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ...model.autoencoder import CompactAutoencoder
from ...model.upscaler import UpscalerNetwork
from ...pictures import picture_grid, to_image
from ...world.renderer import render
from ...world.scene import sample_scene
from ..data import Pool, SceneStream
from ..stage import Stage
from .losses import gradient_loss, psnr

SCALE = 4


class UpscalerStage(Stage):
    """Learns from what it will see: base-size frames that went through the autoencoder, against
    the same scenes rendered four times as large.

    Args:
        network: What is trained.
        vae: Frozen autoencoder.
        height: Rows of the base model's frame in pixels.
        width: Columns of the base model's frame in pixels.
        crop: Rows and columns of a low-resolution crop, a multiple of 16.
        batch_size: Crops a step in each process.
        pool: Crops kept on the device.
        seed: What scenes and their order follow; another one for each resumption.
        edition: Of the world that scenes belong to, see `world.scene`.
    """

    def __init__(
        self,
        network: UpscalerNetwork,
        vae: CompactAutoencoder,
        height: int = 288,
        width: int = 512,
        crop: int = 96,
        batch_size: int = 32,
        pool: int = 8000,
        seed: int = 0,
        edition: int = 1,
    ) -> None:
        self.model = self.network = network
        self.vae = vae.requires_grad_(False)
        self.height, self.width, self.crop = height, width, crop
        self.batch_size, self.capacity, self.seed = batch_size, pool, seed
        self.edition = edition

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        self.vae.to(device, memory_format=torch.channels_last)
        self.network.to(memory_format=torch.channels_last)
        self.device = device
        stream = SceneStream(rank, self.seed, self.edition)
        rng = random.Random(self.seed * 64 + rank)

        def make() -> tuple[Tensor, Tensor]:
            step = self.vae.config.scale_factor_spatial
            top = rng.randrange(0, self.height - self.crop + 1, step)
            left = rng.randrange(0, self.width - self.crop + 1, step)
            return self.pairs(stream.take(8), (top, left, self.crop, self.crop))

        first = min(self.capacity, 8 * self.batch_size)
        self.pool = Pool(make, self.capacity, share=0.5, first=first)

    @torch.no_grad()
    def pairs(self, scenes: list, region: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """Low frames n 3 h w through the autoencoder, and n 3 4h 4w as rendered, in [0, 1]."""
        top, left, rows, columns = (SCALE * x for x in region)
        size, large = (self.height, self.width), (SCALE * self.height, SCALE * self.width)
        low = render(scenes, *size, 5, region=region, device=self.device)
        high = render(scenes, *large, 5, region=(top, left, rows, columns), device=self.device)
        low = (self.vae(low * 2 - 1) / 2 + 0.5).clamp(0, 1)

        def frames(video: Tensor) -> Tensor:
            # The first frame and one decoded within its group.
            return video[:, :, [0, 3]].transpose(1, 2).flatten(0, 1).half()

        return frames(low), frames(high)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        self.pool.refresh()
        return tuple(x.float() for x in self.pool.sample(self.batch_size))

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        low, high = batch
        prediction = model(low).float()
        error = prediction - high
        l1, edges = error.abs().mean(), gradient_loss(prediction, high)
        return {"loss": l1 + 0.5 * edges, "l1": l1, "edges": edges, "psnr": psnr(error)}

    def sample_sheet(self) -> Image.Image:
        """Bicubic, network and rendered, crops of three held-out scenes."""
        rows = []
        region = (self.height // 2 - self.crop // 2, self.width // 2 - self.crop // 2)
        for seed in range(3):
            scene = sample_scene(seed, self.edition)
            low, high = self.pairs([scene], (*region, self.crop, self.crop))
            low, high = low[1:].float(), high[1:].float()
            plain = F.interpolate(low, scale_factor=SCALE, mode="bicubic", antialias=True)
            fine = self.network(low)
            print(f"PSNR bicubic {psnr(plain - high):.2f}, network {psnr(fine - high):.2f} dB")
            rows.append([to_image(x[0]) for x in (plain, fine, high)])
        return picture_grid(rows)

    def export(self, folder: Path) -> None:
        self.network.save_pretrained(folder / "upscaler")
