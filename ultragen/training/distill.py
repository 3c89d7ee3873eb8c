"""Few-step distillation: guidance and several steps of the model become one step of its student.

The teacher samples with guidance, each step with a second look half-way. The student starts as its
copy and learns, at every state that the teacher passes, the mean velocity over the whole step
(progressive distillation, Salimans and Ho, 2022, with the guidance taken in, Meng et al., 2023).
States come from the teacher's own sampling rather than from noised data: these are what the student
will meet, and nothing has to be rendered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..pipeline import UltraGenPipeline
from .clips import ClipSize
from .data import SceneStream, caption_variants, tokenize
from .graphs import Recorded
from .transformer import TransformerStage, compile_blocks, mixed_precision

DISTILLED = "distilled"
# The velocity at latents b c t h w, noise levels b and token ids b n.
Guided = Callable[[Tensor, Tensor, Tensor], Tensor]


class Trajectories:
    """A batch of clips on their way from noise to data, neighbours at different steps, so that a
    batch holds many noise levels.

    Args:
        sigmas: Noise levels from 1 to 0 of the student's steps, and one between each two for the
            teacher.
        start: Gives noise b c t h w and token ids b n for some new clips.
        guided: The teacher.
        number: Clips.
    """

    def __init__(
        self,
        sigmas: Tensor,
        start: Callable[[int], tuple[Tensor, Tensor]],
        guided: Guided,
        number: int,
    ) -> None:
        self.sigmas, self.start, self.guided = sigmas, start, guided
        self.steps = (len(sigmas) - 1) // 2
        self.latents, self.ids = start(number)
        self.step = [0] * number
        wanted = [clip % self.steps for clip in range(number)]
        reached = self.latents.clone()
        for step in range(1, self.steps):
            self.latents, _ = self.walk()
            self.step = [step] * number
            there = [clip for clip in range(number) if wanted[clip] == step]
            reached[there] = self.latents[there]
        self.latents, self.step = reached, wanted

    def levels(self, ahead: int) -> Tensor:
        """Each clip's noise level so many half steps ahead, b."""
        at = [2 * step + ahead for step in self.step]
        return self.sigmas[torch.tensor(at, device=self.sigmas.device)]

    def walk(self) -> tuple[Tensor, Tensor]:
        """One step of the student, taken by the teacher: where it leads, and its mean velocity.

        A Runge-Kutta step of second order, whose second stage lies at the noise level between."""
        x, (now, between, after) = self.latents, [self.levels(ahead) for ahead in range(3)]
        first = self.guided(x, now, self.ids)
        second = self.guided(x + _wide(between - now) * first, between, self.ids)
        velocity = first + (second - first) * _wide((after - now) / (2 * (between - now)))
        return x + _wide(after - now) * velocity, velocity

    def advance(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, their noise levels, token ids, and the velocity to learn; clips that have
        arrived start anew."""
        latents, ids, sigma = self.latents, self.ids, self.levels(0)
        self.latents, velocity = self.walk()
        arrived = [clip for clip, step in enumerate(self.step) if step + 1 == self.steps]
        self.step = [(step + 1) % self.steps for step in self.step]
        if arrived:
            where = torch.tensor(arrived, device=self.latents.device)
            noise, fresh = self.start(len(arrived))
            self.latents = self.latents.index_copy(0, where, noise)
            self.ids = self.ids.index_copy(0, where, fresh)
        return latents, sigma, ids, velocity


def _wide(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1, 1)


class DistillStage(TransformerStage):
    """Distils the pipeline's transformer.

    Args:
        pipeline: Holds the teacher, which becomes the student.
        sizes: Kinds of clips; nothing is rendered for them.
        steps: Of the student.
        guidance_scale: Of the teacher.
        negative_prompt: What the teacher's guidance leads away from.
        seed: Of captions and noise.
    """

    def __init__(
        self,
        pipeline: UltraGenPipeline,
        sizes: Sequence[ClipSize],
        steps: int,
        guidance_scale: float,
        negative_prompt: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__(pipeline, sizes, False, seed, num_inference_steps=steps, guidance_scale=1)
        self.steps, self.teacher_guidance = steps, guidance_scale
        self.negative_prompt = negative_prompt
        # Now, because a training that is resumed loads a half-trained student before `setup`.
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        super().setup(device, rank, world)
        self.scenes = SceneStream(rank, self.seed)
        self.teacher.to(device)
        self.negative = tokenize(self.pipeline.tokenizer, [self.negative_prompt])[0].to(device)
        self.guide: Callable[[tuple[Any, ...]], Tensor] = self.guided
        if device.type == "cuda":
            compile_blocks(self.teacher.transformer)
            self.guide = Recorded(self.guided)
        self.trajectories: dict[tuple[ClipSize, int | None], Trajectories] = {}

    def trajectory(self, size: ClipSize, windows: int | None) -> Trajectories:
        """The clips of one kind, begun when they are first asked for."""
        if (size, windows) not in self.trajectories:
            token = self.pipeline.pixels_per_token
            tokens = (size.height // token) * (size.width // token)
            pipeline = self.pipeline
            _, sigmas = pipeline.prepare_schedule(2 * self.steps, tokens, self.device)

            def start(number: int) -> tuple[Tensor, Tensor]:
                scenes = self.scenes.take(number)
                texts = [caption_variants(scene, 3)[scene.seed % 3] for scene in scenes]
                ids = tokenize(pipeline.tokenizer, texts).to(self.device)
                shape = (size.num_frames, size.height, size.width)
                return pipeline.prepare_latents(number, *shape).to(self.device), ids

            def guided(x: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
                return self.guide((windows, x, sigma, ids)).clone()

            self.trajectories[size, windows] = Trajectories(sigmas, start, guided, size.batch_size)
        return self.trajectories[size, windows]

    @torch.no_grad()
    def guided(self, batch: tuple[Any, ...]) -> Tensor:
        """The teacher's velocity for K, latents, noise levels and token ids."""
        windows, x, sigma, ids = batch
        with mixed_precision(x.device):
            negative = self.negative.expand_as(ids)
            plain = self.velocity(self.teacher, x, sigma, negative, windows)
            told = self.velocity(self.teacher, x, sigma, ids, windows)
        return plain + self.teacher_guidance * (told - plain)

    def batch(self, step: int) -> tuple[ClipSize, int | None, Tensor, Tensor, Tensor, Tensor]:
        size, windows = self.choose(step)
        return size, windows, *self.trajectory(size, windows).advance()

    def loss(
        self,
        model: nn.Module,
        batch: tuple[ClipSize, int | None, Tensor, Tensor, Tensor, Tensor],
    ) -> dict[str, Tensor]:
        size, windows, latents, sigma, ids, velocity = batch
        predicted = self.velocity(model, latents, sigma, ids, windows)
        loss = F.mse_loss(predicted, velocity)
        return {"loss": loss, f"loss_{size.height}x{size.num_frames}": loss}

    def export(self, folder: Path) -> None:
        """Beside the undistilled weights, which stay the teacher of a training that goes on."""
        super().export(folder / DISTILLED)
