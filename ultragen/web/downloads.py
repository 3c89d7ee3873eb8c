"""Clips as other kinds of files, made when somebody asks for one."""

from __future__ import annotations

import sys
from pathlib import Path

import gradio as gr

from ..files import create_folder, unique_directory
from ..video import ANIMATION_SIDE, convert_video
from .components import Layout
from .settings import Updates, problem

CLIPS = ("native", "upscaled", "side_by_side")


def make_file(ui: Layout, output_dir: Path, which: str, suffix: str, *clips: str | None) -> Updates:
    """The file that was asked for, with its size.

    Args:
        ui: The page's components.
        output_dir: Where it gets a folder of its own.
        which: One of `CLIPS`.
        suffix: One of `video.FORMATS`.
        clips: The clips that are shown, in the order of `CLIPS`; None where there is none.

    Raises:
        gr.Error: If there is no such clip, or the file can't be written.
    """
    source = dict(zip(CLIPS, clips, strict=True))[which]
    if not source:
        raise problem("There is no clip yet: make one, or choose an example.")
    folder = unique_directory(create_folder(output_dir), f"download-{which}")
    try:
        file = convert_video(Path(source), folder / f"{which}{suffix}")
    except OSError as error:  # its paths are for whoever runs the page
        print(f"A download could not be made: {error}", file=sys.stderr)
        raise problem("The file could not be made: try again, or take the MP4 file.") from error
    said = f"{file.name}: {size_text(file.stat().st_size)}."
    if suffix in (".gif", ".webp"):
        said += f" At most {ANIMATION_SIDE} pixels wide or high, for chats."
    return {
        ui.download: gr.update(value=str(file), visible=True),
        ui.download_size: f'<p class="ug-note" role="status">{said}</p>',
    }


def size_text(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
