"""Few-step distillation of the 1.3B model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from ...dataset.shard_files import Size
from ...model.transformer import UltraGenTransformer3DModel
from ...model.wan_1_3b import PIXELS_PER_LATENT
from ...presets import FRAMES_PER_LATENT, WAN
from ...sampling.solvers import set_noise_levels
from ..clip_order import sample_generator
from ..prompt_texts import PromptTexts
from ..sharding import shard
from ..trained_parts import without_adapter
from .clips_on_their_way import ClipsOnTheirWay
from .losses import by_noise_level
from .trajectories import TeacherSteps
from .wan_samples import WanSamples
from .wan_transformer_stage import WanTransformerStage, pad


@dataclass(frozen=True)
class DistillBatch:
    """Some samples: clips at the step that each takes next.

    Attributes:
        places: Of the clips in their training step.
        following: The samples that these places have next.
        steps: Which of the student's steps it is.
        latents: Where they are, b c t h w.
        sigma: Their noise levels b, on the CPU.
        text: Embeddings b n d, padded with zeros.
        velocity: What is to be learnt, b c t h w.
        after: Where the teacher leads them, b c t h w.
        clean: The clean latents that the teacher saw last, b c t h w.
    """

    places: tuple[int, ...]
    following: tuple[int, ...]
    steps: tuple[int, ...]
    latents: Tensor
    sigma: Tensor
    text: Tensor
    velocity: Tensor
    after: Tensor
    clean: Tensor


class WanDistillStage(WanTransformerStage):
    """A student learns the mean velocity of its teacher's guided steps, see `trajectories`.

    Every process takes as many passes in a step as all others, of which each gathers weights from
    all: where the student leads, it is by the very prediction that it learns from.

    Args:
        student: With what is trained marked, see `choose_trained`.
        teacher: The same weights, which stay; None where they are the student's without its
            adapter.
        texts: What clips are made of.
        negative: Embedding n d of what the teacher's guidance leads away from.
        size: Of the clips.
        steps: In which the student samples; the teacher takes two for each.
        guidance_scale: Of the teacher; 1 for one that has no guidance.
        shift: Of the noise levels.
        batch_size: Clips of a batch in each process.
        group: Clips of a step, over all processes.
        places: Those of them that are this process's.
        seed: What everything that is drawn follows.
        samples: What sample sheets show; None for none.
        settings: What can't change while the training goes on, for people.
    """

    def __init__(
        self,
        student: UltraGenTransformer3DModel,
        teacher: UltraGenTransformer3DModel | None,
        texts: PromptTexts,
        negative: Tensor,
        size: Size,
        steps: int,
        guidance_scale: float,
        shift: float,
        batch_size: int,
        group: int,
        places: Sequence[int],
        seed: int,
        samples: WanSamples | None,
        settings: Mapping[str, str],
    ) -> None:
        super().__init__(student, batch_size, seed, samples, texts.fingerprint(), settings)
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.texts, self.negative = texts, pad(negative, WAN.max_sequence_length)
        self.guidance_scale, self.group = guidance_scale, group
        self.sigmas = noise_levels(2 * steps, shift)
        self.first: int | None = None
        frames = (size[2] - 1) // FRAMES_PER_LATENT + 1
        rows, columns = (side // PIXELS_PER_LATENT for side in size[:2])
        self.shape = student.config.in_channels, frames, rows, columns
        self.clips = ClipsOnTheirWay(places, self.shape, steps, self.noise)
        self.companions = (self.clips,)

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        super().setup(device, rank, world)
        if self.teacher is not None:
            shard(self.teacher, self.teacher.blocks, device, self.compute_dtype)
        self.negative = self.negative.to(device)
        self.taught = TeacherSteps(self.sigmas.to(device), self.guided)

    def prompt(self, number: int) -> int:
        """Which prompt a clip has that begins with a sample."""
        return int(
            torch.randint(len(self.texts), (), generator=sample_generator(self.seed, number))
        )

    def noise(self, number: int) -> Tensor:
        """The noise of a clip that begins with a sample, c t h w."""
        chance = sample_generator(self.seed, number)
        torch.randint(len(self.texts), (), generator=chance)  # its prompt
        return torch.randn(self.shape, generator=chance)

    @torch.no_grad()
    def guided(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """The teacher's velocity."""
        teacher = self.model if self.teacher is None else self.teacher
        with without_adapter(teacher) if self.teacher is None else nullcontext():
            told = self.velocity(teacher, x, sigma, text)
            if self.guidance_scale == 1:
                return told
            plain = self.velocity(teacher, x, sigma, self.negative.expand_as(text))
        return plain + self.guidance_scale * (told - plain)

    def samples(self, numbers: range) -> DistillBatch:
        if self.first is None:  # the first batch of a run is the first of a step
            self.first = numbers.start - self.rank * self.samples_per_batch
        places = tuple((number - self.first) % self.group for number in numbers)
        clips = [self.clips.at(*each) for each in zip(places, numbers, strict=True)]
        steps = tuple(clip.step for clip in clips)
        latents = torch.stack([clip.latents for clip in clips]).to(self.device)
        clean = torch.stack([clip.clean for clip in clips]).to(self.device)
        texts = [self.texts[self.prompt(clip.number)] for clip in clips]
        text = torch.stack([pad(each, WAN.max_sequence_length) for each in texts]).to(self.device)
        self.tokens = self.tokens_of(latents)
        after, clean, velocity = self.taught.walk(latents, clean, steps, text)
        return DistillBatch(
            places,
            tuple(number + self.group for number in numbers),
            steps,
            latents,
            self.sigmas[[2 * step for step in steps]],
            text,
            velocity,
            after,
            clean,
        )

    def loss(self, model: nn.Module, batch: DistillBatch) -> dict[str, Tensor]:
        """How far the student is from the velocity to learn; moves the clips on."""
        predicted = self.velocity(model, batch.latents, batch.sigma, batch.text)
        self.move(batch, predicted.detach())
        errors = F.mse_loss(predicted, batch.velocity, reduction="none").mean((1, 2, 3, 4))
        return {"loss": errors.mean(), **by_noise_level(errors.detach(), batch.sigma)}

    def move(self, batch: DistillBatch, predicted: Tensor) -> None:
        """Moves the clips on, half of them as the student's prediction leads."""
        led = self.taught.lead(batch.latents, batch.steps, predicted)
        for i, place in enumerate(batch.places):
            after = led if self.clips.is_led_by_student(place) else batch.after
            self.clips.move(place, after[i], batch.clean[i], batch.following[i])


def noise_levels(steps: int, shift: float) -> Tensor:
    """Noise levels from 1 to 0 of steps by a fixed shift."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    set_noise_levels(scheduler, steps, 1, torch.device("cpu"))  # a fixed shift asks for no tokens
    return scheduler.sigmas
