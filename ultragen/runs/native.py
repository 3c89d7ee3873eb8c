"""The native clip alone, without the one that it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import numpy as np

from ..pictures import crop_frames
from .clip import composition_of, encode_text, enough_memory, job, make_clip, resolve_windows
from .loading import Models
from .metadata import describe
from .progress import Progress, RunState
from .request import Request
from .used_loras import use_loras


@dataclass(frozen=True)
class NativeClip:
    """A clip before it is written.

    Attributes:
        frames: t rows columns 3, uint8.
        fps: Frames a second.
        metadata: What made it; its request makes it again.
    """

    frames: np.ndarray
    fps: int
    metadata: dict[str, Any]


def generate_native(
    request: Request,
    models: Models,
    report: Callable[[Progress], None] = lambda progress: None,
    cancelled: Event | None = None,
) -> NativeClip:
    """Makes UltraGen's clip; arguments and errors as in `compare.generate`."""
    request = _native_alone(request, models)
    models.check_memory(request)
    run = RunState(report, cancelled or Event(), estimate_native(request, models))
    windows = resolve_windows(request, models)
    size = (request.size.height, request.size.width)
    with enough_memory(request, models):
        use_loras(models, request)
        text = encode_text(run, models.native, [request])
        frames = make_clip(
            run, models.native, request, text, size, "", {"windows": windows},
            first=composition_of(request, models),
        )  # fmt: skip
    metadata = describe(request, models, run, windows)
    metadata["labels"] = {"native": metadata["labels"]["native"]}
    return NativeClip(crop_frames(frames, *request.size.kept), request.frame_rate, metadata)


def estimate_native(request: Request, models: Models) -> dict[str, float]:
    """Seconds that the stages of `generate_native` will take here, by all processes together."""
    stages = models.estimator.estimate(job(_native_alone(request, models), models))
    return {name: stages[name] for name in ("text", "denoise", "decode")}


def _native_alone(request: Request, models: Models) -> Request:
    """Whatever a request says of the upscaled clip, nothing is loaded for it."""
    return replace(request, upscaler="lanczos", base_native="off").validate(models.preset)
