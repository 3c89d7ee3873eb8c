"""Few-step distillation: guidance and several steps of the model become one step of its student.

The teacher samples with guidance in small steps. The student starts as its copy and learns, at
every state that the teacher passes, the mean velocity over the next few of these steps (progressive
distillation, Salimans and Ho, 2022, with the guidance taken in, Meng et al., 2023). States come
from the teacher's own sampling rather than from noised data: these are what the student will meet,
and nothing has to be rendered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..pipeline import UltraGenPipeline
from .clips import ClipSize
from .data import SceneStream, caption_variants, tokenize
from .transformer import TransformerStage, compile_blocks

# The velocity at latents b c t h w, noise levels b and token ids b n.
Guided = Callable[[Tensor, Tensor, Tensor], Tensor]


class Trajectories:
    """A batch of clips on their way from noise to data, each at another step, so that a batch holds
    all noise levels.

    Args:
        sigmas: The teacher's noise levels from 1 to 0.
        stride: Steps of the teacher that are one of the student.
        start: Gives noise b c t h w and token ids b n for some new clips.
        guided: The teacher.
        number: Clips.
    """

    def __init__(
        self,
        sigmas: Tensor,
        stride: int,
        start: Callable[[int], tuple[Tensor, Tensor]],
        guided: Guided,
        number: int,
    ) -> None:
        self.sigmas, self.stride, self.start, self.guided = sigmas, stride, start, guided
        self.steps = (len(sigmas) - 1) // stride
        self.latents, self.ids = start(number)
        self.step = torch.zeros(number, dtype=torch.long, device=sigmas.device)
        wanted = torch.arange(number, device=sigmas.device) % self.steps
        reached = self.latents.clone()
        for step in range(1, self.steps):
            self.latents, _ = self.walk()
            self.step += 1
            reached = torch.where((wanted == step).view(-1, 1, 1, 1, 1), self.latents, reached)
        self.latents, self.step = reached, wanted

    def walk(self) -> tuple[Tensor, Tensor]:
        """One step of the student, taken by the teacher: where it leads, and its mean velocity."""
        x, at = self.latents, self.step * self.stride
        for _ in range(self.stride):
            sigma, after = self.sigmas[at], self.sigmas[at + 1]
            velocity = self.guided(x, sigma, self.ids)
            x = x + (after - sigma).view(-1, 1, 1, 1, 1) * velocity
            at = at + 1
        length = self.sigmas[at] - self.sigmas[self.step * self.stride]
        return x, (x - self.latents) / length.view(-1, 1, 1, 1, 1)

    def advance(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, their noise levels, token ids, and the velocity to learn; clips that have
        arrived start anew."""
        latents, ids, sigma = self.latents, self.ids, self.sigmas[self.step * self.stride]
        self.latents, velocity = self.walk()
        self.step = self.step + 1
        arrived = (self.step == self.steps).nonzero()[:, 0]
        if len(arrived):
            noise, fresh = self.start(len(arrived))
            self.latents = self.latents.index_copy(0, arrived, noise)
            self.ids = self.ids.index_copy(0, arrived, fresh)
            self.step = self.step.index_fill(0, arrived, 0)
        return latents, sigma, ids, velocity


class DistillStage(TransformerStage):
    """Distils the pipeline's transformer.

    Args:
        pipeline: Holds the teacher, which becomes the student.
        sizes: Kinds of clips; nothing is rendered for them.
        steps: Of the student.
        stride: Steps of the teacher for each of the student.
        guidance_scale: Of the teacher.
        seed: Of captions and noise.
    """

    def __init__(
        self,
        pipeline: UltraGenPipeline,
        sizes: Sequence[ClipSize],
        steps: int,
        stride: int,
        guidance_scale: float,
        seed: int = 0,
    ) -> None:
        super().__init__(pipeline, sizes, False, seed, num_inference_steps=steps, guidance_scale=1)
        self.steps, self.stride, self.teacher_guidance = steps, stride, guidance_scale

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        super().setup(device, rank, world)
        self.scenes = SceneStream(rank, self.seed)
        self.teacher = copy.deepcopy(self.model).to(device).eval().requires_grad_(False)
        if device.type == "cuda":
            compile_blocks(self.teacher.transformer)
        self.trajectories: dict[tuple[ClipSize, int | None], Trajectories] = {}

    def trajectory(self, size: ClipSize, windows: int | None) -> Trajectories:
        """The clips of one kind, begun when they are first asked for."""
        if (size, windows) not in self.trajectories:
            token = self.pipeline.pixels_per_token
            tokens = (size.height // token) * (size.width // token)
            pipeline = self.pipeline
            _, sigmas = pipeline.prepare_schedule(self.steps * self.stride, tokens, self.device)

            def start(number: int) -> tuple[Tensor, Tensor]:
                scenes = self.scenes.take(number)
                texts = [caption_variants(scene, 3)[scene.seed % 3] for scene in scenes]
                ids = tokenize(pipeline.tokenizer, texts).to(self.device)
                shape = (size.num_frames, size.height, size.width)
                return pipeline.prepare_latents(number, *shape).to(self.device), ids

            def guided(x: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
                with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, x.is_cuda):
                    plain = self.velocity(
                        self.teacher, x, sigma, self.empty.expand_as(ids), windows
                    )
                    told = self.velocity(self.teacher, x, sigma, ids, windows)
                return plain + self.teacher_guidance * (told - plain)

            self.trajectories[size, windows] = Trajectories(
                sigmas, self.stride, start, guided, size.batch_size
            )
        return self.trajectories[size, windows]

    def batch(self, step: int) -> tuple[ClipSize, int | None, tuple[Tensor, ...]]:
        size, windows = self.choose(step)
        return size, windows, self.trajectory(size, windows).advance()

    def loss(
        self, model: nn.Module, batch: tuple[ClipSize, int | None, tuple[Tensor, ...]]
    ) -> dict[str, Tensor]:
        size, windows, (latents, sigma, ids, velocity) = batch
        predicted = self.velocity(model, latents, sigma, ids, windows)
        loss = F.mse_loss(predicted, velocity)
        return {"loss": loss, f"loss_{size.height}x{size.num_frames}": loss}
