"""What a run made → files in a folder of their own. Needs no accelerator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from time import perf_counter, time
from typing import Any

import numpy as np
from PIL import Image

from ..files import create_folder, sweep_unfinished, unique_directory, whole_result, write_json
from ..pictures import crop_frames, side_by_side
from ..video import FORMATS, encode_video
from .native import NativeClip
from .progress import Progress, RunState
from .recipe import carried
from .request import Request

POSTER_WIDTH = 480  # columns in pixels
BEING_SENT = 600  # seconds since a file was last read


@dataclass(frozen=True)
class Clips:
    """What a run made, before it is written.

    Attributes:
        native: UltraGen's frames, t h w 3, uint8.
        upscaled: The base model's frames, upscaled, t rows columns 3, uint8.
        base_native: The base model's frames at the full size, t h w 3, or None.
        fps: Frames a second.
        metadata: What made them, with the seconds by stage so far.
    """

    native: np.ndarray
    upscaled: np.ndarray
    base_native: np.ndarray | None
    fps: int
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """A clip's file.

    Attributes:
        file: Where it is.
        seconds: What writing it took.
    """

    file: Path
    seconds: float


@dataclass(frozen=True)
class Result:
    """The files of a run, alone in one folder.

    Attributes:
        native: UltraGen's clip.
        upscaled: The base model's clip, upscaled.
        side_by_side: Both in one, with labels.
        base_native: The base model's clip at the full size, or None.
        poster: A small picture of the native clip.
        metadata_path: The settings that reproduce the run.
        metadata: The same as values.
    """

    native: Path
    upscaled: Path
    side_by_side: Path
    base_native: Path | None
    poster: Path
    metadata_path: Path
    metadata: dict[str, Any]

    def moved(self, folder: Path) -> Result:
        """The same after all files have gone to another folder."""
        paths: dict[str, Any] = {
            name: folder / path.name for name, path in vars(self).items() if isinstance(path, Path)
        }
        return replace(self, **paths)


def write(
    clips: Clips,
    request: Request,
    output_dir: Path | str,
    report: Callable[[Progress], None] = lambda progress: None,
    cancelled: Event | None = None,
    native: Written | None = None,
    name: str | None = None,
) -> Result:
    """Writes the clips and the metadata into a new folder of their own.

    Args:
        clips: What `generate` returned.
        request: What it was asked for, validated.
        output_dir: Parent of the new folder.
        report: Called after each frame.
        cancelled: Once set, writing stops and the folder is removed.
        native: The native clip's file, where it was written before; it is copied.
        name: What the folder's name begins with; None takes resolution, seed and prompt.

    Raises:
        OSError: if there is no room, or no permission to write; nothing is left behind.
        Cancelled: if the run was stopped; nothing is left behind.
    """
    metadata = json.loads(json.dumps(clips.metadata))
    run = RunState(report, cancelled or Event(), metadata["seconds"]["estimated"])
    run.seconds = metadata["seconds"]["measured"]
    stem = name or f"{request.resolution}-{request.seed}-{request.prompt}"
    parent = create_folder(Path(output_dir))
    with whole_result(parent) as unfinished:
        folder = unique_directory(unfinished, stem)
        early = {"native": native} if native else {}
        result = _write(clips, request, metadata, run, folder, early)
    return result.moved(parent / folder.name)


def write_native(clip: NativeClip, path: Path, loading: float) -> Path:
    """Writes a native clip, and beside it what makes it again.

    Args:
        clip: What was made; its metadata gets the seconds that are measured here.
        path: The file, of a kind that `encode_video` writes; its folder exists.
        loading: Seconds that loading the models took.

    Returns:
        The file of the metadata, with the same name but for the suffix.

    Raises:
        OSError: The disk is full, or the folder takes no files.
    """
    began = perf_counter()
    encode_video(clip.frames, path, clip.fps, carried(clip.metadata))
    seconds = clip.metadata["seconds"]
    seconds["measured"]["encode"] = perf_counter() - began
    seconds |= {"loading": loading, "total": sum(seconds["measured"].values())}
    sidecar = path.with_suffix(".json")
    write_json(sidecar, clip.metadata)
    return sidecar


def remove_old(output_dir: Path, age: float) -> None:
    """Removes results that are older, and what killed runs left. A clip that is being sent stays.

    Gradio 6.31 takes the clips away that it has sent, when it ends: what lay beside them goes too.

    Args:
        output_dir: Holds folders of results, drafts and downloads, and nothing else.
        age: Seconds.
    """
    sweep_unfinished(output_dir)
    for folder in output_dir.glob("[!.]*/"):
        files = {path: path.stat() for path in folder.iterdir()}
        # An open file is sent to its end all the same; players ask for the next part of it.
        sent = any(time() - file.st_atime < BEING_SENT for file in files.values())
        # An empty one may have been made just now, for drafts or a download.
        bereft = files and not any(path.suffix in FORMATS for path in files)
        if bereft or (time() - folder.stat().st_mtime > age and not sent):
            shutil.rmtree(folder, ignore_errors=True)


def _write(
    clips: Clips,
    request: Request,
    metadata: dict,
    run: RunState,
    folder: Path,
    early: Mapping[str, Written],
) -> Result:
    kept = request.size.kept
    native, upscaled = crop_frames(clips.native, *kept), clips.upscaled
    labels = (metadata["labels"]["native"], metadata["labels"]["upscaled"])
    parts: dict[str, Iterable[np.ndarray]] = {
        "native": native,
        "upscaled": upscaled,
        "side_by_side": side_by_side(native, upscaled, labels),
    }
    if clips.base_native is not None:
        parts["base_native"] = crop_frames(clips.base_native, *kept)
    total, written = (len(parts) - len(early)) * len(native), 0

    def counted(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal written
        for frame in frames:
            run.tick("encode", written, total, "frame")
            written += 1
            yield frame

    comment = carried(metadata)
    began = perf_counter()
    files = {
        name: shutil.copyfile(early[name].file, folder / f"{name}.mp4")
        if name in early
        else encode_video(counted(frames), folder / f"{name}.mp4", clips.fps, comment)
        for name, frames in parts.items()
    }
    run.check()
    before = sum(clip.seconds for clip in early.values())
    run.seconds["encode"] = before + perf_counter() - began
    metadata["seconds"]["measured"] = run.seconds
    metadata["seconds"]["total"] = sum(run.seconds.values())
    metadata["files"] = {name: path.name for name, path in files.items()}
    poster = Image.fromarray(native[len(native) // 2])
    poster.thumbnail((POSTER_WIDTH, POSTER_WIDTH))
    poster.save(folder / "poster.jpg", quality=88)
    path = folder / "metadata.json"
    write_json(path, metadata)
    return Result(
        files["native"],
        files["upscaled"],
        files["side_by_side"],
        files.get("base_native"),
        folder / "poster.jpg",
        path,
        metadata,
    )
