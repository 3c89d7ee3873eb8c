"""What a stage of training is, its settings, and how far it is."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run.

    Attributes:
        out: Folder for checkpoints, logs, sample sheets and the finished weights.
        minutes: Wall-clock minutes of training, all resumed runs together.
        run_minutes: Minutes after which this run stops with a checkpoint, for jobs whose
            time limit is shorter than the training; None trains to the end.
        max_steps: Steps after which training ends even if minutes are left; None for no limit.
        learning_rate: Peak learning rate; None takes the stage's own.
        warmup_steps: Steps of linear warm-up.
        decay: Last part of the minutes, over which the learning rate falls to zero.
        weight_decay: Part of every weight that a step at a learning rate of 1 would take away.
        max_grad_norm: Gradients are clipped to this norm.
        ema_decay: Part of the averaged weights, which are the ones that are exported, that stays
            in a step.
        checkpoint_minutes: Minutes between checkpoints.
        sample_minutes: Minutes between sample sheets.
        log_steps: Steps between log lines.
        profile_step: Step after which a few steps are profiled and the dearest operations
            printed; None for never.
        seed: What fresh weights and the data follow.
    """

    out: Path
    minutes: float = 20.0
    run_minutes: float | None = None
    max_steps: int | None = None
    learning_rate: float | None = None
    warmup_steps: int = 50
    decay: float = 0.3
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    checkpoint_minutes: float = 4.0
    sample_minutes: float = 4.0
    log_steps: int = 50
    profile_step: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes must be positive, not {self.minutes}.")


class Stage(ABC):
    """What is trained, on what, with which objective.

    Attributes:
        model: The module whose parameters are trained; `loss` must call it through the `model`
            that it is given, which computes in mixed precision.
        companions: What learns along and is kept in checkpoints, with `state_dict` and
            `load_state_dict`.
        recordable: Whether steps can be recorded as CUDA graphs: batches are tuples, the loss
            depends on their tensors alone, and never asks the device for a value.
    """

    model: nn.Module
    companions: tuple[Any, ...] = ()
    recordable = False

    def setup(self, device: torch.device, rank: int, world: int) -> None:  # noqa: B027
        """Called once, before the first batch: moves frozen parts, fills caches."""

    def teardown(self) -> None:  # noqa: B027
        """Called once, however the training ends; also where `setup` failed."""

    @abstractmethod
    def batch(self, step: int) -> Any:
        """The data of one step."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Scalars by name; `loss` is the one that is minimised."""

    @abstractmethod
    def sample_sheet(self) -> Image.Image:
        """A picture of what the averaged weights give now."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Saves the averaged weights in diffusers' layout."""


class Progress:
    """How far a training is: steps and seconds, kept over resumed runs."""

    def __init__(self) -> None:
        self.step = 0
        self.before = 0.0
        self.started = time.monotonic()

    @property
    def run_seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def seconds(self) -> float:
        return self.before + self.run_seconds

    def state_dict(self) -> dict[str, float]:
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.step, self.before = int(state["step"]), state["seconds"]
        self.started = time.monotonic()


class Every:
    """True once in so many minutes."""

    def __init__(self, minutes: float) -> None:
        self.seconds, self.last = 60 * minutes, time.monotonic()

    def __call__(self) -> bool:
        due = time.monotonic() - self.last >= self.seconds
        if due:
            self.last = time.monotonic()
        return due
