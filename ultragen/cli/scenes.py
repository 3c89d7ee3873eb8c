"""`scenes`: clips of the procedural world."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from ..presets import RESOLUTIONS
from . import console
from .options import Overwrite, app


@app.command()
def scenes(
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Clips.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("outputs/scenes"),
    resolution: Annotated[
        str, typer.Option(help=f"WIDTHxHEIGHT, or one of {', '.join(RESOLUTIONS)}.")
    ] = "512x288",
    num_frames: Annotated[
        int,
        typer.Option("--num-frames", "--frames", min=1, max=241, help="Frames, 12 a second."),
    ] = 17,
    seed: Annotated[int, typer.Option(min=0, help="Of the first scene.")] = 0,
    edition: Annotated[
        int,
        typer.Option(min=1, max=2, help="Of the world: 2 has more words and nearer ground."),
    ] = 1,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Only measure how fast this machine renders.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw clips of the procedural world, with captions.

    The embedded model is trained on such.
    """
    height, width = frame_size(resolution)
    earlier = sorted(path.name for path in out.glob("scene-[0-9]*.mp4"))
    names = ("captions.json", "contact_sheet.jpg", *earlier)
    if not benchmark:
        console.check_free(out, names, overwrite)
    from ..world import preview
    from ..world.scene import sample_scene

    if benchmark:
        measured = preview.benchmark(edition=edition)
        print(json.dumps(measured, indent=2, ensure_ascii=False))
        return
    drawn = [sample_scene(seed + i, edition) for i in range(count)]
    with console.whole_results(out, names) as folder, console.progress_bar() as show:
        preview.write_scenes(drawn, height, width, num_frames, folder, show)
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
