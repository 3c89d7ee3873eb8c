"""`batch`: a clip for each prompt of a file, on one GPU or many."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..presets import ASPECTS, EVERY_STEP
from . import console
from .options import (
    Aspect,
    Cache,
    Fast,
    Fp8,
    FrameRate,
    GuidanceInterval,
    GuidanceScale,
    Loras,
    Model,
    NegativePrompt,
    NoiseOption,
    NumFrames,
    NumInferenceSteps,
    Progressive,
    Ray,
    ResolutionOption,
    Shift,
    Solver,
    Windows,
    Workers,
    app,
    as_typed,
    check_fp8,
    fast_settings,
)

if TYPE_CHECKING:  # torch is imported inside the command
    from ..batch.clip_folder import Outcome, Results
    from ..batch.maker import Settings
    from ..batch.prompt_files import Clip
    from ..dataset.encoding_processes import Processes
    from ..runs.choice import Choice


@app.command()
def batch(
    context: typer.Context,
    prompts: Annotated[
        Path,
        typer.Argument(
            help="A prompt a line (.txt), or a table (.csv, .jsonl, .json, .parquet) with a column "
            "prompt and any settings as others."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the clips; a run that was stopped goes on there.")
    ] = Path("clips"),
    name: Annotated[
        str | None,
        typer.Option(
            help="What clips are called: {index:05d}, {sample}, {seed}, {prompt:.40} or any "
            "column; without it {index:05d}, with --num-seeds {index:05d}-{sample}."
        ),
    ] = None,
    num_seeds: Annotated[int, typer.Option(min=1, help="Clips of each prompt.")] = 1,
    seed: Annotated[
        int,
        typer.Option(help="Of the first clip; each one after it has the next, or its row's own."),
    ] = 0,
    resolution: ResolutionOption = None,
    aspect: Aspect = None,
    windows: Windows = "auto",
    num_frames: NumFrames = None,
    fps: FrameRate = None,
    num_inference_steps: NumInferenceSteps = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: GuidanceInterval = EVERY_STEP,
    cache: Cache = "off",
    shift: Shift = None,
    solver: Solver = "own",
    progressive: Progressive = "auto",
    fast: Fast = False,
    fp8: Fp8 = False,
    lora: Loras = None,
    negative_prompt: NegativePrompt = None,
    noise: NoiseOption = "spectral",
    ray: Ray = None,
    workers: Workers = None,
    model: Model = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make all clips again.")] = False,
) -> None:
    """Make clips of many prompts.

    On several GPUs: accelerate launch -m ultragen batch ..., or --ray.
    """
    if workers is not None and ray is None:
        raise ValueError("--workers is for --ray: add --ray auto, or leave it out.")
    console.quiet_libraries()
    if fp8:
        check_fp8(model)
    from ..batch.clip_folder import Results
    from ..batch.maker import Settings
    from ..dataset.encoding_processes import Processes
    from ..runs.choice import choose

    # First, since each process asks its own GPU what fits.
    processes = Processes.join()
    try:
        choice = choose(model, lora or None)
        defaults = {
            "seed": seed,
            "resolution": resolution,
            "aspect": aspect or ASPECTS[0],
            "fps": fps,
            "windows": windows,
            "num_frames": num_frames,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "cache": cache,
            "shift": shift,
            "solver": solver,
            "progressive": progressive,
            "negative_prompt": negative_prompt,
            "noise": noise,
            # Those that are named are used by all clips; None leaves it to the machine.
            "loras": {each.name: each.strength for each in choice.preset.loras} if lora else None,
            **fast_settings(context, fast),
        }
        name = name or ("{index:05d}" if num_seeds == 1 else "{index:05d}-{sample}")
        clips = read(prompts, defaults, choice.preset, num_seeds, name, processes.first)
        known, choice = choice.preset, with_weights(choice, processes, out.absolute(), ray)
        if choice.preset != known:  # distilled weights have steps of their own
            clips = read(prompts, defaults, choice.preset, num_seeds, name, False)
        if fast:
            check_fast(clips, prompts)
        # By name: another machine must not choose another model than the one that is listed for.
        settings = Settings(out.absolute(), prompts.name, choice.name, lora or None, fp8)
        results = Results(settings.out)
        if processes.first:
            results.open(clips, choice.preset.name, overwrite)
        processes.wait()
        outcomes, mine = start(clips, settings, processes, ray, workers)
        follow(outcomes, mine, results)
        processes.wait()
        if processes.first:
            finish(clips, out, results)
    finally:
        processes.leave()


def read(
    prompts: Path, defaults: dict[str, Any], preset: Any, num_seeds: int, name: str, told: bool
) -> list[Clip]:
    """The clips that are asked for.

    Args:
        told: Whether what can't be used, and what is carried on, is printed.

    Raises:
        ValueError: A part of the file can't be used.
    """
    from ..batch.prompt_files import read_prompts

    found = read_prompts(prompts, defaults, preset, num_seeds, name)
    if told:
        for fault in found.faults:
            print(f"{prompts}, line {fault.line}: {fault.reason}", file=sys.stderr)
        if found.carried:
            print(f"Kept in the metadata, no settings: {', '.join(found.carried)}", flush=True)
    if found.faults:
        raise ValueError(
            f"{len(found.faults)} of the lines above can't be used, so nothing was made: correct "
            f"{prompts}."
        )
    return found.clips


def with_weights(choice: Choice, processes: Processes, out: Path, ray: str | None) -> Choice:
    """The choice with the settings that its weights bring, which may have to be downloaded.

    Raises:
        ValueError: As `with_fetched_weights`, or `fetch_on_ray`.
        OSError: Likewise.
    """
    from ..batch.on_ray import fetch_on_ray
    from ..runs.choice import weights_are_here, with_fetched_weights

    if ray is not None:
        return choice if weights_are_here(choice) else fetch_on_ray(choice, out, ray)
    if not processes.first:  # they are downloaded once
        processes.wait()
    choice = with_fetched_weights(choice)
    if processes.first:
        processes.wait()
    return choice


def check_fast(clips: Sequence[Clip], prompts: Path) -> None:
    """Checks that --fast is of use for all clips.

    Raises:
        ValueError: It is not, with the first line that it is not for.
    """
    from ..runs.request import check_fast as check

    for clip in clips:
        try:
            check(clip.request)
        except ValueError as error:
            raise ValueError(f"{prompts}, line {clip.line}: {as_typed(error)}") from error


def start(
    clips: list[Clip],
    settings: Settings,
    processes: Processes,
    ray: str | None,
    workers: int | None,
) -> tuple[Iterable[Outcome], list[Clip]]:
    """What becomes of the clips that this process looks after, one by one, and these."""
    from ..batch.maker import Maker
    from ..batch.on_ray import make_on_ray

    if ray is None:
        mine = clips[processes.rank :: processes.count]
        maker = Maker(settings)
        return (maker.make(clip) for clip in mine), mine
    if processes.count > 1:
        raise ValueError("Ray starts processes of its own: leave out accelerate, or --ray.")
    from ..batch.clip_folder import Results

    results = Results(settings.out)
    # None of what is there has to go to another machine.
    lacking = [clip for clip in clips if not results.has(clip.name)]
    if not lacking:
        return (), lacking
    return make_on_ray(lacking, settings, ray, workers, partial(print, flush=True)), lacking


def follow(outcomes: Iterable[Outcome], mine: Sequence[Clip], results: Results) -> None:
    """Prints what becomes of clips as it comes, notes what failed.

    Raises:
        OSError: No further clip can be made.
    """
    clips = {clip.name: clip for clip in mine}
    began = perf_counter()
    made = 0
    for number, outcome in enumerate(outcomes, start=1):
        clip = clips[outcome.name]
        if outcome.state == "stopped":
            reason = outcome.reason.rstrip(".")
            raise OSError(f"{reason}. What is made is kept: the same command goes on.")
        if outcome.state == "failed":
            results.note_failure(clip, outcome.reason)
        made += outcome.state == "made"
        said = outcome.state + (f" ({outcome.reason})" if outcome.reason else "")
        pace = rate(made, perf_counter() - began, len(clips) - number)
        print(f"{number}/{len(clips)} {outcome.name} {said}{pace}", flush=True)


def rate(made: int, seconds: float, left: int) -> str:
    """How fast clips are made, and how long the others will take."""
    if not made:
        return ""
    minutes = left * seconds / made / 60
    remaining = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
    return f", {made / seconds * 3600:.0f} clips an hour, {remaining} left"


def finish(clips: list[Clip], out: Path, results: Results) -> None:
    """Writes the table and says what there is.

    Raises:
        RuntimeError: Some clips failed.
    """
    from ..batch.clip_folder import FAILED, TABLE

    results.forget_attempts()
    count = results.write_table(clips)
    print(f"Written: {count} of {len(clips)} clips to {out}, with {TABLE}")
    if failures := results.failures():
        raise RuntimeError(
            f"{failures} clips failed: {out / FAILED} says why; the same command tries them again."
        )
