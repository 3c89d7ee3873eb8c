"""`evaluate`: models against each other and real clips, or clips that are there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .options import (
    GuidanceScale,
    Model,
    NoiseOption,
    NumFrames,
    NumInferenceSteps,
    Progressive,
    Ray,
    ResolutionOption,
    Workers,
    app,
    make_request,
)

if TYPE_CHECKING:  # torch is imported inside the command
    from ..evaluation.case import Case
    from ..evaluation.evaluation_setup import Networks, Setup
    from ..evaluation.instruments import Instruments
    from ..evaluation.rows import Row, Source
    from ..evaluation.shard import Shard

OF_MODELS = (
    "table", "resolution", "num_frames", "seed", "num_inference_steps", "guidance_scale", "noise",
    "progressive",
    "edition", "batch_size", "model", "teacher", "ablations",
)  # fmt: skip
"""Options that say how clips are made."""


@app.command()
def evaluate(
    context: typer.Context,
    table: Annotated[
        str,
        typer.Option(
            "--set", help="The rows: table1, copies, distillation, fast, progressive or table4."
        ),
    ] = "table1",
    clips: Annotated[
        str,
        typer.Option(
            metavar="NUMBER|FOLDER",
            help="How many a row, more can be added later; or a folder of clips that are there.",
        ),
    ] = "8",
    reference: Annotated[
        Path | None,
        typer.Option(help="With a folder: of real clips, that HD-FVD compares with."),
    ] = None,
    resolution: ResolutionOption = None,
    num_frames: NumFrames = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first clip's noise.")] = 0,
    num_inference_steps: NumInferenceSteps = None,
    guidance_scale: GuidanceScale = None,
    noise: NoiseOption = "independent",
    progressive: Progressive = "auto",
    features: Annotated[
        list[str] | None,
        typer.Option(help="Network of HD-FVD: classifier, imagenet or i3d=FILE; may be repeated."),
    ] = None,
    edition: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            help="Of the world that prompts and real clips come from; without it the model's.",
        ),
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
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            "--batch",
            min=1,
            help="Clips that are denoised together: more fill a GPU.",
        ),
    ] = 1,
    ray: Ray = None,
    workers: Workers = None,
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
    """Measure models against each other and real clips, or a folder of clips.

    Leaves a table, JSON and a contact sheet.
    """
    from ..evaluation.evaluation_setup import Networks
    from ..evaluation.shard import Shard

    part = None if shard is None else Shard.parse(shard)
    if part is not None and overwrite:
        raise ValueError(
            "--overwrite would remove what the other shards have made: choose another --out, or "
            "remove the folder before they start."
        )
    check_ray(ray, workers, part)
    console.quiet_libraries()
    networks = Networks(classifier, tuple(features or ()), lpips, clip)
    run = Run(part, ray, workers, overwrite)
    number = as_number(clips)
    if number is None:
        check_typed(context)
        measure_files(Path(clips), reference, networks, out, run)
        return
    if reference is not None:
        raise ValueError(
            f"--reference is for a folder of clips: name one by --clips FOLDER, not {clips}, or "
            "leave it out."
        )
    if number < 1:
        raise ValueError(f"--clips {number} is none: at least 1, or a folder of clips.")
    from ..evaluation.evaluation_setup import MadeClips
    from ..evaluation.rows import rows_of
    from ..world.heldout import EVALUATED, REFERENCE, held_out_clips

    if table == "progressive" and progressive != "auto":
        raise ValueError("--set progressive measures both ways: leave out --progressive.")
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
        progressive=progressive,
    )
    setup = MadeClips(rows, request, model, teacher, ablations, batch_size, networks)
    source, instruments = setup.load()
    edition = edition or source.edition(rows)
    cases, references = (held_out_clips(number, seeds, edition) for seeds in (EVALUATED, REFERENCE))
    out = out or Path("outputs") / f"{table}-{request.resolution}"
    run(setup, source, instruments, rows, cases, references, out)


@dataclass(frozen=True)
class Run:
    """How an evaluation is run.

    Attributes:
        part: The clips of this process, and no table; None for all of them.
        ray: Address of a Ray cluster.
        workers: Its actors.
        overwrite: Whether what was measured before is measured again.
    """

    part: Shard | None
    ray: str | None
    workers: int | None
    overwrite: bool

    def __call__(
        self,
        setup: Setup,
        source: Source,
        instruments: Instruments,
        rows: Sequence[Row],
        cases: Sequence[Case],
        references: Sequence[Case],
        out: Path,
    ) -> None:
        """Makes and measures clips, and prints their table.

        Args:
            setup: What other processes make the same evaluation with.
            source: Where clips come from here, of the setup.
            instruments: What measures them here, of the setup.
            rows: The table's.
            cases: What clips are made of.
            references: What HD-FVD compares with, where it is measured.
            out: Folder of the results.
        """
        from ..evaluation.evaluate import RESULTS, finish, make, open_store, share
        from ..evaluation.evaluation_on_ray import make_on_ray
        from ..evaluation.store import forget

        references = references if instruments.tubes else ()
        if self.overwrite:
            forget(out)
        store = open_store(rows, cases, source, instruments, out)
        parts = share(rows, cases, references, source.batch, self.part)
        with console.progress_bar() as show:
            if self.ray is not None:
                source.release()
                say = partial(print, file=sys.stderr, flush=True)
                on = (self.ray, self.workers)
                make_on_ray(parts, setup, rows, cases[0], store, *on, show, say)
            else:
                make(parts, source, instruments, store, show)
            if self.part is not None:
                print(
                    f"Shard {self.part} is done in {out}: when all are, run this without --shard."
                )
                return
            show(1.0, "scores")
            finish(rows, cases, references, source, instruments, store)
        print((out / "table.md").read_text(encoding="utf-8"))
        print(f"Written to {out}: {', '.join(RESULTS)}")


def as_number(text: str) -> int | None:
    """A number as it was typed; None for a folder's name."""
    try:
        return int(text)
    except ValueError:
        return None


def check_ray(ray: str | None, workers: int | None, part: Shard | None) -> None:
    """Checks that options of a cluster fit together."""
    if ray is None and workers is not None:
        raise ValueError("--workers is for --ray: add --ray auto, or leave it out.")
    if ray is not None and part is not None:
        raise ValueError("Ray shares out the clips by itself: leave out --shard, or --ray.")


def check_typed(context: typer.Context) -> None:
    """Checks that nothing says how clips are to be made that are there."""
    for name in OF_MODELS:
        found = context.get_parameter_source(name)
        if found is not None and found.name == "COMMANDLINE":
            option = "--" + {"table": "set", "ablations": "models"}.get(name, name).replace(
                "_", "-"
            )
            raise ValueError(
                f"{option} says how clips are made, and those of a folder are there: leave it out, "
                "or give --clips a number."
            )


def measure_files(
    folder: Path, reference: Path | None, networks: Networks, out: Path | None, run: Run
) -> None:
    """Measures the clips of a folder, and prints their table.

    Raises:
        ValueError: Some can't be measured, or there is nothing that HD-FVD compares with.
    """
    from ..evaluation.clip_files import CLIPS, ClipFiles, find_clips
    from ..evaluation.evaluation_setup import OwnClips

    if reference is None and networks.features:
        raise ValueError("--features is for HD-FVD, which needs --reference FOLDER: add it.")
    found = find_clips(folder, captions=networks.clip is not None)
    known = find_clips(reference, captions=False) if reference is not None else None
    if faults := [*found.faults, *(known.faults if known else [])]:
        print("\n".join(faults), file=sys.stderr)
        raise ValueError(
            f"{len(faults)} of the files above can't be measured, so nothing was: mend them, or "
            "take them out of the folder."
        )
    clips, references = tuple(found.clips), tuple(known.clips if known else ())
    files = ClipFiles(folder, clips, references, reference)
    setup = OwnClips(files, networks)
    out = out or Path("outputs") / f"clips-{folder.name}"
    run(setup, *setup.load(), [CLIPS], clips, references, out)
