"""`dataset`: people's own clips as latents, for training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..presets import EMBEDDED, RESOLUTIONS, WAN, ModelPreset
from . import console
from .options import app

if TYPE_CHECKING:  # torch is imported inside the command
    from ..dataset.buckets import Bucket


@app.command()
def dataset(
    folder: Annotated[
        Path,
        typer.Argument(help="Clips with captions; or, with --preview, a dataset made before."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the dataset; a run that was stopped goes on.")
    ] = None,
    model: Annotated[
        Literal["wan", "embedded"], typer.Option(help="Which model is to be trained.")
    ] = "wan",
    base: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub repository of the model whose VAE and text encoder encode; without "
            "it the one that runs here."
        ),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(RESOLUTIONS)}: clips that lie, stand or are square take the "
            "bucket of this area with their shape; without it the model's own."
        ),
    ] = None,
    num_frames: Annotated[
        list[int] | None,
        typer.Option(
            "--num-frames",
            "--frames",
            help="Frames of a clip, 4n + 1; may be repeated, for sources that are shorter. Without "
            "it the model's own.",
        ),
    ] = None,
    bucket: Annotated[
        list[str] | None,
        typer.Option(
            help="HEIGHTxWIDTHxFRAMES, such as 1088x1920x81, in place of --resolution and "
            "--frames; may be repeated."
        ),
    ] = None,
    frame_rate: Annotated[
        float | None,
        typer.Option(min=1, max=120, help="Frames a second; without it the model's own."),
    ] = None,
    caption_column: Annotated[
        list[str] | None,
        typer.Option(help="Column of the table; may be repeated, for captions to draw from."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="The table, if the folder has several or none.")
    ] = None,
    clips: Annotated[
        Literal["head", "all"],
        typer.Option(
            help="Of a source that is longer than its bucket: the first clip, or all that follow "
            "one another."
        ),
    ] = "head",
    enlarge: Annotated[
        bool, typer.Option("--enlarge", help="Enlarge clips that are smaller than every bucket.")
    ] = False,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview", help="Write a contact sheet with captions, decoded from the latents."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again.")] = False,
) -> None:
    """Encode a folder of clips and captions.

    What `train` takes. On several GPUs: accelerate launch -m ultragen dataset ...
    """
    console.quiet_libraries()
    from ..dataset.encoding_processes import Processes
    from ..dataset.shard_files import is_dataset

    if is_dataset(folder) and out is None:
        if not preview:
            raise ValueError(f"{folder} is a dataset already: add --preview to look at it.")
        look(folder, base)
        return
    if out is None:
        raise ValueError("--out is missing: the folder of the dataset.")
    from ..dataset.encoding import Encoding
    from ..dataset.planning import Request

    preset = WAN if model == "wan" else EMBEDDED
    request = Request(
        folder,
        out,
        buckets(preset, resolution, num_frames, bucket),
        frame_rate or float(preset.fps),
        model,
        base,
        tuple(caption_column or ()),
        table,
        clips,
        enlarge,
        overwrite,
    )
    processes = Processes.join()
    try:
        with console.progress_bar(processes.first) as show:
            report = Encoding(request, processes, show, say).run()
    finally:
        processes.leave()
    if processes.first:
        print(report)
        if preview and report.clips:
            look(out, base)


def buckets(
    preset: ModelPreset,
    resolution: str | None,
    num_frames: list[int] | None,
    bucket: list[str] | None,
) -> tuple[Bucket, ...]:
    """The buckets that options name.

    Raises:
        ValueError: One is not HEIGHTxWIDTHxFRAMES, the resolution is unknown, or both are given.
    """
    from ..dataset.buckets import Bucket
    from ..dataset.planning import buckets_of

    if bucket:
        if resolution or num_frames:
            raise ValueError("Give either --bucket, or --resolution and --frames.")
        return tuple(map(Bucket.parse, bucket))
    name = (resolution or preset.resolution).lower()
    if name not in RESOLUTIONS:
        raise ValueError(
            f"resolution {name!r:.40} is unknown: choose from {', '.join(RESOLUTIONS)}, or give "
            "--bucket HEIGHTxWIDTHxFRAMES."
        )
    size = RESOLUTIONS[name]
    return buckets_of(size.height, size.width, num_frames or [preset.num_frames])


def look(folder: Path, base: str | None) -> None:
    """Writes the contact sheet of a dataset.

    Raises:
        ValueError: The folder has no clips, or they were encoded by another VAE.
        OSError: Files of the model or the dataset are missing or damaged.
    """
    import torch

    from ..dataset.encoders import load_autoencoder, locate_base
    from ..dataset.latent_preview import write_preview
    from ..dataset.shards import LatentDataset, vae_fingerprint
    from ..hardware import find_hardware

    clips = LatentDataset(folder)
    model = clips.settings.model
    source = locate_base(model, base)
    clips.check(model, vae_fingerprint(source))
    with console.progress_bar() as show:
        vae = load_autoencoder(model, source, torch.device(find_hardware().device))
        print(f"Written: {write_preview(clips, vae, show)}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
