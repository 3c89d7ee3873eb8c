"""The command line: `python -m ultragen COMMAND`."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from . import console
from .presets import EMBEDDED_MODEL, RESOLUTIONS

# Torch and the models are imported inside the commands, so that `--help` answers at once.
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Text to native high-resolution video. `python -m ultragen COMMAND --help` tells more.",
)

RESULTS = ("native.mp4", "upscaled.mp4", "side_by_side.mp4", "metadata.json")
STAGE_OF = {
    "vae": "autoencoder",
    "tokenizer": "base",
    "text_encoder": "base",
    "base_transformer": "base",
    "transformer": "ultragen",
    "upscaler": "upscaler",
}
"""Which training stage makes which part of a pipeline folder."""
TRANSFORMER_STAGES = ("base", "ultragen", "base-distill", "distill")
OPTION_OF = {
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "negative_prompt": "--negative-prompt",
}
"""What the settings that errors name are called here."""

Prompt = Annotated[str, typer.Option(help="What the clip shows, in English.")]
ResolutionOption = Annotated[
    str | None,
    typer.Option(help=f"One of {', '.join(RESOLUTIONS)}; without it the model's own."),
]
Windows = Annotated[str, typer.Option(help="Windows on each axis: auto, or an even number.")]
Frames = Annotated[int | None, typer.Option(help="Frames, 4n + 1; without it the model's own.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same clip.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; without it the model's own.")]
Guidance = Annotated[
    float | None, typer.Option(help="Guidance, 1 (off) to 20; without it the model's own.")
]
GuidanceDevice = Annotated[
    str | None,
    typer.Option(help="A second GPU, such as cuda:1, for the pass that guidance adds to a step."),
]
Fp8 = Annotated[
    bool,
    typer.Option(
        "--fp8",
        help="Compute the 1.3B model's large layers in 8 bits; needs torchao and an Ada, Hopper or "
        "Blackwell GPU.",
    ),
]
Negative = Annotated[str | None, typer.Option(help="What guidance leads away from.")]
Model = Annotated[
    str | None,
    typer.Option(
        envvar="ULTRAGEN_MODEL", help="auto, embedded, wan, or a model's folder.", show_envvar=True
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]


def _request(model: str | None, **settings: Any) -> Any:
    """A request that is validated for a model; errors name the options as they are typed."""
    from .choice import choose
    from .request import Request

    try:
        return Request(**settings).validate(choose(model).preset)
    except ValueError as error:
        names = re.compile("|".join(OPTION_OF))
        raise ValueError(names.sub(lambda m: OPTION_OF[m.group()], str(error))) from error


def _load(model: str | None) -> Any:
    """The models, loaded without the libraries' own messages."""
    from .models import load_models

    console.quiet_libraries()
    return load_models(model)


def _check_fp8(model: str | None) -> None:
    """Checks that FP8 works here, before minutes of loading."""
    from . import models

    console.quiet_libraries()
    try:
        models.check_fp8(model)
    except ImportError as error:  # what a machine lacks is no error of ours
        raise RuntimeError(str(error)) from error


def _load_for(request: Any, model: str | None, guidance_device: str | None, fp8: bool) -> Any:
    """The models; says which words of the prompt they don't know."""
    if fp8:
        _check_fp8(model)
    if guidance_device is not None:  # before minutes of loading
        from .guidance import check_second
        from .hardware import find_hardware

        check_second(guidance_device, find_hardware().device)
    models = _load(model)
    if fp8:
        models.enable_fp8()
    if guidance_device is not None:
        models.enable_parallel_guidance(guidance_device)
    unknown = models.unknown_words(request.prompt)
    if unknown:
        print(f"The model does not know: {', '.join(unknown)}.", file=sys.stderr)
    return models


def _print_seconds(metadata: dict[str, Any]) -> None:
    from .cost import STAGES

    for stage, seconds in metadata["seconds"]["measured"].items():
        print(f"{STAGES[stage]:<40}{seconds:8.1f} s")
    print(f"{'Together':<40}{sum(metadata['seconds']['measured'].values()):8.1f} s")


@app.command()
def generate(
    prompt: Prompt,
    resolution: ResolutionOption = None,
    windows: Windows = "auto",
    frames: Frames = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    guidance_device: GuidanceDevice = None,
    fp8: Fp8 = False,
    negative_prompt: Negative = None,
    out: Annotated[Path, typer.Option(help="The MP4 file; settings go beside it.")] = Path(
        "clip.mp4"
    ),
    model: Model = None,
    overwrite: Overwrite = False,
) -> None:
    """Make the native clip: OUT.mp4, and OUT.json with what makes it again."""
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"--out {out} must end in .mp4.")
    sidecar = out.with_suffix(".json")
    request = _request(
        model,
        prompt=prompt,
        resolution=resolution,
        windows=windows,
        num_frames=frames,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        negative_prompt=negative_prompt,
    )
    console.check_free(out.parent, (out.name, sidecar.name), overwrite)
    began = perf_counter()
    models = _load_for(request, model, guidance_device, fp8)
    loading = perf_counter() - began
    from .native import generate_native
    from .video import encode_video

    with console.whole_results(out.parent) as folder:
        with console.progress_bar() as show:
            clip = generate_native(request, models, lambda p: show(p.fraction, p.message))
        began = perf_counter()
        encode_video(clip.frames, folder / out.name, clip.fps)
        seconds = clip.metadata["seconds"]
        seconds["measured"]["encode"] = perf_counter() - began
        seconds |= {"loading": loading, "total": sum(seconds["measured"].values())}
        text = json.dumps(clip.metadata, indent=2, ensure_ascii=False)
        (folder / sidecar.name).write_text(text + "\n", encoding="utf-8")
    _print_seconds(clip.metadata)
    print(f"Written: {out}, {sidecar}")


@app.command()
def compare(
    prompt: Prompt,
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    resolution: ResolutionOption = None,
    windows: Windows = "auto",
    frames: Frames = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    guidance_device: GuidanceDevice = None,
    fp8: Fp8 = False,
    negative_prompt: Negative = None,
    upscaler: Annotated[
        str, typer.Option(help="lanczos, network, or a weights file that spandrel reads.")
    ] = "network",
    base_native: Annotated[
        bool, typer.Option("--base-native", help="Run the base model at the full size too.")
    ] = False,
    model: Model = None,
    overwrite: Overwrite = False,
) -> None:
    """Make the native clip and the upscaled one of the same prompt and seed."""
    request = _request(
        model,
        prompt=prompt,
        resolution=resolution,
        windows=windows,
        num_frames=frames,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        negative_prompt=negative_prompt,
        upscaler=upscaler,
        base_native="on" if base_native else "off",
    )
    console.check_free(out, RESULTS, overwrite)
    models = _load_for(request, model, guidance_device, fp8)
    from . import compare as comparison

    with console.whole_results(out) as folder:
        with console.progress_bar() as show:
            result = comparison.compare(
                request, models, folder, lambda p: show(p.fraction, p.message)
            )
        # The run has a folder of its own; here the user has named one.
        for path in result.native.parent.iterdir():
            path.replace(folder / path.name)
        result.native.parent.rmdir()
    _print_seconds(result.metadata)
    files = (*result.metadata["files"].values(), "metadata.json")
    print(f"Written to {out}: {', '.join(files)}")


@app.command()
def measure(model: Model = None) -> None:
    """Measure what a unit of work costs here, as the estimates before a run need it."""
    from dataclasses import asdict

    from . import compare as comparison

    coefficients = comparison.measure(
        _load(model), lambda line: print(line, file=sys.stderr, flush=True)
    )
    print(json.dumps(asdict(coefficients), indent=2))


@app.command()
def benchmark(
    case: Annotated[
        list[str] | None,
        typer.Option(help="Case or group, may be repeated; forward, embedded, vae, run, all, …"),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="dense or another variant, or parts; may be repeated.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=1, help="Seconds; what does not fit is left out and named.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs, of which the median counts.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="File of all results.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="File of the tables.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="An earlier --json file; what got worse is exit code 1.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Share by which a ratio may grow.")
    ] = 0.05,
    overwrite: Overwrite = False,
) -> None:
    """Measure speed and memory against the dense model and this machine's limits."""
    console.quiet_libraries()
    from .benchmark import tables
    from .benchmark.bench import Budget
    from .benchmark.outputs import Outputs
    from .benchmark.results import Report, compare_reports
    from .benchmark.run import run_benchmark

    earlier = Report.load(against) if against else None
    outputs = Outputs(json_file, markdown_file)
    outputs.check(overwrite)
    report = run_benchmark(
        case or (),
        Budget(budget or float("inf"), repeats, frozenset(skip or ())),
        " ".join(["python -m ultragen", *sys.argv[1:]]),
        outputs.save,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    tables.print_report(report)
    if earlier is None:
        return
    changes = compare_reports(earlier, report)
    table = tables.changes_table(changes, tolerance)
    tables.print_table(table)
    outputs.save(report, table)
    if worse := [change for change in changes if change.is_worse(tolerance)]:
        raise RuntimeError(
            f"{len(worse)} of {len(changes)} ratios got worse by more than {tolerance:.0%}."
        )


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
    from dataclasses import replace

    from .gallery import SHEETS, make_sheet

    models = _load(model)
    for sheet, count in zip(SHEETS, (count_544p, count_1080p), strict=True):
        if count:
            with console.progress_bar() as show:
                path = make_sheet(replace(sheet, count=count), models, out, pieces, seed, show)
            print(f"Written: {path}", flush=True)


@app.command()
def evaluate(
    table: Annotated[
        str, typer.Option("--set", help="The rows: table1 or distillation.")
    ] = "table1",
    clips: Annotated[int, typer.Option(min=1, help="A row; more can be added later.")] = 8,
    resolution: ResolutionOption = None,
    frames: Frames = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first clip's noise.")] = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    features: Annotated[
        list[str] | None,
        typer.Option(help="Network of HD-FVD: classifier, imagenet or i3d=FILE; may be repeated."),
    ] = None,
    lpips: Annotated[str | None, typer.Option(help="alex=FILE or vgg=FILE, for HD-LPIPS.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP's folder or name on the hub.")] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Attribute classifier; without it the model's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; a stopped run goes on there.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="I/N: make the clips of the I-th of N processes, and no table. One process a GPU "
            "(CUDA_VISIBLE_DEVICES) or several, all with one --out; then once without --shard, all "
            "else the same."
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Clips that are denoised together: more fill a GPU.")
    ] = 1,
    model: Model = None,
    teacher: Annotated[
        str | None, typer.Option(help="Folder of the model that --model was distilled from.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again.")] = False,
) -> None:
    """Measure models against each other and real clips: a table, JSON and a contact sheet."""
    from .evaluation.shard import Shard

    part = None if shard is None else Shard.parse(shard)
    if part is not None and overwrite:
        raise ValueError(
            "--overwrite would remove what the other shards have made: choose another --out, or "
            "remove the folder before they start."
        )
    request = _request(
        model,
        prompt="any",
        resolution=resolution,
        num_frames=frames,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
    )
    from .evaluation.rows import TEACHER, Maker, rows_of

    rows = rows_of(table, teacher is not None)
    from .evaluation.instruments import load_instruments
    from .evaluation.run import RESULTS, make_rows
    from .evaluation.run import evaluate as run_evaluation
    from .evaluation.store import forget
    from .training.heldout import EVALUATED, REFERENCE, held_out_clips

    cases, references = (held_out_clips(clips, seeds) for seeds in (EVALUATED, REFERENCE))
    maker = Maker(lambda name: _load(teacher if name == TEACHER else name or model), request, batch)
    models = maker.models()
    instruments = load_instruments(
        models.source, classifier, features or (), lpips, clip, models.device
    )
    out = out or Path("outputs") / f"{table}-{request.resolution}"
    if overwrite:
        forget(out)
    with console.progress_bar() as show:
        if part is not None:
            make_rows(rows, cases, references, maker, instruments, out, part, show)
            print(f"Shard {part} is done in {out}: when all are, run this without --shard.")
            return
        run_evaluation(rows, cases, references, maker, instruments, out, show)
    print((out / "table.md").read_text(encoding="utf-8"))
    print(f"Written to {out}: {', '.join(RESULTS)}")


@app.command()
def scenes(
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Clips.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("outputs/scenes"),
    resolution: Annotated[
        str, typer.Option(help=f"WIDTHxHEIGHT, or one of {', '.join(RESOLUTIONS)}.")
    ] = "512x288",
    frames: Annotated[int, typer.Option(min=1, max=241, help="Frames, 12 a second.")] = 17,
    seed: Annotated[int, typer.Option(min=0, help="Of the first scene.")] = 0,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Only measure how fast this machine renders.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Measure with the renderer's functions compiled.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw clips of the procedural world that the model is trained on, with captions."""
    height, width = frame_size(resolution)
    if not benchmark:
        console.check_free(out, ("captions.json", "contact_sheet.jpg"), overwrite)
    from .training import preview
    from .training.scenes import compile_renderer, sample_scene

    if compiled and not benchmark:
        raise ValueError("--compiled measures: add --benchmark.")
    if benchmark:
        measured = preview.benchmark(prepare=compile_renderer if compiled else lambda: None)
        print(json.dumps(measured, indent=2, ensure_ascii=False))
        return
    drawn = [sample_scene(seed + i) for i in range(count)]
    with console.whole_results(out) as folder, console.progress_bar() as show:
        preview.write_scenes(drawn, height, width, frames, folder, show)
    print(f"Written to {out}: {count} clips, captions.json, contact_sheet.jpg")


def frame_size(resolution: str) -> tuple[int, int]:
    """Rows and columns of a resolution's name, or of WIDTHxHEIGHT.

    Raises:
        ValueError: for anything else, or a size that a video can't have.
    """
    if resolution.lower() in RESOLUTIONS:
        named = RESOLUTIONS[resolution.lower()]
        return named.rows, named.width
    found = re.fullmatch(r"(\d{2,4})[x×](\d{2,4})", resolution)
    width, height = (int(number) for number in found.groups()) if found else (0, 0)
    if min(width, height) < 32 or width % 2 or height % 2:
        raise ValueError(
            f"resolution {resolution!r:.40} is unknown: choose from {', '.join(RESOLUTIONS)}, or "
            "WIDTHxHEIGHT in even numbers from 32, such as 512x288."
        )
    return height, width


@app.command()
def train(
    stage: Annotated[
        str,
        typer.Argument(
            help="autoencoder, decoder, base, ultragen, base-distill, distill, upscaler or "
            "classifier."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the whole training, for all stages.")],
    minutes: Annotated[float, typer.Option(help="Of this stage, all its runs together.")] = 20.0,
    run_minutes: Annotated[
        float | None, typer.Option(help="Stop this run earlier, with a checkpoint.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="End after so many steps.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and data.")] = 0,
    start_from: Annotated[
        Path | None, typer.Option(help="Pipeline folder to start from instead of from scratch.")
    ] = None,
    profile_step: Annotated[
        int | None, typer.Option(min=1, help="Profile a few steps after this one.")
    ] = None,
    render_on: Annotated[
        list[str] | None,
        typer.Option(
            help="base, ultragen: a device that only renders, such as cuda:1; may be repeated."
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-8, help="Peak; the stage's own if not given.")
    ] = None,
    anchor: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="autoencoder: how strongly latents are held where --start-from has them, so that "
            "transformers stay of use; 0.01 lets them move a little.",
        ),
    ] = 0.0,
    freeze_text: Annotated[
        bool,
        typer.Option(
            "--freeze-text", help="base: leave the text encoder as it is, for UltraGen's sake."
        ),
    ] = False,
    batch_scale: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="Of all stages of transformers: batches so many times as large, for another GPU "
            "or a CPU.",
        ),
    ] = 1.0,
    sample_minutes: Annotated[
        float, typer.Option(min=0.0, help="Minutes between sample sheets.")
    ] = 4.0,
    tiny: Annotated[bool, typer.Option("--tiny", help="A toy model, to try the steps.")] = False,
) -> None:
    """Train one stage; a stage that was stopped goes on from its last checkpoint."""
    for option, given, only in (
        ("--anchor", anchor, ("autoencoder",)),
        ("--freeze-text", freeze_text, ("base",)),
        ("--render-on", render_on, ("base", "ultragen")),
        ("--batch-scale", batch_scale != 1, TRANSFORMER_STAGES),
    ):
        if given and stage not in only:
            stages = " and ".join(f"`train {name}`" for name in only)
            raise ValueError(f"{option} is for {stages} alone: leave it out for {stage}.")
    if find_spec("tensorboard") is None:
        raise OSError("Training needs one more package: pip install 'ultragen[train]'.")
    from .training.options import StageOptions
    from .training.stage import TrainingConfig
    from .training.stages import train as train_stage
    from .training.tiny import TINY

    config = TrainingConfig(
        out=out,
        minutes=minutes,
        run_minutes=run_minutes,
        max_steps=max_steps,
        learning_rate=learning_rate,
        seed=seed,
        profile_step=profile_step,
        sample_minutes=sample_minutes,
    )
    options = TINY if tiny else StageOptions()
    options = replace(
        options.with_batches(batch_scale),
        render_on=tuple(render_on or ()),
        freeze_text=freeze_text,
        autoencoder=(*options.autoencoder, ("anchor", anchor)),
    )
    weights = train_stage(stage, config, options, start_from)
    if os.environ.get("RANK", "0") == "0":
        print(f"Written: {weights}")


@app.command()
def assemble(
    model_dir: Annotated[Path, typer.Argument(help="OUT/model of a training.")],
    out: Annotated[Path, typer.Argument(help="Folder of the pipeline.")],
    tiny: Annotated[bool, typer.Option("--tiny", help="For a training with --tiny.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Put the finished weights of all stages together, as --model and the page load them."""
    if out.resolve() == model_dir.resolve():
        raise ValueError(f"{out} is the training's own folder: choose another one.")
    for part, stage in STAGE_OF.items():
        if not (model_dir / part).is_dir():
            raise ValueError(f"{model_dir / part} is missing: run `train {stage}` first.")
    console.check_free(out, ("model_index.json", *STAGE_OF), overwrite)
    from .training.assemble import assemble as assemble_stages
    from .training.options import StageOptions
    from .training.tiny import TINY

    with console.whole_results(out) as folder:
        assemble_stages(model_dir, folder, TINY if tiny else StageOptions())
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    shown = " (the embedded model)" if out.resolve() == EMBEDDED_MODEL.resolve() else ""
    print(f"Written: {out}{shown}, {size:.1f} MB")


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="Weights: a file, the index of shards, or a model's folder.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the transformer in diffusers' layout.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert the released UltraGen weights, or dense Wan as a start for training."""
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"{out} holds the weights that are converted: choose another folder.")
    earlier = list(out.glob("diffusion_pytorch_model*"))
    console.check_free(out, ("config.json", *(path.name for path in earlier)), overwrite)
    console.quiet_libraries()
    from .checkpoint import load_transformer
    from .transformer import UltraGenTransformer3DModel

    model = load_transformer(source)
    trained = isinstance(model, UltraGenTransformer3DModel)
    if not trained:
        model = UltraGenTransformer3DModel.from_wan(model)
    with console.whole_results(out) as folder:
        model.save_pretrained(folder)
        for path in earlier:  # it may have had more shards
            path.unlink()
    branched = sum(kind != "full" for kind in model.layer_kinds)
    print(
        f"Written: {out}, {model.num_parameters() / 1e9:.2f} billion parameters, "
        f"{len(model.layer_kinds)} layers, {branched} with UltraGen's branches"
        + ("" if trained else ", which are untrained: a start for training, not a model to use")
    )


def main() -> None:
    """Runs the command line and exits with its code."""
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = console.run(lambda: app(arguments, prog_name="ultragen", standalone_mode=False))
    except KeyboardInterrupt:  # a second one, while the first was cleaned up after
        code = console.STOPPED
    # CPython notes it when Ctrl-C meets code that runs from a string, as in a dataclass's making,
    # and `python -m` then ends by the signal in place of its exit code. Any new string clears that.
    exec("")
    sys.exit(code)
