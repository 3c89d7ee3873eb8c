"""Drafts: a first look at several seeds of a prompt, small and short, of which one is made large.

They are the base model's, at its own size. A seed is much the same scene at every size and length,
so that a draft shows where clouds, ridges and light will fall in the large clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from PIL import Image

from ..estimates.cost import gpu_duration
from ..files import create_folder, unique_directory
from ..presets import shown
from ..video import encode_video
from .clip import encode_text, enough_memory, job, make_clip
from .loading import Models
from .progress import Progress, RunState
from .request import MAX_SEED, Request
from .used_loras import use_loras

FRAMES = 5
MOST = 4
STAGES = ("text", "base_denoise", "base_decode")


@dataclass(frozen=True)
class DraftFrames:
    """A draft before it is written.

    Attributes:
        request: What makes it large: the prompt, the seed and what else decides the scene.
        frames: t h w 3, uint8.
    """

    request: Request
    frames: np.ndarray


@dataclass(frozen=True)
class Draft:
    """A draft's files.

    Attributes:
        request: As in `DraftFrames`.
        clip: An MP4 file.
        poster: A picture of it.
    """

    request: Request
    clip: Path
    poster: Path


def check_count(count: object, request: Request, models: Models) -> int:
    """How many drafts are made, 1 to `MOST`.

    Args:
        count: What was asked for.
        request: What would be made large, validated.
        models: What it would be made with.

    Raises:
        ValueError: For another number, with what so many large clips would take.
    """
    whole = isinstance(count, int) and not isinstance(count, bool)
    if whole and 1 <= count <= MOST:  # type: ignore[operator]
        return int(count)  # type: ignore[call-overload]
    cost = ""
    if whole and count > MOST:  # type: ignore[operator]
        each = sum(models.estimator.estimate(job(request, models)).values())
        cost = f" So many of {request.resolution} would take about {duration(count, each)} here."
    raise ValueError(f"The number of clips must be from 1 to {MOST}, not {shown(count)}.{cost}")


def duration(count: Any, seconds: float) -> str:
    """What clips take together, in the largest unit that fits."""
    try:
        total = count * seconds
    except OverflowError:
        return "for ever"
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if total >= 2 * length:
            return f"{total / length:,.0f} {unit}"
    return f"{total:.0f} s"


def draft_requests(request: Request, count: int) -> list[Request]:
    """Requests of so many seeds, from the request's own on."""
    one_scene = replace(request, noise="spectral")
    seeds = ((request.seed + i) % (MAX_SEED + 1) for i in range(count))
    return [replace(one_scene, seed=seed) for seed in seeds]


def estimate_drafts(request: Request, count: int, models: Models) -> dict[str, float]:
    """Seconds of each stage of drafts of a validated request."""
    short = replace(request, num_frames=FRAMES, base_native="off")
    stages = models.estimator.estimate(job(short, models))
    return {name: stages[name] * (1 if name == "text" else count) for name in STAGES}


def drafts_seconds_asked(request: Request, count: int, models: Models) -> int:
    """GPU seconds that drafts ask for."""
    return gpu_duration(estimate_drafts(request, count, models))


def generate_drafts(
    request: Request,
    count: int,
    models: Models,
    report: Callable[[Any], None],
    cancelled: Event,
) -> None:
    """Makes drafts, one after the other.

    Args:
        request: What would be made large, validated.
        count: How many, see `check_count`.
        models: What to make them with.
        report: Called with the progress after each step, and with each `DraftFrames`.
        cancelled: Once set, the run stops within a step.

    Raises:
        Cancelled: if the run was stopped.
        RuntimeError: for a result that is black or not a number, or too little memory.
    """
    requests = draft_requests(request, count)
    estimated = estimate_drafts(request, 1, models)
    size = models.preset.base_size(request.aspect)
    with enough_memory(request, models):
        use_loras(models, request)
        text = None
        for number, one in enumerate(requests):

            def told(progress: Progress, number: int = number) -> None:
                fraction = (number + progress.fraction) / count
                message = f"Draft {number + 1} of {count}: {progress.message.partition(': ')[2]}"
                report(replace(progress, fraction=fraction, message=message))

            run = RunState(told, cancelled, estimated)
            short = replace(one, num_frames=FRAMES).of_base
            text = text or encode_text(run, models.base, [short])
            frames = make_clip(run, models.base, short, text, size, "base_", {})
            report(DraftFrames(one, frames))


def draft_folder(request: Request, output_dir: Path) -> Path:
    """A new folder for the files of drafts, without the prompt, which addresses would show."""
    return unique_directory(create_folder(output_dir), f"drafts-{request.seed}")


def write_draft(draft: DraftFrames, folder: Path) -> Draft:
    """Writes a draft's clip and picture.

    Raises:
        OSError: If there is no room, or no permission to write.
    """
    written = draft_of(draft.request, folder)
    encode_video(draft.frames, written.clip, draft.request.frame_rate)
    picture = Image.fromarray(draft.frames[len(draft.frames) // 2])
    picture.save(written.poster, quality=90)
    return written


def draft_of(request: Request, folder: Path) -> Draft:
    """The files in a folder that belong to a draft, whether they are there or not."""
    return Draft(request, folder / f"{request.seed}.mp4", folder / f"{request.seed}.jpg")
