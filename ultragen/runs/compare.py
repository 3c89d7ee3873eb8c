"""One prompt and one seed → a native clip and an upscaled one, with timings and metadata.

`generate` needs the accelerator and makes frames; `write` needs only the CPU and makes files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from ..pictures import crop_frames
from .clip import (
    check_visible,
    composition_of,
    encode_text,
    enough_memory,
    job,
    make_clip,
    resolve_windows,
)
from .loading import Models
from .metadata import describe
from .native import NativeClip
from .progress import Progress, RunState
from .request import Request
from .used_loras import use_loras
from .write import Clips, Result, write


def generate(
    request: Request,
    models: Models,
    report: Callable[[Progress], None] = lambda progress: None,
    cancelled: Event | None = None,
    show_native: Callable[[NativeClip], None] | None = None,
    previews: bool = False,
) -> Clips:
    """Makes the frames: denoising, decoding and upscaling.

    Args:
        request: What to make.
        models: What to make it with.
        report: Called after each step.
        cancelled: Once set, the run stops within a step.
        show_native: Called with the native clip as soon as it is there.
        previews: Whether what is reported shows what the native clip looks like by now.

    Raises:
        ValueError: for a setting that can't be used.
        Cancelled: if the run was stopped.
        RuntimeError: for a result that is black or not a number, or too little memory.
    """
    request = request.validate(models.preset)
    models.check_memory(request)
    estimated = models.estimator.estimate(job(request, models))
    run = RunState(report, cancelled or Event(), estimated)
    size, base = request.size, models.preset.base_size(request.aspect)
    windows = {"windows": resolve_windows(request, models)}
    of_base = request.of_base
    guided = max(request, of_base, key=lambda each: each.guidance.scale)

    with enough_memory(request, models):
        upscaler = models.upscaler(request.upscaler)  # first: one that fails does so at once
        use_loras(models, request)
        colours = models.preview_colours(run.check) if previews else None
        text = encode_text(run, models.native, [guided])
        full_size = (size.height, size.width)
        first = composition_of(request, models)
        native = make_clip(
            run, models.native, request, text, full_size, "", windows, colours, first
        )
        if show_native:
            so_far = describe(request, models, run, windows["windows"])
            kept = crop_frames(native, *size.kept)
            show_native(NativeClip(kept, request.frame_rate, so_far))
        small = make_clip(run, models.base, of_base, text, base, "base_", {})
        upscaled = _upscale(run, upscaler, small, *size.kept)
        full = None
        if request.base_native == "on":
            full = make_clip(run, models.base, of_base, text, full_size, "base_native_", {})
    metadata = describe(request, models, run, windows["windows"])
    return Clips(native, upscaled, full, request.frame_rate, metadata)


def _upscale(
    run: RunState, upscaler: Any, frames: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Upscales frame by frame, so that it can be stopped between two."""
    bigger = np.empty((len(frames), height, width, 3), np.uint8)
    with run.stage("upscale"):
        for i, frame in enumerate(upscaler.stream(frames, height, width)):
            bigger[i] = frame
            run.tick("upscale", i + 1, len(frames), "frame")
    check_visible(bigger, f"The upscaler {upscaler.name}")
    return bigger


def compare(
    request: Request,
    models: Models,
    output_dir: Path | str,
    report: Callable[[Progress], None] = lambda progress: None,
    cancelled: Event | None = None,
) -> Result:
    """Makes and writes both clips: `generate`, then `write`, with their arguments and errors."""
    request = request.validate(models.preset)
    clips = generate(request, models, report, cancelled)
    result = write(clips, request, output_dir, report, cancelled)
    seconds = result.metadata["seconds"]
    models.estimator.observe(seconds["estimated"], seconds["measured"])
    return result
