"""Commands of the training: its world, its stages, and what becomes of their weights."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ..presets import EMBEDDED_MODEL, RESOLUTIONS
from . import console
from .options import Overwrite, app

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
    overwrite: Overwrite = False,
) -> None:
    """Draw clips of the procedural world that the model is trained on, with captions."""
    height, width = frame_size(resolution)
    if not benchmark:
        console.check_free(out, ("captions.json", "contact_sheet.jpg"), overwrite)
    from ..world import preview
    from ..world.scene import sample_scene

    if benchmark:
        measured = preview.benchmark()
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
    warmup_steps: Annotated[
        int, typer.Option(min=1, help="Steps until the learning rate has reached its peak.")
    ] = 50,
    profile_step: Annotated[
        int | None, typer.Option(min=1, help="Profile a few steps after this one.")
    ] = None,
    render_on: Annotated[
        list[str] | None,
        typer.Option(
            help="base, ultragen: a device that only renders, such as cuda:1; may be repeated."
        ),
    ] = None,
    render_share: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=0.9,
            help="base, ultragen: part of the time that goes into rendering new clips; 0.45 if not "
            "given.",
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
            "--freeze-text",
            help="base: leave the text encoder's weights as they are, for UltraGen's sake.",
        ),
    ] = False,
    clauses: Annotated[
        bool,
        typer.Option(
            "--clauses",
            help="base: a text encoder that --start-from brings reads clause by clause from now "
            'on: "the camera pans left" stays out of "the sun on the right"; UltraGen is to be '
            "trained on too. The shipped one reads so, and those that are trained afresh. Name it "
            "again to resume.",
        ),
    ] = False,
    teacher_guidance: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="base-distill, distill: the teacher's guidance, which the student learns; 3 if "
            "not given, also for a training that is resumed.",
        ),
    ] = None,
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
        ("--clauses", clauses, ("base",)),
        ("--render-on", render_on, ("base", "ultragen")),
        ("--render-share", render_share, ("base", "ultragen")),
        ("--teacher-guidance", teacher_guidance, ("base-distill", "distill")),
        ("--batch-scale", batch_scale != 1, TRANSFORMER_STAGES),
    ):
        if given and stage not in only:
            stages = " and ".join(f"`train {name}`" for name in only)
            raise ValueError(f"{option} is for {stages} alone: leave it out for {stage}.")
    if render_share and render_on:
        raise ValueError(
            "--render-share is for a device that also trains: leave it out with --render-on."
        )
    if find_spec("tensorboard") is None:
        raise OSError("Training needs one more package: pip install 'ultragen[train]'.")
    from ..training.recipe import train as train_stage
    from ..training.stage import TrainingConfig
    from ..training.stage_options import StageOptions
    from ..training.tiny import TINY

    config = TrainingConfig(
        out=out,
        minutes=minutes,
        run_minutes=run_minutes,
        max_steps=max_steps,
        learning_rate=learning_rate,
        seed=seed,
        warmup_steps=warmup_steps,
        profile_step=profile_step,
        sample_minutes=sample_minutes,
    )
    options = TINY if tiny else StageOptions()
    options = replace(
        options.with_batches(batch_scale),
        render_on=tuple(render_on or ()),
        render_share=render_share or options.render_share,
        freeze_text=freeze_text,
        clauses=clauses,
        autoencoder=(*options.autoencoder, ("anchor", anchor)),
    )
    if teacher_guidance:
        options = replace(options, distill=(*options.distill, ("guidance_scale", teacher_guidance)))
    weights = train_stage(stage, config, options, start_from)
    if os.environ.get("RANK", "0") == "0":
        print(f"Written: {weights}")


@app.command()
def assemble(
    model_dir: Annotated[Path, typer.Argument(help="OUT/model of a training.")],
    out: Annotated[Path, typer.Argument(help="Folder of the pipeline.")],
    undistilled: Annotated[
        bool,
        typer.Option(
            "--undistilled",
            help="Take the teachers of the distillation, also where their students are there: for "
            "`evaluate --set distillation --teacher`.",
        ),
    ] = False,
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
    from ..training.assemble import assemble as assemble_stages
    from ..training.stage_options import StageOptions
    from ..training.tiny import TINY

    with console.whole_results(out) as folder:
        assemble_stages(model_dir, folder, TINY if tiny else StageOptions(), undistilled)
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
    from ..model.transformer import UltraGenTransformer3DModel
    from ..weights.released import load_transformer

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
