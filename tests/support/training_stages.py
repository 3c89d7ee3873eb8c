"""Stages and settings so small that a test trains them."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ultragen.dataset.shards import LatentDataset
from ultragen.training.build import TINY_SIZE, build_pipeline
from ultragen.training.clip_sizes import ClipSize
from ultragen.training.loop import Trainer
from ultragen.training.stage import Stage, TrainingConfig
from ultragen.training.stages.flow_matching import FlowMatchingStage


class Line(Stage):
    """Learns y = 3x; keeps what the loop asked of it."""

    def __init__(self, poison: int | None = None) -> None:
        torch.manual_seed(7)
        self.model = nn.Linear(1, 1)
        self.poison = poison
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.exported: list[float] = []

    def batch(self, step: int) -> Tensor:
        self.steps.append(step)
        x = torch.randn((16, 1), generator=torch.Generator().manual_seed(step))
        x = x.to(self.model.weight.device)
        return x * nan if step == self.poison else x

    def loss(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        loss = (model(batch) - 3 * batch).square().mean()
        self.losses.append(loss.item())
        return {"loss": loss}

    def sample_sheet(self) -> Image.Image:
        return Image.new("RGB", (8, 8))

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        assert not self.model.training
        self.exported.append(self.model.weight.item())


def settings(out: Path, steps: int, **changes) -> TrainingConfig:
    config = TrainingConfig(
        out=out, minutes=60, max_steps=steps, learning_rate=0.05, warmup_steps=2, decay=0.0,
        log_steps=1,
    )  # fmt: skip
    return replace(config, **changes)


def run(stage: Line, config: TrainingConfig) -> Line:
    Trainer(stage, config).train()
    return stage


def flow_stage(
    sizes: tuple[ClipSize, ...],
    render_on: tuple[str, ...] = (),
    dataset: LatentDataset | None = None,
) -> FlowMatchingStage:
    torch.manual_seed(0)
    pipe = build_pipeline(TINY_SIZE, ["a", "lake"])
    stage = FlowMatchingStage(pipe, sizes, True, render_on=render_on, dataset=dataset)
    if not render_on:
        stage.setup(torch.device("cpu"), 0, 1)
    return stage


SMALL = ClipSize(96, 128, num_frames=5, batch_size=2, pool=2, first=2, chunk=2, windows=(2,))


def steps(out: Path, number: int) -> TrainingConfig:
    return TrainingConfig(out=out, minutes=60, max_steps=number, log_steps=2, warmup_steps=1)


def weights(folder: Path) -> dict[str, Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)
