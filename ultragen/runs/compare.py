"""One prompt and one seed → a native clip and an upscaled one, with timings and metadata.

`generate` needs the accelerator and makes frames; `write` needs only the CPU and makes files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from ..estimates.cost import STAGES, Job
from ..hardware import is_out_of_memory
from .metadata import describe
from .loading import Models, load_models
from .progress import Cancelled, Progress, RunState, wait_for_devices
from .request import Request
from ..files import write_json
from ..video import crop_rows, encode_video, side_by_side, unique_directory

__all__ = [
    "Cancelled",
    "Clips",
    "Models",
    "Progress",
    "Request",
    "Result",
    "compare",
    "generate",
    "job",
    "load_models",
    "write",
]

BLACK = 2  # brightest value, of 255, of a clip that counts as black
POSTER_WIDTH = 480


@dataclass(frozen=True)
class Clips:
    """What a run made, before it is written.

    Attributes:
        native: UltraGen's frames, t h w 3, uint8.
        upscaled: The base model's frames, upscaled, t rows w 3, uint8.
        base_native: The base model's frames at the full size, t h w 3, or None.
        fps: Frames a second.
        metadata: What made them, with the seconds by stage so far.
    """

    native: np.ndarray
    upscaled: np.ndarray
    base_native: np.ndarray | None
    fps: int
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The files of a run, alone in one folder.

    Attributes:
        native: UltraGen's clip.
        upscaled: The base model's clip, upscaled.
        side_by_side: Both in one, with labels.
        base_native: The base model's clip at the full size, or None.
        poster: A small picture of the native clip.
        metadata_path: The settings that reproduce the run.
        metadata: The same as values.
    """

    native: Path
    upscaled: Path
    side_by_side: Path
    base_native: Path | None
    poster: Path
    metadata_path: Path
    metadata: dict[str, Any]


def job(request: Request, models: Models) -> Job:
    """What the cost of a validated request depends on."""
    size, preset = request.size, models.preset
    return Job(
        height=size.height,
        width=size.width,
        base_height=preset.base_height,
        base_width=preset.base_width,
        num_frames=request.frames,
        windows=resolve_windows(request, models),
        steps=request.num_inference_steps or preset.num_inference_steps,
        passes=1 if request.guidance_scale == 1 or models.guidance_device else 2,
        upscaler=request.upscaler,
        base_native=request.base_native,
        pixels_per_token=preset.pixels_per_token,
        full_share=_full_share(models.native.transformer),
    )


def _full_share(transformer: Any) -> float:
    kinds = transformer.layer_kinds
    return kinds.count("full") / len(kinds)


def resolve_windows(request: Request, models: Models) -> int:
    """K of a validated request, with `auto` settled by the model."""
    grid = request.token_grid(models.preset)
    return models.native.transformer.resolve_windows(request.windows, *grid)


def generate(
    request: Request,
    models: Models,
    report: Callable[[Progress], None] = lambda progress: None,
    cancelled: Event | None = None,
) -> Clips:
    """Makes the frames: denoising, decoding and upscaling.

    Args:
        request: What to make.
        models: What to make it with.
        report: Called after each step.
        cancelled: Once set, the run stops within a step.

    Raises:
        ValueError: for a setting that can't be used.
        Cancelled: if the run was stopped.
        RuntimeError: for a result that is black or not a number, or too little memory.
    """
    request = request.validate(models.preset)
    models.check_memory(request)
    estimated = models.estimator.estimate(job(request, models))
    run = RunState(report, cancelled or Event(), estimated)
    size, base = request.size, (models.preset.base_height, models.preset.base_width)
    windows = {"windows": resolve_windows(request, models)}

    with enough_memory(request, models):
        text = encode_text(run, models.native, [request])
        full_size = (size.height, size.width)
        native = make_clip(run, models.native, request, text, full_size, "", windows)
        small = make_clip(run, models.base, request, text, base, "base_", {})
        upscaled = _upscale(run, models.upscaler(request.upscaler), small, size.rows, size.width)
        full = None
        if request.base_native == "on":
            full = make_clip(run, models.base, request, text, full_size, "base_native_", {})
    metadata = describe(request, models, run, windows["windows"])
    return Clips(native, upscaled, full, models.preset.fps, metadata)


def encode_text(run: RunState, pipe: Any, requests: Sequence[Request]) -> dict[str, Any]:
    """The prompts' embeddings, which both models share: they have one text encoder. Requests
    differ in prompt and seed alone."""
    request = requests[0]
    run.tick("text", 0, 1, "text")
    guided = (request.guidance_scale or 0) > 1
    with run.stage("text"):
        prompts = [one.prompt for one in requests]
        positive, negative = pipe.encode_prompt(prompts, request.negative_prompt, guided)
        wait_for_devices()
    return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


def make_clip(
    run: RunState,
    pipe: Any,
    request: Request,
    text: dict[str, Any],
    size: tuple[int, int],
    prefix: str,
    windows: dict,
) -> np.ndarray:
    """Denoises and decodes one clip: frames t h w 3, uint8."""
    [frames] = make_clips(run, pipe, [request], text, size, prefix, windows)
    return frames


def make_clips(
    run: RunState,
    pipe: Any,
    requests: Sequence[Request],
    text: dict[str, Any],
    size: tuple[int, int],
    prefix: str,
    windows: dict,
) -> list[np.ndarray]:
    """Denoises clips together and decodes one after the other: frames t h w 3 of each, uint8.
    Their requests differ in prompt and seed alone, and `text` is what `encode_text` gave."""
    import torch

    denoise, decode = f"{prefix}denoise", f"{prefix}decode"
    request = requests[0]
    steps = request.num_inference_steps or 0

    def after_step(pipe: Any, step: int, timestep: Any, kwargs: dict) -> dict:
        run.tick(denoise, step + 1, steps, "step")
        return kwargs

    noise = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
    run.tick(denoise, 0, steps, "step")
    with run.stage(denoise):
        latents = pipe(
            prompt=None,
            height=size[0],
            width=size[1],
            num_frames=request.num_frames,
            num_inference_steps=steps,
            guidance_scale=request.guidance_scale,
            generator=noise if len(requests) > 1 else noise[0],
            callback_on_step_end=after_step,
            output_type="latent",
            **text,
            **windows,
        ).frames
    clips = [np.empty((request.frames, *size, 3), np.uint8) for _ in requests]
    with run.stage(decode), torch.no_grad():
        parts = latents.split(1) if len(requests) > 1 else [latents]
        for frames, clip in zip(clips, parts, strict=True):
            done = 0
            for piece in pipe.decode_stream(clip):
                pictures = piece[0].permute(1, 2, 3, 0).mul(255).round().byte().cpu().numpy()
                frames[done : done + len(pictures)] = pictures
                done += len(pictures)
                run.tick(decode, done, request.frames, "frame")
    for frames in clips:
        check_visible(frames, STAGES[decode].split(":")[0])
    return clips


def check_visible(frames: np.ndarray, name: str) -> None:
    """Checks that a clip is not black.

    Raises:
        RuntimeError: if no frame has anything in it.
    """
    if frames.max() <= BLACK:
        raise RuntimeError(f"{name}: every frame is black. Try another seed or other settings.")


def _upscale(
    run: RunState, upscaler: Any, frames: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Upscales frame by frame, so that it can be stopped between two."""
    bigger = np.empty((len(frames), height, width, 3), np.uint8)
    with run.stage("upscale"):
        for i, frame in enumerate(upscaler.stream(frames, height, width)):
            bigger[i] = frame
            run.tick("upscale", i + 1, len(frames), "frame")
    return bigger


@contextmanager
def enough_memory(request: Request, models: Models) -> Iterator[None]:
    """Says what to change when the memory is not enough."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller: list[str] = []
        if models.memory is not None:
            name = request.size.name
            smaller = models.memory.clearly_smaller(models.placement, name, request.frames)
        instead = " or ".join(smaller) or "a smaller resolution or fewer frames"
        raise RuntimeError(
            f"There is not enough memory for this size: choose {instead}, switch the base model at "
            "full size off, or stop what else takes memory there."
        ) from error


def write(
    clips: Clips,
    request: Request,
    output_dir: Path | str,
    report: Callable[[Progress], None] = lambda progress: None,
    cancelled: Event | None = None,
) -> Result:
    """Writes the clips and the metadata into a new folder of their own.

    Args:
        clips: What `generate` returned.
        request: What it was asked for, validated.
        output_dir: Parent of the new folder.
        report: Called after each frame.
        cancelled: Once set, writing stops and the folder is removed.

    Raises:
        OSError: if there is no room, or no permission to write; nothing is left behind.
        Cancelled: if the run was stopped; nothing is left behind.
    """
    metadata = json.loads(json.dumps(clips.metadata))
    run = RunState(report, cancelled or Event(), metadata["seconds"]["estimated"])
    run.seconds = metadata["seconds"]["measured"]
    stem = f"{request.resolution}-{request.seed}-{request.prompt}"
    folder = unique_directory(Path(output_dir), stem)
    try:
        return _write(clips, request, metadata, run, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(clips: Clips, request: Request, metadata: dict, run: RunState, folder: Path) -> Result:
    rows = request.size.rows
    native, upscaled = crop_rows(clips.native, rows), clips.upscaled
    labels = (metadata["labels"]["native"], metadata["labels"]["upscaled"])
    parts: dict[str, Iterable[np.ndarray]] = {
        "native": native,
        "upscaled": upscaled,
        "side_by_side": side_by_side(native, upscaled, labels),
    }
    if clips.base_native is not None:
        parts["base_native"] = crop_rows(clips.base_native, rows)
    total, written = len(parts) * len(native), 0

    def counted(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal written
        for frame in frames:
            run.tick("encode", written, total, "frame")
            written += 1
            yield frame

    began = perf_counter()
    files = {
        name: encode_video(counted(frames), folder / f"{name}.mp4", clips.fps)
        for name, frames in parts.items()
    }
    run.check()
    run.seconds["encode"] = perf_counter() - began
    metadata["seconds"]["measured"] = run.seconds
    metadata["seconds"]["total"] = sum(run.seconds.values())
    metadata["files"] = {name: path.name for name, path in files.items()}
    poster = Image.fromarray(native[len(native) // 2])
    poster.thumbnail((POSTER_WIDTH, POSTER_WIDTH))
    poster.save(folder / "poster.jpg", quality=88)
    path = folder / "metadata.json"
    write_json(path, metadata)
    return Result(
        files["native"],
        files["upscaled"],
        files["side_by_side"],
        files.get("base_native"),
        folder / "poster.jpg",
        path,
        metadata,
    )


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
