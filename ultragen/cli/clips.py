"""Commands that make clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from ..presets import EVERY_STEP
from . import console
from .options import (
    Aspect,
    BaseGuidance,
    BaseSteps,
    Cache,
    Fast,
    Fp8,
    FrameRate,
    From,
    GuidanceDevice,
    GuidanceInterval,
    GuidanceScale,
    Height,
    Loras,
    Model,
    NegativePrompt,
    NoiseOption,
    NumFrames,
    NumInferenceSteps,
    Overwrite,
    Progressive,
    Prompt,
    ResolutionOption,
    Seed,
    Shift,
    Solver,
    Width,
    Windows,
    app,
    asked_size,
    load,
    load_for,
    make_request,
    print_seconds,
    read_recipe,
    say_what_differs,
    settings_of,
)

RESULTS = (
    "native.mp4", "upscaled.mp4", "side_by_side.mp4", "base_native.mp4", "poster.jpg",
    "metadata.json",
)  # fmt: skip


@app.command()
def generate(
    context: typer.Context,
    prompt: Prompt = None,
    from_: From = None,
    resolution: ResolutionOption = None,
    windows: Windows = "auto",
    num_frames: NumFrames = None,
    seed: Seed = 0,
    num_inference_steps: NumInferenceSteps = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: GuidanceInterval = EVERY_STEP,
    cache: Cache = "off",
    shift: Shift = None,
    solver: Solver = "own",
    progressive: Progressive = "auto",
    fast: Fast = False,
    guidance_device: GuidanceDevice = None,
    fp8: Fp8 = False,
    lora: Loras = None,
    negative_prompt: NegativePrompt = None,
    noise: NoiseOption = "spectral",
    out: Annotated[
        Path,
        typer.Option(
            help="The file: .mp4, .webm, or for chats .gif or .webp, which are made smaller; "
            "settings go beside it."
        ),
    ] = Path("clip.mp4"),
    model: Model = None,
    overwrite: Overwrite = False,
    aspect: Aspect = None,
    width: Width = None,
    height: Height = None,
    fps: FrameRate = None,
) -> None:
    """Make the native clip.

    Beside OUT.mp4 stands OUT.json, with what makes it again; MP4 and WebM carry that too. Either
    file is taken by --from.
    """
    from ..video import check_suffix

    check_suffix(out)
    sidecar = out.with_suffix(".json")
    recipe = read_recipe(from_)
    settings = settings_of(
        context,
        recipe,
        fast,
        prompt=prompt,
        **asked_size(resolution, aspect, width, height),
        windows=windows,
        num_frames=num_frames,
        seed=seed,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        cache=cache,
        shift=shift,
        solver=solver,
        progressive=progressive,
        negative_prompt=negative_prompt,
        noise=noise,
        fps=fps,
    )
    from ..runs.process_group import joined, processes

    if processes() > 1 and guidance_device is not None:
        raise ValueError(
            f"--guidance-device {guidance_device} is for one process: leave it out, and "
            f"{processes()} share both passes of a step out."
        )
    with joined() as rank, console.silence_unless(rank == 0):
        request = make_request(model, lora or None, fast, **settings)
        if rank == 0:
            console.check_free(out.parent, (out.name, sidecar.name), overwrite)
        began = perf_counter()
        models = load_for(request, model, guidance_device, fp8, lora or None)
        say_what_differs(recipe, models)
        if processes() > 1:
            models.enable_context_parallel(processes())
        loading = perf_counter() - began
        from ..runs.native import estimate_native, generate_native
        from ..runs.write import write_native

        if rank > 0:  # it computes its share, and that is all
            generate_native(request, models)
            return
        if processes() > 1:
            expected = sum(estimate_native(request, models).values())
            print(f"{f'Expected of {processes()} processes':<40}{expected:8.1f} s", flush=True)
        with console.whole_results(out.parent) as folder:
            with console.progress_bar() as show:
                clip = generate_native(request, models, lambda p: show(p.fraction, p.message))
            write_native(clip, folder / out.name, loading)
        print_seconds(clip.metadata)
        print(f"Written: {out} ({out.stat().st_size / 1e6:.2f} MB), {sidecar}")


@app.command()
def compare(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    prompt: Prompt = None,
    from_: From = None,
    resolution: ResolutionOption = None,
    windows: Windows = "auto",
    num_frames: NumFrames = None,
    seed: Seed = 0,
    num_inference_steps: NumInferenceSteps = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: GuidanceInterval = EVERY_STEP,
    cache: Cache = "off",
    shift: Shift = None,
    solver: Solver = "own",
    progressive: Progressive = "auto",
    fast: Fast = False,
    guidance_device: GuidanceDevice = None,
    fp8: Fp8 = False,
    lora: Loras = None,
    negative_prompt: NegativePrompt = None,
    noise: NoiseOption = "spectral",
    upscaler: Annotated[
        str, typer.Option(help="lanczos, network, or a weights file that spandrel reads.")
    ] = "network",
    base_native: Annotated[
        bool, typer.Option("--base-native", help="Run the base model at the full size too.")
    ] = False,
    base_num_inference_steps: BaseSteps = None,
    base_guidance_scale: BaseGuidance = None,
    model: Model = None,
    overwrite: Overwrite = False,
    aspect: Aspect = None,
    width: Width = None,
    height: Height = None,
    fps: FrameRate = None,
) -> None:
    """Make the native clip and the upscaled one.

    Both have the same prompt and seed; a third file shows them side by side.
    """
    recipe = read_recipe(from_)
    settings = settings_of(
        context,
        recipe,
        fast,
        prompt=prompt,
        **asked_size(resolution, aspect, width, height),
        windows=windows,
        num_frames=num_frames,
        seed=seed,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        cache=cache,
        shift=shift,
        solver=solver,
        progressive=progressive,
        negative_prompt=negative_prompt,
        noise=noise,
        fps=fps,
        upscaler=upscaler,
        base_native="on" if base_native else "off",
        base_num_inference_steps=base_num_inference_steps,
        base_guidance_scale=base_guidance_scale,
    )
    request = make_request(model, lora or None, fast, **settings)
    console.check_free(out, RESULTS, overwrite)
    models = load_for(request, model, guidance_device, fp8, lora or None)
    say_what_differs(recipe, models)
    from ..runs import compare as comparison

    with console.whole_results(out, RESULTS) as folder:
        with console.progress_bar() as show:
            result = comparison.compare(
                request, models, folder, lambda p: show(p.fraction, p.message)
            )
        # The run has a folder of its own; here the user has named one.
        for path in result.native.parent.iterdir():
            path.replace(folder / path.name)
        result.native.parent.rmdir()
    print_seconds(result.metadata)
    files = (*result.metadata["files"].values(), result.poster.name, result.metadata_path.name)
    print(f"Written to {out}: {', '.join(files)}")


@app.command()
def sheets(
    out: Annotated[Path, typer.Option(help="Folder of the sheets.")] = Path("docs"),
    count_544p: Annotated[int, typer.Option("--count-544p", min=0, max=12)] = 12,
    count_1080p: Annotated[int, typer.Option("--count-1080p", min=0, max=12)] = 4,
    seed: Seed = 0,
    pieces: Annotated[
        Path, typer.Option(help="Finished pictures; a stopped run goes on from them.")
    ] = Path("outputs/sheets"),
    model: Model = None,
) -> None:
    """Make contact sheets of what the model draws: 544p and 1080p."""

    from ..runs.sheets import SHEETS, make_sheet

    models = load(model)
    for sheet, count in zip(SHEETS, (count_544p, count_1080p), strict=True):
        if count:
            with console.progress_bar() as show:
                path = make_sheet(replace(sheet, count=count), models, out, pieces, seed, show)
            print(f"Written: {path}", flush=True)
