"""The 1.3B model, fine-tuned into UltraGen on people's own clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...dataset.shard_files import Size
from ...dataset.shards import LatentDataset
from ...model.transformer import UltraGenTransformer3DModel
from ...presets import FRAMES_PER_LATENT, WAN, WAN_SHIFT
from ...sampling.flow import noised, shifted
from ..clip_order import ClipOrder, sample_generator
from .flow_matching import UNCONDITIONAL
from .losses import by_noise_level
from .wan_samples import WanSamples
from .wan_transformer_stage import WanTransformerStage, pad


@dataclass(frozen=True)
class WanBatch:
    """Some samples.

    Attributes:
        clean: Latents b c t h w.
        noise: The same shape.
        sigma: Noise levels b, on the CPU.
        text: Embeddings b n d, padded with zeros.
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    text: Tensor


class WanStage(WanTransformerStage):
    """Flow matching (Wan's objective): x_σ = (1 − σ)x + σε, v = ε − x.

    Noise levels are uniform before the shift that the schedule of the released weights has, so that
    a model is trained as densely at each level as it is sampled there; all count the same.

    Args:
        transformer: With what is trained marked, see `choose_trained`.
        dataset: Where latents and texts are read.
        clips: Size that is trained → numbers of the dataset's clips that have at least it.
        batch_size: Clips of a batch in each process.
        group: Clips of a step, over all processes.
        seed: What everything that is drawn follows.
        samples: What sample sheets show; None for none.
        settings: What can't change while the training goes on, for people.
    """

    def __init__(
        self,
        transformer: UltraGenTransformer3DModel,
        dataset: LatentDataset,
        clips: dict[Size, list[int]],
        batch_size: int,
        group: int,
        seed: int,
        samples: WanSamples | None,
        settings: Mapping[str, str],
    ) -> None:
        super().__init__(transformer, batch_size, seed, samples, dataset.fingerprint(), settings)
        self.dataset = dataset
        self.order = ClipOrder(clips, group, seed)
        self.aligned = False

    def samples(self, numbers: range) -> WanBatch:
        if not self.aligned:  # the first batch of a run is the first of a step
            first = numbers.start - self.rank * self.samples_per_batch
            self.order.offset, self.aligned = first % self.order.group, True
        size = self.order[numbers.start][0]
        drawn = [self.draw(number, size) for number in numbers]
        clean, noise, sigma, text = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        self.tokens = self.tokens_of(clean)
        return WanBatch(
            clean.to(self.device, non_blocking=True),
            noise.to(self.device, non_blocking=True),
            sigma,
            text.to(self.device, non_blocking=True),
        )

    def draw(self, number: int, size: Size) -> tuple[Tensor, ...]:
        """A sample's latents, noise, noise level and text."""
        chance = sample_generator(self.seed, number)
        clip = self.order[number][1]
        captions = len(self.dataset.clips[clip].captions)
        caption = int(torch.randint(captions, (), generator=chance))
        dropped = torch.rand((), generator=chance) < UNCONDITIONAL
        text = self.dataset.empty_text() if dropped else self.dataset.text(clip, caption)
        sigma = shifted(1 - torch.rand((), generator=chance), WAN_SHIFT)
        # The autoencoder is causal: the beginning of a clip's latents is that of its frames.
        frames = (size[2] - 1) // FRAMES_PER_LATENT + 1
        clean = self.dataset.latents(clip)[:, :frames].float()
        noise = torch.randn(clean.shape, generator=chance)
        return clean, noise, sigma, pad(text, WAN.max_sequence_length)

    def loss(self, model: nn.Module, batch: WanBatch) -> dict[str, Tensor]:
        noisy = noised(batch.clean, batch.noise, batch.sigma)
        velocity = self.velocity(model, noisy, batch.sigma, batch.text)
        target = batch.noise - batch.clean
        errors = F.mse_loss(velocity, target, reduction="none").mean((1, 2, 3, 4))
        return {"loss": errors.mean(), **by_noise_level(errors.detach(), batch.sigma)}
