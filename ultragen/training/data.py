"""Training data: rendered scenes, or clips of a dataset, in pools on the device, refreshed while
training goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..dataset.shards import LatentDataset
from ..model.autoencoder import CompactAutoencoder, normalize
from ..world.captions import caption, weather_phrases
from ..world.renderer import render
from ..world.scene import HELD_OUT_SEEDS, Scene, sample_scene

# Weathers that a caption may leave unsaid.
FAIR = ("clear", "scattered")


class SceneStream:
    """Endless scenes, other ones in every process and after every resumption.

    Args:
        rank: Number of this process, below 64.
        start: A number that no earlier run of this training had.
        edition: Of the world that the scenes belong to.

    Raises:
        ValueError: for a higher rank, whose scenes would be another run's.
    """

    def __init__(self, rank: int, start: int, edition: int = 1) -> None:
        if not 0 <= rank < 64:
            raise ValueError(f"There are scenes for 64 processes, not for number {rank}.")
        first = HELD_OUT_SEEDS.stop + (start * 64 + rank) * 10_000_000
        self._seeds, self.edition = count(first), edition

    def take(self, number: int) -> list[Scene]:
        return [sample_scene(next(self._seeds), self.edition) for _ in range(number)]


class Pool:
    """A ring of examples on the device.

    Rendering costs more than a training step on the same clip; a pool lets a clip be used several
    times while new ones replace the oldest.

    Args:
        make: Gives some new examples: tensors with the examples along the first axis; None for a
            pool that others `put` into.
        capacity: Examples kept.
        share: Part of the time that goes into new examples once the pool is full.
        first: Examples made before training starts.
        every: Refreshes of which one makes new examples, in place of the share: then they do not
            depend on how fast anything is.
    """

    def __init__(
        self,
        make: Callable[[], tuple[Tensor, ...]] | None,
        capacity: int,
        share: float,
        first: int,
        every: int | None = None,
    ) -> None:
        self.make, self.capacity, self.share, self.first = make, capacity, share, first
        self.every, self.refreshed = every, 0
        self.made = 0
        self.rings: list[Tensor] = []
        self.busy = 0.0
        self.since = time.monotonic()

    def __len__(self) -> int:
        return min(self.made, self.capacity)

    def put(self, examples: tuple[Tensor, ...]) -> None:
        """Puts examples in the place of the oldest."""
        if not self.rings:
            self.rings = [x.new_empty((self.capacity, *x.shape[1:])) for x in examples]
        number = len(examples[0])
        slots = torch.arange(self.made, self.made + number, device=examples[0].device)
        for ring, x in zip(self.rings, examples, strict=True):
            ring[slots % self.capacity] = x
        self.made += number

    def refresh(self) -> None:
        """Makes examples as long as they had less than their share of the time, or where it is
        their turn."""
        if self.make is None:
            return
        while self.made < self.first:
            self.put(self.make())
        if self.every is not None:
            self.refreshed += 1
            if self.refreshed % self.every == 0:
                self.put(self.make())
            return
        while self.busy <= self.share * (time.monotonic() - self.since):
            start = time.monotonic()
            self.put(self.make())
            if self.rings[0].is_cuda:
                torch.cuda.synchronize()
            self.busy += time.monotonic() - start

    def sample(self, number: int) -> tuple[Tensor, ...]:
        """Examples drawn with replacement."""
        index = torch.randint(len(self), (number,), device=self.rings[0].device)
        return tuple(ring[index] for ring in self.rings)


def caption_variants(scene: Scene, number: int) -> list[str]:
    """Captions of one scene in several wordings; every third lacks some of its clauses, because
    users don't describe everything. Who leaves the weather out expects fair weather: foul weather
    is always named. Every second one, before clauses are left out, names the side of the sun or
    moon, which is learned from few captions otherwise."""
    foul = () if scene.attributes.weather in FAIR else weather_phrases(scene)
    texts = []
    for i in range(number):
        text = caption(scene, seed=scene.seed * 31 + i, placed=i % 2 == 1)
        rng = random.Random(scene.seed * 31 + i)
        clauses = text.split(", ")
        if i % 3 == 2 and len(clauses) > 1:
            kept = [clause for clause in clauses if rng.random() < 0.6 or clause in foul]
            text = ", ".join(kept or clauses[:1])
        texts.append(text)
    return texts


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Texts → token ids, n × the tokenizer's length, padded."""
    return tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


class ClipMaker:
    """Renders clips, encodes them to normalised latents and tokenises their captions.

    Args:
        stream: Where scenes come from.
        vae: Frozen autoencoder with latent statistics.
        tokenizer: What the text encoder's token ids come from.
        height: Rows in pixels.
        width: Columns in pixels.
        num_frames: Frames, 4n + 1.
        number: Clips a call.
        wordings: Captions for each clip.
    """

    def __init__(
        self,
        stream: SceneStream,
        vae: CompactAutoencoder,
        tokenizer: PreTrainedTokenizerBase,
        height: int,
        width: int,
        num_frames: int,
        number: int,
        wordings: int = 6,
    ) -> None:
        self.stream, self.vae, self.tokenizer = stream, vae, tokenizer
        self.size, self.num_frames = (height, width), num_frames
        self.number, self.wordings = number, wordings

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, Tensor]:
        """Latents n c t h w, and token ids n wordings length."""
        scenes = self.stream.take(self.number)
        device = self.vae.device
        latents = self._encode(render(scenes, *self.size, self.num_frames, device=device))
        texts = [text for scene in scenes for text in caption_variants(scene, self.wordings)]
        ids = tokenize(self.tokenizer, texts).unflatten(0, (self.number, self.wordings))
        return latents, ids.to(device)

    def _encode(self, video: Tensor) -> Tensor:
        with torch.autocast(video.device.type, torch.bfloat16, enabled=video.is_cuda):
            latents = self.vae.encode(video * 2 - 1).latent_dist.mode()
        latents = normalize(self.vae, latents)
        return latents.bfloat16() if video.is_cuda else latents


class StoredClips:
    """Reads clips of a dataset and tokenises their captions, over and over in one order.

    Args:
        dataset: Latents of the embedded model.
        numbers: Those of its clips that are read, all of one size.
        tokenizer: What the text encoder's token ids come from.
        number: Clips a call.
        seed: What the order follows.
        device: Where they go.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        numbers: list[int],
        tokenizer: PreTrainedTokenizerBase,
        number: int,
        seed: int,
        device: torch.device,
    ) -> None:
        order = random.Random(seed).sample(numbers, len(numbers))
        self.dataset, self.order, self.place = dataset, order, 0
        self.tokenizer, self.number, self.device = tokenizer, min(number, len(order)), device
        self.wordings = max(len(dataset.clips[i].captions) for i in numbers)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """As `ClipMaker`; a clip with fewer captions than another has them more than once."""
        chosen = [self.order[(self.place + i) % len(self.order)] for i in range(self.number)]
        self.place += self.number
        latents = torch.stack([self.dataset.latents(i) for i in chosen])
        captions = [self.dataset.clips[i].captions for i in chosen]
        texts = [said[k % len(said)] for said in captions for k in range(self.wordings)]
        ids = tokenize(self.tokenizer, texts).unflatten(0, (self.number, self.wordings))
        kept = latents if self.device.type == "cuda" else latents.float()
        return kept.to(self.device), ids.to(self.device)
