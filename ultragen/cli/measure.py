"""Commands that measure models and machines."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .options import (
    GuidanceScale,
    Model,
    NoiseOption,
    NumFrames,
    NumInferenceSteps,
    Overwrite,
    ResolutionOption,
    app,
    load,
    make_request,
)


@app.command()
def measure(model: Model = None) -> None:
    """Measure what a unit of work costs here.

    The estimates before a run need it.
    """
    from dataclasses import asdict

    from ..runs import calibrate

    coefficients = calibrate.measure(
        load(model), lambda line: print(line, file=sys.stderr, flush=True)
    )
    print(json.dumps(asdict(coefficients), indent=2))


@app.command()
def evaluate(
    table: Annotated[
        str, typer.Option("--set", help="The rows: table1, distillation, fast or table4.")
    ] = "table1",
    clips: Annotated[int, typer.Option(min=1, help="A row; more can be added later.")] = 8,
    resolution: ResolutionOption = None,
    num_frames: NumFrames = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first clip's noise.")] = 0,
    num_inference_steps: NumInferenceSteps = None,
    guidance_scale: GuidanceScale = None,
    noise: NoiseOption = "independent",
    features: Annotated[
        list[str] | None,
        typer.Option(help="Network of HD-FVD: classifier, imagenet or i3d=FILE; may be repeated."),
    ] = None,
    edition: Annotated[
        int,
        typer.Option(min=1, max=2, help="Of the world that prompts and real clips come from."),
    ] = 1,
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
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            "--batch",
            min=1,
            help="Clips that are denoised together: more fill a GPU.",
        ),
    ] = 1,
    model: Model = None,
    teacher: Annotated[
        str | None, typer.Option(help="Folder of the model that --model was distilled from.")
    ] = None,
    ablations: Annotated[
        Path | None,
        typer.Option(
            "--models",
            help="For table4, instead of --model: folder with a model for each row, called full, "
            "without-global, without-crossing, without-hierarchical, without-lora and swin.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again.")] = False,
) -> None:
    """Measure models against each other and real clips.

    Leaves a table, JSON and a contact sheet.
    """
    from ..evaluation.shard import Shard

    part = None if shard is None else Shard.parse(shard)
    if part is not None and overwrite:
        raise ValueError(
            "--overwrite would remove what the other shards have made: choose another --out, or "
            "remove the folder before they start."
        )
    from ..evaluation.rows import TEACHER, Maker, rows_of

    rows = rows_of(table, teacher is not None, ablations)
    if ablations is not None:
        model = str(ablations / rows[0].key)
    request = make_request(
        model,
        fast=table == "fast",
        prompt="any",
        resolution=resolution,
        num_frames=num_frames,
        seed=seed,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        noise=noise,
    )
    from ..evaluation.evaluate import RESULTS, make_rows
    from ..evaluation.evaluate import evaluate as run_evaluation
    from ..evaluation.instruments import load_instruments
    from ..evaluation.seams import window_borders
    from ..evaluation.store import forget
    from ..world.heldout import EVALUATED, REFERENCE, held_out_clips

    cases, references = (held_out_clips(clips, seeds, edition) for seeds in (EVALUATED, REFERENCE))

    def load_row(name: str | None) -> Any:
        if name == TEACHER:
            return load(teacher)
        return load(model if ablations is None or name is None else str(ablations / name))

    maker = Maker(load_row, request, batch_size)
    models = maker.models()
    instruments = load_instruments(
        models.source, classifier, features or (), lpips, clip, models.device
    )
    if ablations is not None:
        instruments = replace(instruments, borders=window_borders(models, maker.request))
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
    """Measure speed and memory.

    Against the dense model's, and against this machine's limits.
    """
    console.quiet_libraries()
    from ..benchmark import tables
    from ..benchmark.bench import Budget
    from ..benchmark.outputs import Outputs
    from ..benchmark.records import Report, compare_reports
    from ..benchmark.suite import run_benchmark

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
