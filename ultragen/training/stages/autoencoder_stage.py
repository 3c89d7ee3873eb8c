"""Stage 1: the compact video autoencoder, on crops of scenes rendered at many sizes."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from ...model.autoencoder import CompactAutoencoder
from ...pictures import picture_grid, to_image, to_uint8
from ...world.renderer import render
from ...world.scene import sample_scene
from ..data import Pool, SceneStream
from ..stage import Stage
from .adversary import FRAMES, Adversary, balance
from .losses import contrast_weight, detail_loss, gradient_loss, psnr
from .perceptual import PerceptualLoss

# Frame sizes of the world, and how often each is drawn from.
FRAME_SIZES = ((288, 512), (544, 960), (1088, 1920), (2176, 3840))
FRAME_WEIGHTS = (2, 4, 4, 1)
# Weight of the latents' mean square: without it they would grow to drown the posterior's noise.
LATENT_PULL = 1e-4


class AutoencoderPass(nn.Module):
    """Encoding, noise and decoding in one call, so that the whole can be wrapped for several
    processes."""

    def __init__(self, vae: CompactAutoencoder) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.vae.encode(video).latent_dist
        return latents.mode(), self.vae.decode_at_once(latents.sample())


class AutoencoderStage(Stage):
    """L1 and gradients, both relative to the local contrast, an adversary, the amount of fine
    detail, what a network sees that knows photographs, and a weak pull of the latents towards zero.

    An encoder that goes on learning would move all latents, and make the transformers that were
    trained on them useless; `anchor` lets it improve near where it was.

    Args:
        vae: What is trained.
        batch_size: Crops a step in each process.
        crop: Rows and columns of a crop.
        num_frames: Frames of a crop, 4n + 1.
        pool: Crops kept on the device.
        part: `decoder` leaves the encoder, and so all latents that were ever made, as it is.
        seed: What scenes and their order follow; another one for each resumption.
        edition: Of the world that scenes belong to, see `world.scene`.
        share: Part of the time that goes into rendering new crops.
        frame_sizes: Sizes that scenes are rendered at.
        ground_share: Part of the crops whose middle is below the frame's, where most of the fine
            detail is.
        adversarial: How strongly the adversary pulls at the picture, as a part of the pull of
            the other losses; 0 for none.
        detail: How strongly the amount of fine detail pulls at the picture, likewise; 0 for not at
            all.
        perceptual: How strongly what a network trained on photographs sees pulls at the picture,
            likewise; 0 for not at all.
        anchor: Weight of the squared distance of the latents from those of `origin`; 0 for none.
        origin: The autoencoder that the stage starts from, with as many latent channels or fewer:
            others are held to nothing. What is trained, as it is now, if it is not given.
        statistics_clips: Held-out clips of each size from which the latents' mean and deviation
            are computed whenever the weights are exported.

    Raises:
        ValueError: if crops are too short for the adversary.
        OSError: if the packages of the perceptual loss are missing.
    """

    def __init__(
        self,
        vae: CompactAutoencoder,
        batch_size: int = 48,
        crop: int = 256,
        num_frames: int = 9,
        pool: int = 6000,
        part: Literal["all", "decoder"] = "all",
        seed: int = 0,
        frame_sizes: tuple[tuple[int, int], ...] = FRAME_SIZES,
        ground_share: float = 0.5,
        adversarial: float = 0.5,
        detail: float = 0.0,
        perceptual: float = 0.0,
        anchor: float = 0.0,
        origin: CompactAutoencoder | None = None,
        statistics_clips: int = 24,
        edition: int = 1,
        share: float = 0.35,
    ) -> None:
        if adversarial and num_frames < FRAMES:
            raise ValueError(
                f"The adversary sees {FRAMES} frames together, not {num_frames}: take more, or "
                "adversarial=0."
            )
        self.vae = vae
        self.model = AutoencoderPass(vae)
        self.part = part
        if part == "decoder":
            vae.encoder.requires_grad_(False)
        self.batch_size, self.crop, self.num_frames = batch_size, crop, num_frames
        self.capacity, self.seed, self.frame_sizes = pool, seed, frame_sizes
        self.ground_share, self.anchor = ground_share, anchor
        self.adversarial, self.detail, self.perceptual = adversarial, detail, perceptual
        self.statistics_clips, self.edition, self.share = statistics_clips, edition, share
        self.adversary = Adversary() if adversarial else None
        self.seen = PerceptualLoss() if perceptual else None
        if perceptual:  # older checkpoints know of none
            self.settings = {"perceptual loss": f"{perceptual:g}"}
        self.companions = (self.adversary,) if self.adversary else ()
        # Now, because a training that is resumed loads a moved encoder before `setup`.
        self.origin = copy.deepcopy(origin or vae).eval().requires_grad_(False) if anchor else None

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        for network in (self.vae, self.origin):
            if network is not None:
                network.to(device, memory_format=torch.channels_last)
        for judge in (self.adversary, self.seen):
            if judge is not None:
                judge.to(device)
        stream = SceneStream(rank, self.seed, self.edition)
        rng = random.Random(self.seed * 64 + rank)

        def make() -> tuple[Tensor]:
            [(height, width)] = rng.choices(
                self.frame_sizes, FRAME_WEIGHTS[: len(self.frame_sizes)]
            )
            region = (
                self.top(height, rng),
                rng.randint(0, width - self.crop),
                self.crop,
                self.crop,
            )
            scenes = stream.take(min(16, self.batch_size))
            video = render(scenes, height, width, self.num_frames, region=region, device=device)
            return (to_uint8(video),)

        first = min(self.capacity, 8 * self.batch_size)
        self.pool = Pool(make, self.capacity, share=self.share, first=first)

    def top(self, height: int, rng: random.Random) -> int:
        """The first row of a crop."""
        last = height - self.crop
        if rng.random() < self.ground_share:
            return rng.randint((last + 1) // 2, last)
        return rng.randint(0, last // 2)

    def batch(self, step: int) -> Tensor:
        self.pool.refresh()
        (crops,) = self.pool.sample(self.batch_size)
        return crops.float() / 127.5 - 1

    def loss(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        latents, decoded = model(batch)
        latents, decoded = latents.float(), decoded.float()
        weight = contrast_weight(batch)
        l1 = (weight * (decoded - batch).abs()).mean()
        edges = gradient_loss(decoded, batch, weight)
        size = latents.square().mean()
        terms = {"l1": l1, "edges": edges, "latent_square": size}
        loss = l1 + edges + LATENT_PULL * size
        if self.origin is not None:
            with torch.no_grad():
                before = self.origin.encode(batch).latent_dist.mode()
            terms["moved"] = (latents[:, : before.shape[1]] - before.float()).square().mean()
            loss = loss + self.anchor * terms["moved"]
        if self.detail:
            terms["detail"] = detail_loss(decoded, batch)
        if self.seen is not None:
            terms["perceptual"] = self.seen(decoded, batch)
        for name in ("detail", "perceptual"):
            if name in terms:
                pull = getattr(self, name) * balance(l1 + edges, terms[name], decoded)
                loss = loss + pull * terms[name]
        if self.adversary is not None:
            pull, terms["critic_right"] = self.adversarial_loss(l1 + edges, batch, decoded)
            loss = loss + pull
        return {"loss": loss, **terms, "psnr": psnr((decoded - batch) / 2)}

    def adversarial_loss(
        self, plain: Tensor, batch: Tensor, decoded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Trains the critic, then lets it pull; also how often it was right.

        Args:
            plain: The loss that it is weighed against.
            batch: Rendered crops.
            decoded: Their reconstruction.
        """
        assert self.adversary is not None
        frames = self.num_frames - self.num_frames % FRAMES
        batch, seen = batch[:, :, :frames], decoded[:, :, :frames]
        right = self.adversary.learn(batch, seen)
        loss = self.adversary.loss(batch, seen)
        strength = self.adversarial * self.adversary.strength
        return strength * balance(plain, loss, decoded) * loss, right

    @torch.no_grad()
    def held_out(self, height: int, width: int, number: int, num_frames: int) -> list[Tensor]:
        """Held-out clips, 1 3 t h w in [-1, 1]."""
        scenes = [sample_scene(seed, self.edition) for seed in range(number)]
        return [
            render([scene], height, width, num_frames, device=self.vae.device) * 2 - 1
            for scene in scenes
        ]

    def sample_sheet(self) -> Image.Image:
        """Original above reconstruction, last frame of three held-out clips, with the PSNR."""
        rows, scores = [], []
        for video in self.held_out(*self.frame_sizes[min(1, len(self.frame_sizes) - 1)], 3, 9):
            decoded = self.vae(video)
            scores.append(psnr((decoded - video) / 2).item())
            rows.append([to_image(v[0, :, -1] / 2 + 0.5) for v in (video, decoded)])
        print(f"held-out PSNR {sum(scores) / len(scores):.2f} dB", scores, flush=True)
        return picture_grid([list(column) for column in zip(*rows, strict=True)])

    def export(self, folder: Path) -> None:
        if self.part == "all":
            mean, std = self.statistics()
            self.vae.register_to_config(latents_mean=mean, latents_std=std)
        self.vae.save_pretrained(folder / "vae")

    @torch.no_grad()
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean of each latent channel over held-out clips, and one deviation for all channels.

        A few channels carry the picture's large shapes and vary most; with a deviation of its own
        each, those that carry fine texture would weigh as much, and a transformer would learn
        texture first. Where an anchor holds channels, theirs is the deviation: what transformers
        know of them keeps its scale.
        """
        latents = [
            self.vae.encode(video).latent_dist.mode()
            for size in self.frame_sizes[:2]
            for video in self.held_out(*size, self.statistics_clips, 9)
        ]
        flat = torch.cat([z.transpose(0, 1).flatten(1).float() for z in latents], dim=1)
        mean = flat.mean(1, keepdim=True)
        held = self.origin.config.z_dim if self.origin is not None else len(flat)
        deviation = (flat - mean)[:held].square().mean().sqrt().item()
        return mean[:, 0].tolist(), [deviation] * len(mean)
