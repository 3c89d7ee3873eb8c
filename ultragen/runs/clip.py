"""The steps of one clip, which every kind of run is put together from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..estimates.cost import STAGES, Job, decoding_processes
from ..hardware import is_out_of_memory
from ..pictures import is_black, to_frames
from ..presets import steps_taken
from ..sampling.caches import cached, computed_passes
from .loading import Models
from .progress import RunState, wait_for_devices
from .request import Request

if TYPE_CHECKING:
    from ..sampling.latent_colours import LatentColours


def job(request: Request, models: Models) -> Job:
    """What the cost of a validated request depends on."""
    size, preset = request.size, models.preset
    steps = request.num_inference_steps or preset.num_inference_steps
    first = request.first_size(preset)
    base_height, base_width = preset.base_size(request.aspect)
    kinds = models.native.transformer.layer_kinds
    base, base_forwards = request.of_base, None
    if base != request or first:
        base_forwards = (base.num_inference_steps or 0) * mean_passes(base, models, models.base)
    composition, left_out = None, 0
    if first is not None:
        small = replace(request, resolution=preset.first_size, progressive="off", windows="auto")
        composition = job(small, models)
        left_out = steps - steps_taken(steps)
    return Job(
        height=size.height,
        width=size.width,
        base_height=base_height,
        base_width=base_width,
        num_frames=request.frames,
        windows=resolve_windows(request, models),
        steps=steps - left_out,
        passes=mean_passes(request, models, left_out=left_out),
        upscaler=request.upscaler,
        base_native=request.base_native,
        pixels_per_token=preset.pixels_per_token,
        full_share=kinds.count("full") / len(kinds),
        t3_windows=tuple(kind for kind in kinds if isinstance(kind, tuple)),
        processes=models.processes,
        decoding_processes=decoding_processes(preset.name, models.processes),
        base_forwards=base_forwards,
        composition=composition,
    )


@dataclass(frozen=True)
class Composition:
    """The smaller clip that a large one takes its composition from.

    Attributes:
        size: Its rows and columns in pixels.
        share: Its part of the time that denoising both takes.
    """

    size: tuple[int, int]
    share: float


def composition_of(request: Request, models: Models) -> Composition | None:
    """What a validated request's clip takes its composition from; None where it begins at its own
    size."""
    first, both = request.first_size(models.preset), job(request, models)
    if first is None or both.composition is None:
        return None
    small, all_of_it = (
        models.estimator.estimate(each)["denoise"] for each in (both.composition, both)
    )
    return Composition((first.height, first.width), small / all_of_it if all_of_it else 0.0)


def mean_passes(request: Request, models: Models, pipe: Any = None, left_out: int = 0) -> float:
    """Forward passes of a step that one device computes after the other, as a mean of a validated
    request's steps.

    Args:
        request: A request; of the base model's clips what `Request.of_base` is.
        models: What it is made with.
        pipe: Which of both pipelines; None is the native one.
        left_out: Steps that are not taken, the first ones.
    """
    steps = (request.num_inference_steps or 1) - left_out
    # A second device takes the passes that guidance adds.
    guided = 0 if models.guidance_device else guided_steps(request, models, pipe, left_out)
    return sum(computed_passes(request.cache, passes) for passes in (steps, guided)) / steps


def guided_steps(request: Request, models: Models, pipe: Any = None, left_out: int = 0) -> int:
    """Steps of a validated request in which guidance is computed; arguments as in `mean_passes`."""
    guidance, steps = request.guidance, request.num_inference_steps or 1
    if guidance.scale <= 1 or guidance.interval == (0.0, 1.0):
        return steps - left_out if guidance.scale > 1 else 0
    rows, columns = request.token_grid(models.preset)
    import torch

    from ..sampling.solvers import chosen_scheduler, set_noise_levels

    own = (models.native if pipe is None else pipe).scheduler
    # A copy: a clip may be using the scheduler meanwhile.
    scheduler = deepcopy(chosen_scheduler(own, request.solver, request.shift))
    set_noise_levels(scheduler, steps, rows * columns, torch.device("cpu"))
    return sum(guidance.scale_at(level) > 1 for level in scheduler.sigmas[left_out:-1].tolist())


def resolve_windows(request: Request, models: Models) -> int | None:
    """K of a validated request, with `auto` settled by the model; None where it has none."""
    grid = request.token_grid(models.preset)
    return models.native.transformer.resolve_windows(request.windows, *grid)


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
    colours: LatentColours | None = None,
    first: Composition | None = None,
) -> np.ndarray:
    """Denoises and decodes one clip: frames t h w 3, uint8. Arguments and errors as in
    `make_clips`."""
    [frames] = make_clips(run, pipe, [request], text, size, prefix, windows, colours, first)
    return frames


def make_clips(
    run: RunState,
    pipe: Any,
    requests: Sequence[Request],
    text: dict[str, Any],
    size: tuple[int, int],
    prefix: str,
    windows: dict,
    colours: LatentColours | None = None,
    first: Composition | None = None,
) -> list[np.ndarray]:
    """Denoises clips together and decodes one after the other: frames t h w 3 of each, uint8.

    Args:
        run: Where progress and seconds go, and what stops the run within a step.
        pipe: The native pipeline or the base model's.
        requests: Validated requests that differ in prompt and seed alone.
        text: What `encode_text` gave for them.
        size: Rows and columns in pixels.
        prefix: What the names of its stages begin with in `STAGES`.
        windows: The setting `windows` of a pipeline that has any, else empty.
        colours: What previews of the first clip are made with; None makes none.
        first: What these take their composition from; None for nothing.

    Raises:
        RuntimeError: if a clip is black or not a number.
        Cancelled: if the run was stopped.
    """
    import torch

    from ..sampling.latent_colours import DenoisingPreview

    denoise, decode = f"{prefix}denoise", f"{prefix}decode"
    request = requests[0]
    steps = request.num_inference_steps or 0
    total = steps if first is None else steps + steps_taken(steps)
    if request.guidance.scale <= 1:  # they may have been encoded for the other model's clip
        text = text | {"negative_prompt_embeds": None}

    sampler = pipe.with_sampling(request.solver, request.shift)

    def denoised(
        size: tuple[int, int], here: int, before: int, begins: float, ends: float, **more: Any
    ) -> Any:
        """Latents of the clips at this size, in so many steps after others, which take from one
        part of the time to another."""
        preview = DenoisingPreview(colours) if colours else None

        def after_step(pipe: Any, step: int, timestep: Any, kwargs: dict) -> dict:
            picture = None
            if preview is not None:
                picture = preview.after_step(step, kwargs["latents"], pipe.scheduler.sigmas)
            part = begins + (ends - begins) * (step + 1) / here
            run.tick(denoise, before + step + 1, total, "step", picture, part)
            return kwargs

        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        return sampler(
            prompt=None,
            height=size[0],
            width=size[1],
            num_frames=request.num_frames,
            num_inference_steps=steps,
            guidance_scale=request.guidance_scale,
            guidance_interval=request.guidance.interval,
            generator=generators if len(requests) > 1 else generators[0],
            noise=request.noise,
            callback_on_step_end=after_step,
            output_type="latent",
            **text,
            **more,
        ).frames

    clip_name = STAGES[decode].split(":")[0]
    run.tick(denoise, 0, total, "step")
    with run.stage(denoise), _told_of(clip_name), cached(pipe.transformer, request.cache):
        if first is None:
            latents = denoised(size, steps, 0, 0.0, 1.0, **windows)
        else:
            small = denoised(first.size, steps, 0, 0.0, first.share)
            more = {**windows, "composition": small}
            latents = denoised(size, total - steps, steps, first.share, 1.0, **more)
    clips = [np.empty((request.frames, *size, 3), np.uint8) for _ in requests]
    with run.stage(decode), _told_of(clip_name), torch.no_grad():
        parts = latents.split(1) if len(requests) > 1 else [latents]
        for frames, clip in zip(clips, parts, strict=True):
            done = 0
            for piece in pipe.decode_stream(clip):
                pictures = to_frames(piece[0])
                frames[done : done + len(pictures)] = pictures
                done += len(pictures)
                run.tick(decode, done, request.frames, "frame")
    for frames in clips:
        check_visible(frames, f"{clip_name}: the autoencoder")
    return clips


@contextmanager
def _told_of(clip_name: str) -> Iterator[None]:
    """Says of which clip a part of the model gave no picture."""
    from ..sampling.sampler import GenerationError

    try:
        yield
    except GenerationError as error:
        raise GenerationError(f"{clip_name}: {error}") from error


def check_visible(frames: np.ndarray, part: str) -> None:
    """Checks that a clip is not black.

    Args:
        frames: uint8, of any shape.
        part: What gave them, for the message.

    Raises:
        RuntimeError: if no frame has anything in it.
    """
    if is_black(frames):
        raise RuntimeError(
            f"{part} gave a clip of which every frame is black. Try another seed or other settings."
        )


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
            smaller = models.memory.clearly_smaller(
                models.placement, name, request.frames, request.aspect
            )
        instead = " or ".join(smaller) or "a smaller resolution or fewer frames"
        raise RuntimeError(
            f"There is not enough memory for this size: choose {instead}, switch the base model at "
            "full size off, or stop what else takes memory there."
        ) from error
