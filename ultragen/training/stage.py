"""What a stage of training is, its settings, and how far it is."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor, nn

OptimizerName = Literal["muon", "adamw", "adamw8bit"]
Precision = Literal["bfloat16", "float32"]
Tracker = Literal["tensorboard", "trackio"]


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run.

    Attributes:
        out: Folder for checkpoints, logs, sample sheets and the finished weights.
        minutes: Wall-clock minutes of training, all resumed runs together; `inf` leaves the end to
            `max_steps`.
        run_minutes: Minutes after which this run stops with a checkpoint, for jobs whose
            time limit is shorter than the training; None trains to the end.
        max_steps: Steps after which training ends even if minutes are left; None for no limit.
        learning_rate: Peak learning rate; None takes the stage's own.
        warmup_steps: Steps of linear warm-up.
        decay: Last part of the training, over which the learning rate falls to zero; 0 for a
            learning rate that stays as it is.
        optimizer: Muon for hidden matrices and AdamW for the rest; AdamW for all; or AdamW whose
            states take 8 bits a number.
        betas: Decay rates of AdamW's two moments.
        weight_decay: Part of every weight that a step at a learning rate of 1 would take away.
        accumulation: Batches whose gradients make one step in each process.
        precision: What is computed in, over weights in float32; None takes bfloat16 where that is
            fast.
        max_grad_norm: Gradients are clipped to this norm.
        average: Whether weights are averaged over the steps, and the average is exported.
        ema_decay: Part of the averaged weights that stays in a step.
        checkpoint_minutes: Minutes between checkpoints.
        checkpoint_steps: Steps between checkpoints, besides; None for none.
        sample_minutes: Minutes between sample sheets.
        sample_steps: Steps between sample sheets, besides; None for none.
        log_steps: Steps between log lines, whose values are means over these steps.
        trackers: Where what is logged goes besides the console.
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
    optimizer: OptimizerName = "muon"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    accumulation: int = 1
    precision: Precision | None = None
    max_grad_norm: float = 1.0
    average: bool = True
    ema_decay: float = 0.999
    checkpoint_minutes: float = 4.0
    checkpoint_steps: int | None = None
    sample_minutes: float = 4.0
    sample_steps: int | None = None
    log_steps: int = 50
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    profile_step: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes must be positive, not {self.minutes}.")
        if self.accumulation < 1:
            raise ValueError(f"accumulation must be at least 1, not {self.accumulation}.")
        _check_known("optimizer", self.optimizer, OptimizerName)
        if self.precision is not None:
            _check_known("precision", self.precision, Precision)
        for tracker in self.trackers:
            _check_known("tracker", tracker, Tracker)


def _check_known(what: str, name: str, known: Any) -> None:
    if name not in get_args(known):
        raise ValueError(f"Unknown {what} {name!r}: choose from {', '.join(get_args(known))}.")


class Stage(ABC):
    """What is trained, on what, with which objective.

    Attributes:
        model: The module whose parameters are trained; `loss` must call it through the `model`
            that it is given, which computes in mixed precision.
        companions: What learns along and is kept in checkpoints, with `state_dict` and
            `load_state_dict`.
        recordable: Whether steps can be recorded as CUDA graphs: batches are tuples, the loss
            depends on their tensors alone, and never asks the device for a value.
        blocks: Modules in `model`, none inside another, whose weights are gathered one after the
            other while the rest lies in parts on all processes; none leaves the whole model on
            each. All processes call `sample_sheet` and `export` of a stage with blocks, the main
            one alone of one without.
        samples_per_batch: Samples of a batch of one process, in a stage that draws samples by
            their numbers; 0 in one that draws batches as it likes.
        tokens: Tokens of the batch that was drawn last, in this process.
        compute_dtype: What a model with blocks computes in and takes its inputs in; set before
            `setup`. A model without blocks runs under autocast.
        fingerprint: What tells the data from others; kept in checkpoints.
        settings: What can't change while a training goes on, for people to read, such as the
            attention's layout or which weights are trained; kept in checkpoints.
    """

    model: nn.Module
    companions: tuple[Any, ...] = ()
    recordable = False
    blocks: tuple[nn.Module, ...] = ()
    samples_per_batch = 0
    tokens = 0
    compute_dtype = torch.float32
    fingerprint = ""
    settings: Mapping[str, str] = MappingProxyType({})

    def setup(self, device: torch.device, rank: int, world: int) -> None:  # noqa: B027
        """Called once, before the first batch: moves frozen parts, fills caches."""

    def teardown(self) -> None:  # noqa: B027
        """Called once, however the training ends; also where `setup` failed."""

    def batch(self, step: int) -> Any:
        """The data of one batch of a step, in a stage without `samples_per_batch`."""
        raise NotImplementedError

    def samples(self, numbers: range) -> Any:
        """The data of one batch, in a stage with `samples_per_batch`.

        Everything about a sample, its noise too, follows from the seed and its number. Then a
        training is the same whether it was interrupted or not, and on however many processes, if
        the loss is the mean over samples.

        Args:
            numbers: Of the samples, `samples_per_batch` of them, counted through the whole training
                over all processes, far beyond the size of the data.
        """
        raise NotImplementedError

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Scalars by name; `loss` is the one that is minimised. Others may be missing at times,
        such as the loss of a noise level that no sample has."""

    @abstractmethod
    def sample_sheet(self) -> Image.Image:
        """A picture of what the averaged weights give now."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Saves the averaged weights in diffusers' layout, in a folder that it creates."""


class Progress:
    """How far a training is: steps, samples that were drawn by numbers, and seconds, kept over
    resumed runs."""

    def __init__(self) -> None:
        self.step = self.samples = 0
        self.before = 0.0
        self.started = time.monotonic()

    @property
    def run_seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def seconds(self) -> float:
        return self.before + self.run_seconds

    def state_dict(self) -> dict[str, float]:
        return {"step": self.step, "samples": self.samples, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.step, self.before = int(state["step"]), state["seconds"]
        self.samples = int(state.get("samples", 0))  # older checkpoints have none
        self.started = time.monotonic()


class Every:
    """True once in so many minutes, and besides after so many steps."""

    def __init__(self, minutes: float, steps: int | None = None) -> None:
        self.seconds, self.last = 60 * minutes, time.monotonic()
        self.steps = steps

    def __call__(self, step: int) -> bool:
        due = time.monotonic() - self.last >= self.seconds
        if self.steps is not None and step > 0:
            due = due or step % self.steps == 0
        if due:
            self.last = time.monotonic()
        return due
