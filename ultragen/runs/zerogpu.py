"""The best settings that each kind of ZeroGPU visitor's daily quota starts."""

from __future__ import annotations

from dataclasses import dataclass

from ..estimates.cost import ZEROGPU_TIERS, gpu_duration
from .clip import job
from .loading import Models
from .request import Request


@dataclass(frozen=True)
class Offer:
    """Settings for one kind of visitor.

    Attributes:
        visitor: Who they are for.
        request: The settings; its prompt stands for any.
        seconds: GPU seconds that they ask for.
    """

    visitor: str
    request: Request
    seconds: int


def seconds_asked(request: Request, models: Models) -> int:
    """GPU seconds that a validated request asks for."""
    return gpu_duration(models.estimator.estimate(job(request, models)))


def offers(models: Models) -> list[Offer]:
    """The first settings of the model's ladder that fit, for each tier that any fit."""
    ladder = [
        Request("any", resolution, num_frames=frames, num_inference_steps=steps).validate(
            models.preset
        )
        for resolution, frames, steps in models.preset.ladder
    ]
    asked = [(request, seconds_asked(request, models)) for request in ladder]
    return [
        Offer(visitor, *best)
        for visitor, limit in ZEROGPU_TIERS
        if (best := next((one for one in asked if one[1] <= limit), None))
    ]
