"""Stages and settings so small that a test trains them."""

from __future__ import annotations

import time
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ultragen.dataset.shards import LatentDataset
from ultragen.training.build import TINY_SIZE, build_pipeline
from ultragen.training.clip_sizes import ClipSize
from ultragen.training.loop import Trainer
from ultragen.training.processes import together
from ultragen.training.sharding import whole_weights
from ultragen.training.stage import Stage, TrainingConfig
from ultragen.training.stages.flow_matching import FlowMatchingStage

AnyStage = TypeVar("AnyStage", bound=Stage)


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


class Residual(nn.Module):
    """A block with a part that is not trained, and a parameter of its own beside its layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(1, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.outer(torch.tanh(self.inner(x))) + self.frozen(x)


class Numbered(Stage):
    """Learns a fixed map by samples that follow from their numbers, with weights in parts; notes
    which samples it was asked for.

    Args:
        batch_size: Samples of a batch of one process.
        width: Numbers of a sample.
        poison: A sample that is no number.
        stuck: A sample at which its process waits for ever.
        whole: Leaves all weights on each process.
        data: What tells the data from others.
        layout: A setting that can't change while the training goes on.
    """

    def __init__(
        self,
        batch_size: int,
        width: int = 5,
        poison: int | None = None,
        stuck: int | None = None,
        whole: bool = False,
        data: str = "clips",
        layout: str = "paper",
    ) -> None:
        torch.manual_seed(3)
        blocks = [Residual(width) for _ in range(2)]
        self.model = nn.Sequential(nn.Linear(width, width), *blocks)
        self.blocks = () if whole else tuple(blocks)
        self.samples_per_batch, self.width, self.poison = batch_size, width, poison
        self.tokens, self.fingerprint, self.settings = 7 * batch_size, data, {"layout": layout}
        self.stuck = stuck
        self.asked: list[int] = []

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        self.device = device

    def samples(self, numbers: range) -> tuple[Tensor, Tensor]:
        self.asked += numbers
        if self.stuck in numbers:
            print("waits for ever", flush=True)
            time.sleep(1000)
        drawn = [
            torch.randn(self.width, generator=torch.Generator().manual_seed(n)) for n in numbers
        ]
        x = torch.stack(drawn).to(self.device)
        return (x * nan if self.poison in numbers else x), torch.tensor(numbers).to(self.device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, numbers = batch
        errors = (model(x.to(self.compute_dtype)).float() - x.flip(-1)).square().mean(-1)
        losses = {"loss": errors.mean()}
        for name, part in (("even", numbers % 2 == 0), ("odd", numbers % 2 == 1)):
            if part.any():
                losses[f"loss/{name}"] = errors[part].mean()
        return losses

    def sample_sheet(self) -> Image.Image:
        self.model(torch.zeros(1, self.width, dtype=self.compute_dtype, device=self.device))
        return Image.new("RGB", (8, 8))

    def export(self, folder: Path) -> None:
        weights = whole_weights(self.model)
        if weights:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / "weights.safetensors")


def numbered_settings(out: Path, steps: int, **changes) -> TrainingConfig:
    """Of a `Numbered`: in float32, which processors of all kinds add up alike."""
    config = settings(
        out, steps, learning_rate=0.01, optimizer="adamw", precision="float32", ema_decay=0.5
    )
    return replace(config, **changes)


def settings(out: Path, steps: int, **changes) -> TrainingConfig:
    config = TrainingConfig(
        out=out, minutes=60, max_steps=steps, learning_rate=0.05, warmup_steps=2, decay=0.0,
        log_steps=1,
    )  # fmt: skip
    return replace(config, **changes)


def run(stage: AnyStage, config: TrainingConfig) -> AnyStage:
    with together(config.out):
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
