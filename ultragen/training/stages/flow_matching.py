"""Stages 2 and 3: the dense base model, and the base model converted to UltraGen's attention."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ...dataset.shard_files import size_text
from ...dataset.shards import LatentDataset
from ...model.autoencoder import CompactAutoencoder
from ...pipeline import UltraGenPipeline
from ...sampling.flow import falling_shift, noised
from ..clip_sizes import ClipSize
from ..data import ClipMaker, Pool, SceneStream, StoredClips
from ..render_processes import Renderers
from .transformer_stage import TransformerStage

UNCONDITIONAL = 0.1
READING = 0.05  # part of the time that goes into other clips of a dataset


def known_sizes(sizes: Sequence[ClipSize], dataset: LatentDataset | None) -> Sequence[ClipSize]:
    """The sizes that a dataset has clips of; all where there is none.

    Raises:
        ValueError: if it has none of them.
    """
    if dataset is None:
        return sizes
    there = dataset.by_size()
    known = [size for size in sizes if (size.height, size.width, size.num_frames) in there]
    if not known:
        wanted, found = (
            ", ".join(map(size_text, each))
            for each in (((s.height, s.width, s.num_frames) for s in sizes), there)
        )
        raise ValueError(
            f"{dataset.folder} has clips of {found}, and this stage is trained on {wanted}: encode "
            "the clips in one of these buckets."
        )
    return known


@dataclass(frozen=True)
class ClipMakers:
    """Builds what makes the clips of every size, here or in a process that only renders.

    Attributes:
        vae: Frozen autoencoder with latent statistics.
        tokenizer: What the text encoder's token ids come from.
        sizes: Kinds of clips.
        seed: What the scenes follow.
        rank: Stream of scenes of the first process.
        stride: How far the next process's stream is from it, so that no two see the same scenes.
        edition: Of the world that scenes belong to, see `world.scene`.
    """

    vae: CompactAutoencoder
    tokenizer: PreTrainedTokenizerBase
    sizes: tuple[ClipSize, ...]
    seed: int
    rank: int = 0
    stride: int = 1
    edition: int = 1

    def __call__(self, device: torch.device, rank: int) -> list[ClipMaker]:
        stream = SceneStream(self.rank + self.stride * rank, self.seed, self.edition)
        vae = self.vae.to(device, memory_format=torch.channels_last)
        return [
            ClipMaker(stream, vae, self.tokenizer, s.height, s.width, s.num_frames, s.chunk)
            for s in self.sizes
        ]


class FlowMatchingStage(TransformerStage):
    """Flow matching (Wan's objective) on rendered clips or those of a dataset:
    x_σ = (1 − σ)x + σε, v = ε − x.

    Args:
        pipeline: Holds what is trained and what is needed for samples.
        sizes: Kinds of clips; a step uses one of them.
        train_text: Whether the text encoder is trained along.
        share: Part of the time that goes into rendering new clips, where no other device does.
        seed: What scenes and their order follow; another one for each resumption.
        render_on: Devices that render, such as `cuda:1`; none for the training's own.
        dataset: Clips that are trained on instead of rendered ones, of those sizes that it has.
        edition: Of the world that scenes belong to, see `world.scene`.
        every: Steps with a kind of clip after which new ones are rendered, in place of the share.

    Raises:
        ValueError: if the dataset has clips of none of the sizes.
    """

    def __init__(
        self,
        pipeline: UltraGenPipeline,
        sizes: Sequence[ClipSize],
        train_text: bool,
        share: float = 0.45,
        seed: int = 0,
        render_on: Sequence[str] = (),
        dataset: LatentDataset | None = None,
        edition: int = 1,
        every: int | None = None,
    ) -> None:
        super().__init__(pipeline, known_sizes(sizes, dataset), train_text, seed)
        self.share, self.render_on, self.dataset = share, tuple(render_on), dataset
        self.edition, self.every = edition, every
        self.renderers: Renderers | None = None

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        # The processes that render get the autoencoder before it moves to the device.
        make = self.start_rendering(device, rank, world)
        super().setup(device, rank, world)
        total = sum(size.weight for size in self.sizes)
        self.pools = [
            self.stored(size, device)
            if self.dataset
            else Pool(maker, size.pool, self.share * size.weight / total, size.first, self.every)
            for maker, size in zip(make, self.sizes, strict=True)
        ]

    def stored(self, size: ClipSize, device: torch.device) -> Pool:
        """A pool of a dataset's clips; where it does not hold all, others take their places."""
        assert self.dataset is not None
        numbers = self.dataset.by_size()[size.height, size.width, size.num_frames]
        tokenizer = self.pipeline.tokenizer
        read = StoredClips(self.dataset, numbers, tokenizer, size.chunk, self.seed, device)
        capacity = min(size.pool, len(numbers))
        return Pool(read, capacity, READING * (capacity < len(numbers)), capacity)

    def start_rendering(
        self, device: torch.device, rank: int, world: int
    ) -> Sequence[ClipMaker | None]:
        """What renders the clips of each size on this device; None where others do or nobody.

        Raises:
            ValueError: if there are fewer devices than processes that train.
        """
        if self.dataset:
            return [None] * len(self.sizes)
        vae, tokenizer = self.pipeline.vae, self.pipeline.tokenizer
        makers = ClipMakers(vae, tokenizer, self.sizes, self.seed, edition=self.edition)
        if not self.render_on:
            return makers(device, rank)
        if len(self.render_on) < world:
            raise ValueError(
                f"{world} processes need at least {world} devices that render, not "
                f"{len(self.render_on)}: those without one would make all others wait."
            )
        self.renderers = Renderers(
            replace(makers, rank=world + rank, stride=world),
            [size.weight for size in self.sizes],
            [size.first for size in self.sizes],
            self.render_on[rank::world],
        )
        return [None] * len(self.sizes)

    def refresh(self, pool: Pool) -> None:
        """New clips, from this device or from those that render."""
        before, began = pool.made, time.monotonic()
        pool.refresh()
        if before < pool.first <= pool.made:
            print(f"first {pool.made} clips in {time.monotonic() - began:.1f} s", flush=True)
        while self.renderers:
            missing = any(pool.made < pool.first for pool in self.pools)
            for number, examples in self.renderers.collect(wait=missing):
                self.pools[number].put(tuple(x.to(self.device) for x in examples))
            if not missing:
                break

    def teardown(self) -> None:
        if self.renderers:
            self.renderers.stop()

    def batch(self, step: int) -> tuple[ClipSize, int | None, Tensor, Tensor]:
        size, windows = self.choose(step)
        pool = self.pools[self.sizes.index(size)]
        self.refresh(pool)
        latents, ids = pool.sample(size.batch_size)
        wording = torch.randint(ids.shape[1], (len(ids),), device=ids.device)
        ids = ids[torch.arange(len(ids), device=ids.device), wording]
        drop = torch.rand(len(ids), device=ids.device) < UNCONDITIONAL
        return size, windows, latents.float(), torch.where(drop[:, None], self.empty, ids)

    def loss(
        self, model: nn.Module, batch: tuple[ClipSize, int | None, Tensor, Tensor]
    ) -> dict[str, Tensor]:
        size, windows, clean, ids = batch
        sigma = self.draw_sigmas(len(clean), size, clean.device)
        noise = torch.randn_like(clean)
        velocity = self.velocity(model, noised(clean, noise, sigma), sigma, ids, windows)
        loss = F.mse_loss(velocity, noise - clean)
        return {"loss": loss, f"loss_{size.height}x{size.num_frames}": loss}

    def draw_sigmas(self, number: int, size: ClipSize, device: torch.device) -> Tensor:
        """Logit-normal noise levels, shifted as the pipeline shifts its schedule at this size."""
        token = self.pipeline.pixels_per_token
        log_shift = self.pipeline.log_shift((size.height // token) * (size.width // token))
        return falling_shift(torch.sigmoid(torch.randn(number, device=device)), log_shift)
