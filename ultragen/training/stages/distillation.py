"""Few-step distillation of the embedded model's transformers.

The teacher samples with guidance, two steps for one of the student's, and the student learns what
`trajectories` says. Nothing has to be rendered for it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...files import write_text
from ...pipeline import UltraGenPipeline
from ..clip_sizes import ClipSize
from ..data import SceneStream, caption_variants, tokenize
from ..graphs import Recorded
from .trajectories import Trajectories
from .transformer_stage import TransformerStage, compile_blocks, mixed_precision

DISTILLED = "distilled"
STUDENTS = {"transformer": "distill", "base_transformer": "base-distill"}  # stages by their parts
RECORD = "distillation.json"


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
        for name in STUDENTS:
            if (folder / DISTILLED / name).is_dir():
                record = json.dumps({"steps": self.steps}) + "\n"
                write_text(folder / DISTILLED / name / RECORD, record)


def distilled_steps(model: Path, otherwise: int) -> int | None:
    """Steps that both transformers of a training were distilled to; None where neither was.

    Args:
        model: Folder that the training's stages filled.
        otherwise: What a student takes of which no record says it, as older versions left it.

    Raises:
        ValueError: if only one of the two is distilled, or each to another number of steps.
    """
    steps: dict[str, int | None] = {}
    for name in STUDENTS:
        path = model / DISTILLED / name / RECORD
        told = json.loads(path.read_text(encoding="utf-8"))["steps"] if path.is_file() else None
        steps[name] = (told or otherwise) if path.parent.is_dir() else None
    if len(set(steps.values())) == 1:
        return steps["transformer"]
    if None in steps.values():
        [stage] = (STUDENTS[name] for name, number in steps.items() if number is None)
        raise ValueError(
            f"One of two transformers is distilled, and both are sampled in one way: run "
            f"`train {stage}` too, or remove {model / DISTILLED}."
        )
    few, many = sorted(steps, key=lambda name: steps[name] or 0)
    raise ValueError(
        f"`train {STUDENTS[few]}` made a student of {steps[few]} steps, `train {STUDENTS[many]}` "
        f"one of {steps[many]}, and both are sampled in as many: run one of them with the other's "
        "--steps."
    )
