"""`plan`: what many clips, or a training, will take of one GPU and of many."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..presets import ASPECTS, EMBEDDED_MODEL, PRESETS, ModelPreset, shown, steps_taken
from .options import (
    Aspect,
    GuidanceScale,
    NumFrames,
    NumInferenceSteps,
    Progressive,
    ResolutionOption,
    Windows,
    app,
    as_typed,
)

if TYPE_CHECKING:
    from ..estimates.coefficients import Coefficients
    from ..estimates.cost import Job
    from ..estimates.fleet import Plan
    from ..runs.request import Request

MODELS = ("wan", "t3-4k", "embedded")
LAYOUTS = ("released", "paper")
CARDS = ("here", "h100")
TRAINED_WINDOWS = "4"
MOST = 10**9  # prompts, clips, GPUs: beyond that it is a slip of the finger


@app.command()
def plan(
    prompts: Annotated[
        str | None, typer.Option(help="How many, or the file that `batch` will be given.")
    ] = None,
    num_seeds: Annotated[int, typer.Option(min=1, help="Clips of each prompt.")] = 1,
    train_clips: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Instead of prompts: clips of a training.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, max=MOST, help="Passes over these.")] = 1,
    resolution: ResolutionOption = None,
    aspect: Aspect = None,
    windows: Windows = "auto",
    num_frames: NumFrames = None,
    num_inference_steps: NumInferenceSteps = None,
    guidance_scale: GuidanceScale = None,
    progressive: Progressive = "auto",
    gpus: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Without it a table of 1 to 64.")
    ] = None,
    gpus_per_clip: Annotated[
        int,
        typer.Option(min=1, max=MOST, help="That make each clip together, by torchrun."),
    ] = 1,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = MODELS[0],
    layout: Annotated[
        str | None,
        typer.Option(
            help="Of wan's layers: released, as the published weights, or paper; without it "
            "released for clips, and paper for a training."
        ),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(
            help="here: GPUs like this machine's, or machines like this one where it has none; "
            "h100: those that were measured. Without it here if the model runs here."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what many clips, or a training, will take: hours, disk, energy."""
    from ..estimates.fleet import COUNTS

    if (prompts is None) == (train_clips is None):
        raise ValueError("Give --prompts, a number or a file, or else --train-clips.")
    if train_clips is not None and (num_inference_steps or guidance_scale) is not None:
        raise ValueError("A training has neither --steps nor --guidance: leave them out.")
    if train_clips is not None and progressive != "auto":
        raise ValueError("A training has no clips that come first: leave --progressive out.")
    if train_clips is not None and gpus_per_clip > 1:
        raise ValueError("A training has one GPU for each clip: leave --gpus-per-clip out.")
    if gpus is not None and gpus % gpus_per_clip:
        raise ValueError(
            f"--gpus {gpus} are no groups of {gpus_per_clip} GPUs: choose a multiple of "
            "--gpus-per-clip."
        )
    if train_clips is not None and model == "embedded":
        raise ValueError(
            "--train-clips counts trainings of wan: what embedded was trained with stands in "
            "docs/training.md."
        )
    layout = layout or LAYOUTS[train_clips is not None]
    for name, given, known in (("model", model, MODELS), ("layout", layout, LAYOUTS)):
        if given not in known:
            raise ValueError(f"--{name} {shown(given)} is not known: choose {' or '.join(known)}.")
    preset = _preset(model)
    defaults = {
        "resolution": resolution,
        "aspect": aspect or ASPECTS[0],
        # `train wan` has K = 4 at every size, unless it is told another.
        "windows": TRAINED_WINDOWS if train_clips and windows == "auto" else windows,
        "num_frames": num_frames,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "progressive": progressive,
    }
    requests = _requests(prompts, num_seeds, preset, defaults)
    _check_groups(requests, preset, gpus_per_clip)
    coefficients, device, watts = _card(model, card)
    counted = _jobs(requests, preset, layout, gpus_per_clip)
    jobs = {job: count for job, count in counted.items() if count}
    groups = tuple(gpus_per_clip * count for count in COUNTS)
    counts = tuple(n for n in groups if n <= COUNTS[-1]) if gpus is None else (gpus,)
    if train_clips is None:
        rows, facts = _clips(counts, jobs, coefficients, model, gpus_per_clip)
    else:
        [job] = jobs
        rows, facts = _training(counts, job, train_clips, epochs, coefficients)
    facts = {"on": device, **facts}
    if watts is None:
        facts["energy"] = "not known: no card here tells what it takes"
    else:
        facts["energy"] = f"at most, with {watts:.0f} W for each GPU"
    found = [
        {
            "gpus": row.gpus,
            "hours": row.seconds / 3600,
            "gpu_hours": row.gpu_hours,
            "kilowatt_hours": None if watts is None else row.energy(watts),
        }
        for row in rows
    ]
    print(json.dumps({**facts, "plan": found}, indent=2) if as_json else _table(facts, found))


# What is planned


def _preset(model: str) -> ModelPreset:
    if model != "embedded":
        return PRESETS[model]
    from ..runs.choice import choose

    return choose(model).preset


def _requests(
    prompts: str | None, num_seeds: int, preset: ModelPreset, defaults: dict[str, Any]
) -> list[tuple[Request, int]]:
    """What is asked for, and how often."""
    from ..batch.prompt_files import read_prompts
    from ..runs.request import Request

    if prompts is None or prompts.strip().isdecimal():
        number = int(prompts or 1)
        if not 0 < number <= MOST:
            raise ValueError(f"--prompts {prompts} can't be planned: give 1 to {MOST:,}.")
        try:
            request = Request(prompt="a lake", **defaults).validate(preset)
        except ValueError as error:
            raise as_typed(error) from error
        return [(request, number * num_seeds)]
    path = Path(prompts)
    if not path.is_file():
        raise ValueError(f"--prompts {shown(prompts)} is neither a number nor a file.")
    read = read_prompts(path, {"seed": 0, **defaults}, preset, num_seeds, "{index}-{sample}")
    if read.faults:
        first = read.faults[0]
        raise ValueError(
            f"{path} has {len(read.faults)} lines that `batch` would refuse: line {first.line}, "
            f"{first.reason}"
        )
    return [(clip.request, 1) for clip in read.clips]


def _check_groups(requests: list[tuple[Request, int]], preset: ModelPreset, together: int) -> None:
    """Checks that `generate` would make each clip by so many processes together.

    Raises:
        ValueError: as there.
    """
    from ..model import wan_1_3b
    from ..model.token_shares import check_grid, check_heads

    of_model = _embedded_transformer() if preset.name == "embedded" else wan_1_3b.TRANSFORMER
    check_heads(of_model["num_attention_heads"], together)
    for request, _ in requests:
        halved = request.guidance.scale > 1 and together % 2 == 0  # as `ProcessHalves` has them
        check_grid(request.token_grid(preset), together, halved)


def _embedded_transformer() -> dict[str, Any]:
    """The embedded model's settings."""
    return json.loads((EMBEDDED_MODEL / "transformer" / "config.json").read_text(encoding="utf-8"))


def _jobs(
    requests: list[tuple[Request, int]], preset: ModelPreset, layout: str, together: int
) -> dict[Job, int]:
    """How often each kind of clip is made."""
    found: dict[Job, int] = {}
    for request, count in requests:
        job = _job(request, preset, layout, together)
        found[job] = found.get(job, 0) + count
    return found


def _job(request: Request, preset: ModelPreset, layout: str, together: int = 1) -> Job:
    """Of a validated request, without the weights, by so many GPUs together."""
    from ..estimates.cost import Job, decoding_processes
    from ..model import wan_1_3b
    from ..model.windows import auto_windows
    from ..sampling.caches import computed_passes

    full_share, t3_windows = 0.0, ()
    window_size = wan_1_3b.RELEASED["window_size"]
    if preset.name == "embedded":
        window_size = _embedded_transformer()["window_size"]
    elif preset.name == "t3-4k":
        t3_windows = wan_1_3b.T3["t3_windows"]
    elif layout == "released":
        full_share = len(wan_1_3b.FULL_ATTENTION_LAYERS) / wan_1_3b.TRANSFORMER["num_layers"]
    count: int | None = None  # T3-Video's layers have their own
    if not t3_windows:
        asked = request.windows
        grid = request.token_grid(preset)
        count = auto_windows(*grid, window_size) if asked == "auto" else int(asked)
    base_height, base_width = preset.base_size(request.aspect)
    steps = request.num_inference_steps or preset.num_inference_steps
    each = 2 if (request.guidance_scale or 0) > 1 else 1
    composition, taken, base_forwards = None, steps, None
    if request.first_size(preset) is not None:
        small = replace(request, resolution=preset.first_size, progressive="off", windows="auto")
        composition, taken = _job(small, preset, layout, together), steps_taken(steps)
        base_forwards = each * computed_passes(request.cache, steps)
    return Job(
        height=request.size.height,
        width=request.size.width,
        base_height=base_height,
        base_width=base_width,
        num_frames=request.frames,
        windows=count,
        steps=taken,
        passes=computed_passes(request.cache, taken) / taken * each,
        upscaler=request.upscaler,
        base_native=request.base_native,
        pixels_per_token=preset.pixels_per_token,
        full_share=full_share,
        t3_windows=t3_windows,
        processes=together,
        decoding_processes=decoding_processes(preset.name, together),
        base_forwards=base_forwards,
        composition=composition,
    )


def _card(model: str, card: str | None) -> tuple[Coefficients, str, float | None]:
    """What a unit of work takes, on what, and the watts of its limit if it tells."""
    from ..estimates.coefficients import coefficients
    from ..estimates.estimator import Estimator
    from ..hardware import find_hardware, has_amx

    hardware = find_hardware()
    runs_here = hardware.device == "cuda" or model == "embedded"
    card = card or ("here" if runs_here else "h100")
    if card not in CARDS:
        raise ValueError(f"--card {shown(card)} is not known: choose {' or '.join(CARDS)}.")
    if card == "h100":
        return coefficients(model, "cuda"), "NVIDIA H100 80GB HBM3, as measured", None
    if not runs_here:
        raise ValueError(f"{model} needs a GPU, and there is none here: choose --card h100.")
    known = coefficients(model, hardware.device, hardware.dtype, has_amx())
    estimator = Estimator(known)
    estimator.calibrate(hardware.dtype)
    return estimator.coefficients, f"{hardware.name}, probed", _watts(hardware.device)


def _watts(device: str) -> float | None:
    """The limit of a card's power, if its driver tells."""
    if device != "cuda" or (program := which("nvidia-smi")) is None:
        return None
    words = [program, "--query-gpu=power.limit", "--format=csv,noheader,nounits", "--id=0"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        return float(ended.stdout)
    except ValueError:  # "[N/A]", on some cards
        return None


def _clips(
    counts: tuple[int, ...],
    jobs: dict[Job, int],
    coefficients: Coefficients,
    model: str,
    together: int,
) -> tuple[list[Plan], dict[str, str]]:
    """Plans of many clips, and what they have in common."""
    from ..estimates.fleet import CLIP_BYTES, START, clip_seconds, clips_on

    seconds: dict[float, int] = {}
    for job, count in jobs.items():
        each = clip_seconds(job, coefficients)
        seconds[each] = seconds.get(each, 0) + count
    number = sum(jobs.values())
    size = CLIP_BYTES * sum(job.pixels * count for job, count in jobs.items())
    start = START["embedded" if model == "embedded" else "wan"]
    mean = sum(each * count for each, count in seconds.items()) / number
    facts = {
        "clips": f"{number:,}, {mean:,.1f} s each",
        "disk": f"about {_bytes(size)} of MP4",
    }
    return [clips_on(count, seconds, start, together) for count in counts], facts


def _training(
    counts: tuple[int, ...], job: Job, clips: int, epochs: int, coefficients: Coefficients
) -> tuple[list[Plan], dict[str, str]]:
    """Plans of a training, and what they have in common."""
    from ..estimates.fleet import (
        CHECKPOINT_BYTES,
        EXPORT_BYTES,
        LATENT_BYTES,
        dataset_on,
        training_on,
        training_step,
    )

    single = replace(job, steps=1, passes=1)
    latents = clips * job.pixels * LATENT_BYTES
    encoding = dataset_on(1, clips, single)
    facts = {
        "clips": f"{clips:,} × {epochs:,}, {training_step(single, coefficients, 1):.2f} s each",
        "before": f"{encoding.gpu_hours:,.1f} GPU hours of `dataset`",
        "disk": f"{_bytes(latents)} of latents, {_bytes(2 * CHECKPOINT_BYTES + EXPORT_BYTES)} of "
        "checkpoints and the export",
    }
    plans = [training_on(count, clips * epochs, single, coefficients) for count in counts]
    return plans, facts


# What is printed


def _bytes(size: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _table(facts: dict[str, str], rows: list[dict[str, Any]]) -> str:
    """The facts, and a line for each number of GPUs."""
    lines = [f"{name + ':':<8} {text}" for name, text in facts.items()]
    known = rows[0]["kilowatt_hours"] is not None
    # `here` without a GPU counts machines.
    names = ("machines", "all hours") if "CPU" in facts["on"] else ("GPUs", "GPU hours")
    lines += ["", f"{names[0]:>8}{'hours':>12}{names[1]:>12}" + f"{'kWh':>10}" * known]
    for row in rows:
        line = f"{row['gpus']:>8}{row['hours']:>12,.2f}{row['gpu_hours']:>12,.2f}"
        lines.append(line + (f"{row['kilowatt_hours']:>10,.1f}" if known else ""))
    return "\n".join(lines)
