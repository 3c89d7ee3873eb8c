"""Few-step distillation: guidance and several steps of the model become one step of its student.

The teacher samples with guidance, two steps for one of the student's. The student starts as its
copy and learns, at every state that the teacher passes, the mean velocity over the whole step
(progressive distillation, Salimans and Ho, 2022, with the guidance taken in, Meng et al., 2023).
States come from sampling rather than from noised data, so nothing has to be rendered: half of the
clips are led by the teacher, half by the student as it is by then, because those are the states
that it will meet, with its own errors in them (Ross et al., "A Reduction of Imitation Learning",
2011).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...pipeline import UltraGenPipeline
from ..clip_sizes import ClipSize
from ..data import SceneStream, caption_variants, tokenize
from ..graphs import Recorded
from .transformer_stage import TransformerStage, compile_blocks, mixed_precision

DISTILLED = "distilled"
# The velocity at latents b c t h w, noise levels b and token ids b n.
Guided = Callable[[Tensor, Tensor, Tensor], Tensor]


class Trajectories:
    """A batch of clips on their way from noise to data, neighbours at different steps, so that a
    batch holds many noise levels.

    Args:
        sigmas: Noise levels from 1 to 0 of the student's steps, and one between each two for the
            teacher; a floating-point tensor of an odd number of them.
        start: Gives noise b c t h w and token ids b n for some new clips.
        guided: The teacher.
        number: Clips.
        student: Leads every second clip from its start on; None leaves all to the teacher.
    """

    def __init__(
        self,
        sigmas: Tensor,
        start: Callable[[int], tuple[Tensor, Tensor]],
        guided: Guided,
        number: int,
        student: Guided | None = None,
    ) -> None:
        self.sigmas, self.start, self.guided = sigmas, start, guided
        self.student, self.begun = student, number
        self.changes = changes(sigmas)
        self.steps = (len(sigmas) - 1) // 2
        self.latents, self.ids = start(number)
        self.clean = torch.zeros_like(self.latents)  # as the teacher saw it half a step ago
        self.step = [0] * number
        self.own = [False] * number  # these are half-way already, led by the teacher
        wanted = [clip % self.steps for clip in range(number)]
        reached, seen = self.latents.clone(), self.clean.clone()
        for step in range(1, self.steps):
            self.latents, _ = self.walk()
            self.step = [step] * number
            there = [clip for clip in range(number) if wanted[clip] == step]
            reached[there], seen[there] = self.latents[there], self.clean[there]
        self.latents, self.clean, self.step = reached, seen, wanted

    def levels(self, ahead: int) -> Tensor:
        """Each clip's noise level so many half steps ahead, b."""
        at = [2 * step + ahead for step in self.step]
        return self.sigmas[torch.tensor(at, device=self.sigmas.device)]

    def walk(self) -> tuple[Tensor, Tensor]:
        """One step of the student, taken by the teacher: where it leads, and its mean velocity.

        The teacher takes two steps as its own sampler does, DPM-Solver++(2M), which looks back at
        the clean latents of the half step before (see `flow.second_order`)."""
        x, start = self.latents, self.levels(0)
        for half in range(2):
            now, after = self.levels(half), self.levels(half + 1)
            velocity = self.guided(x, now, self.ids)
            clean = x - _wide(now) * velocity
            carried = self.changes[[2 * step + half for step in self.step]]
            velocity = velocity - _wide(carried / now) * (clean - self.clean)
            x, self.clean = x + _wide(after - now) * velocity, clean
        return x, (x - self.latents) / _wide(self.levels(2) - start)

    def advance(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, their noise levels, token ids, and the velocity to learn; clips that have
        arrived start anew."""
        latents, ids, sigma = self.latents, self.ids, self.levels(0)
        self.latents, velocity = self.walk()
        if self.student is not None and any(self.own):
            learnt = self.student(latents, sigma, ids)
            led = latents + _wide(self.levels(2) - sigma) * learnt
            own = torch.tensor(self.own, device=led.device)
            self.latents = torch.where(_wide(own), led, self.latents)
        arrived = [clip for clip, step in enumerate(self.step) if step + 1 == self.steps]
        self.step = [(step + 1) % self.steps for step in self.step]
        if arrived:
            where = torch.tensor(arrived, device=self.latents.device)
            noise, fresh = self.start(len(arrived))
            self.latents = self.latents.index_copy(0, where, noise)
            self.ids = self.ids.index_copy(0, where, fresh)
            for clip in arrived:
                self.own[clip] = self.begun % 2 == 1
                self.begun += 1
        return latents, sigma, ids, velocity


def changes(sigmas: Tensor) -> Tensor:
    """For each step between noise levels, how much of the last change of the clean latents a step
    of DPM-Solver++(2M) carries on: none after pure noise and none on the way to no noise."""
    ratio = (1 - sigmas).log() - sigmas.log()  # log of the signal-to-noise ratio
    carried = torch.zeros_like(sigmas[:-1])
    carried[1:] = (ratio[2:] - ratio[1:-1]) / (2 * (ratio[1:-1] - ratio[:-2]))
    return torch.where(carried.isfinite(), carried, 0)


def _wide(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1, 1)


class DistillStage(TransformerStage):
    """Distils the pipeline's transformer.

    Args:
        pipeline: Holds the teacher, which becomes the student.
        sizes: Kinds of clips; nothing is rendered for them.
        steps: Steps in which the student samples; the teacher takes two for each.
        guidance_scale: Guidance that the teacher is sampled with, and the student learns.
        negative_prompt: What the teacher's guidance leads away from.
        seed: What captions and noise follow.
        own_states: Whether the student leads half of the clips, or the teacher all of them.
        edition: Of the world that captions describe, see `world.scene`.
    """

    def __init__(
        self,
        pipeline: UltraGenPipeline,
        sizes: Sequence[ClipSize],
        steps: int,
        guidance_scale: float,
        negative_prompt: str = "",
        seed: int = 0,
        own_states: bool = True,
        edition: int = 1,
    ) -> None:
        super().__init__(pipeline, sizes, False, seed, num_inference_steps=steps, guidance_scale=1)
        self.steps, self.teacher_guidance = steps, guidance_scale
        self.negative_prompt, self.own_states = negative_prompt, own_states
        self.edition = edition
        # Now, because a training that is resumed loads a half-trained student before `setup`.
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        super().setup(device, rank, world)
        self.scenes = SceneStream(rank, self.seed, self.edition)
        self.teacher.to(device)
        self.negative = tokenize(self.pipeline.tokenizer, [self.negative_prompt])[0].to(device)
        self.guide: Callable[[tuple[Any, ...]], Tensor] = self.guided
        self.lead: Callable[[tuple[Any, ...]], Tensor] = self.led
        if device.type == "cuda":
            compile_blocks(self.teacher.transformer)
            self.guide, self.lead = Recorded(self.guided), Recorded(self.led)
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
                noise = pipeline.prepare_latents(
                    number, height=size.height, width=size.width, num_frames=size.num_frames
                )
                return noise.to(self.device), ids

            def guided(x: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
                return self.guide((windows, x, sigma, ids)).clone()

            def led(x: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
                return self.lead((windows, x, sigma, ids)).clone()

            student = led if self.own_states else None
            self.trajectories[size, windows] = Trajectories(
                sigmas, start, guided, size.batch_size, student
            )
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

    @torch.no_grad()
    def led(self, batch: tuple[Any, ...]) -> Tensor:
        """The student's velocity for K, latents, noise levels and token ids."""
        windows, x, sigma, ids = batch
        with mixed_precision(x.device):
            return self.velocity(self.model, x, sigma, ids, windows)

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
