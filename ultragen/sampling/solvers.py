"""Noise levels and the steps along them, by the pipeline's own solver or by a scheduler's."""

from __future__ import annotations

from math import log
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from ..presets import GROWING
from .flow import second_order, shifted

WAY_OUT = (
    "take FlowMatchEulerDiscreteScheduler(shift=5.0), or UniPCMultistepScheduler("
    'prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0).'
)


def check_scheduler(scheduler: Any) -> None:
    """Checks that a scheduler is one of flow matching, and that nothing it asks for is passed over.

    Raises:
        ValueError: with what is wrong, and the schedulers that can be taken.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        for option in ("stochastic_sampling", "invert_sigmas"):
            if config[option]:
                raise ValueError(f"The {name}'s {option} is not for this model: leave it out.")
    elif not isinstance(scheduler, UniPCMultistepScheduler):
        raise ValueError(f"The pipeline can't sample with a {name}: {WAY_OUT}")
    elif config.prediction_type != "flow_prediction" or not config.use_flow_sigmas:
        raise ValueError(f"The {name} is not set for flow matching: {WAY_OUT}")
    elif config.use_dynamic_shifting:
        raise ValueError(f"The {name} must have a fixed shift, use_dynamic_shifting=False.")


def chosen_scheduler(
    own: FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler, solver: str, shift: float | None
) -> FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler:
    """A scheduler for a run: a model's own, or a new one with another solver or a fixed shift.

    Args:
        own: The model's.
        solver: One of `SOLVERS`.
        shift: Shift of the noise levels; None leaves it as it is.

    Raises:
        ValueError: if UniPC is to have a shift that grows with the frame.
    """
    is_unipc = isinstance(own, UniPCMultistepScheduler)
    if shift is None and solver in ("own", "unipc" if is_unipc else "euler"):
        return own
    if shift is None and (is_unipc or not own.config.use_dynamic_shifting):
        shift = own.config.flow_shift if is_unipc else own.config.shift
    if shift is None:
        raise ValueError(GROWING)
    if solver == "unipc" or (solver == "own" and is_unipc):
        settings = {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": shift,
        }
        kept = own.config if is_unipc else {"num_train_timesteps": own.config.num_train_timesteps}
        return UniPCMultistepScheduler.from_config(kept, **settings)
    settings = {"shift": shift, "use_dynamic_shifting": False}
    kept = {"num_train_timesteps": own.config.num_train_timesteps} if is_unipc else own.config
    return FlowMatchEulerDiscreteScheduler.from_config(kept, **settings)


def log_shift(scheduler: FlowMatchEulerDiscreteScheduler, tokens_per_frame: int) -> float:
    """log s of the dynamic shift: s grows with the square root of the tokens in a frame."""
    config = scheduler.config
    if "base_shift" not in config:
        raise ValueError(
            f"A {type(scheduler).__name__} has no shift that grows with the frame: take a "
            "FlowMatchEulerDiscreteScheduler with dynamic shifting."
        )
    return config.base_shift + 0.5 * log(tokens_per_frame / config.base_image_seq_len)


def set_noise_levels(
    scheduler: FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler,
    steps: int,
    tokens_per_frame: int,
    device: torch.device,
) -> None:
    """Sets a scheduler's `timesteps`, 0..1000, and `sigmas`, one more: u_i = 1 − i/steps, shifted
    to su / (1 + (s − 1)u); UniPC's are its own.

    With dynamic shifting s falls from its full value at u = 1 to 1 at u = 0, see `falling_shift`.
    """
    if isinstance(scheduler, UniPCMultistepScheduler):
        scheduler.set_timesteps(steps, device=device)
        scheduler.set_begin_index(0)  # it would look the first timestep up, and wait for the GPU
        return
    sigmas = np.linspace(1.0, 0.0, steps, endpoint=False)
    if not scheduler.config.use_dynamic_shifting:
        scheduler.set_timesteps(sigmas=sigmas, device=device)
        return
    mu = log_shift(scheduler, tokens_per_frame)
    # The scheduler multiplies its own shift, the full one, into what it is given.
    sigmas = shifted(sigmas, np.exp(mu * (sigmas - 1)))
    scheduler.set_timesteps(sigmas=sigmas, device=device, mu=mu)


def leave_out(
    scheduler: FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler, steps: int
) -> None:
    """Cuts the first steps off a scheduler's `timesteps` and `sigmas`, until they are set again."""
    scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[steps:], scheduler.sigmas[steps:]
    scheduler.num_inference_steps = len(scheduler.timesteps)


class Solver(Protocol):
    """Steps of a run, each taken once and in order."""

    def sigma(self, step: int) -> Tensor:
        """The noise level at which a step begins, a scalar."""

    def advance(self, step: int, velocity: Tensor, latents: Tensor) -> Tensor:
        """Latents b c t h w at the next noise level, from these and their velocity."""


class FlowSolver:
    """Steps straight along the velocity (Euler), or along that of DPM-Solver++(2M).

    Args:
        timesteps: 0..1000, one for each step.
        levels: Noise levels σ, one more than steps.
        train_steps: What the timestep of σ = 1 is.
        order: 1 or 2, see `second_order`.
    """

    def __init__(
        self, timesteps: Tensor, levels: list[float], train_steps: int, order: int
    ) -> None:
        self.timesteps, self.levels = timesteps, levels
        self.train_steps, self.order = train_steps, order
        self.clean: list[Tensor] = []  # predicted at the step before and at this one

    def sigma(self, step: int) -> Tensor:
        return self.timesteps[step] / self.train_steps

    def advance(self, step: int, velocity: Tensor, latents: Tensor) -> Tensor:
        levels = self.levels
        if self.order == 2:
            self.clean = [*self.clean[-1:], latents - levels[step] * velocity]
            velocity = second_order(velocity, self.clean, levels[max(step - 1, 0) : step + 2])
        return latents + (levels[step + 1] - levels[step]) * velocity


class SchedulerSolver:
    """Steps that a scheduler of diffusers takes, whose noise levels are set.

    Args:
        scheduler: Remembers the steps before.
    """

    def __init__(self, scheduler: UniPCMultistepScheduler) -> None:
        self.scheduler = scheduler

    def sigma(self, step: int) -> Tensor:
        # Its timesteps are cut to whole numbers.
        return self.scheduler.sigmas[step]

    def advance(self, step: int, velocity: Tensor, latents: Tensor) -> Tensor:
        timestep = self.scheduler.timesteps[step]
        return self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
