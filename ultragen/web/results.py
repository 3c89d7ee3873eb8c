"""What the page shows of runs and of finished examples."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..runs.early import NativeReady
from ..runs.loading import Models
from ..runs.request import Request
from ..runs.write import Result
from . import views
from .components import Layout
from .settings import SETTINGS, TYPED, Updates, lora_rows

KEPT_FOR = 24 * 3600  # seconds for which the files of a run are kept
NAME = re.compile(r"[A-Za-z0-9]+(-+[A-Za-z0-9]+)*")  # of a run's folder


def load_examples(folder: Path) -> list[Result]:
    """The finished examples in a folder; those that are not complete are left out."""
    found = map(load_result, sorted(folder.glob("*/metadata.json")))
    return [example for example in found if example is not None]


def load_result(path: Path) -> Result | None:
    """The run of a `metadata.json`; None if its files are not all there."""
    metadata = json.loads(path.read_text(encoding="utf-8"))
    files = {name: path.parent / file for name, file in metadata["files"].items()}
    poster = path.parent / "poster.jpg"
    if not all(file.is_file() for file in [*files.values(), poster]):
        return None
    clips = (files["native"], files["upscaled"], files["side_by_side"])
    return Result(*clips, files.get("base_native"), poster, path, metadata)


def name_of(result: Result) -> str:
    """The folder of a run, by which browsers and links know it."""
    return result.native.parent.name


def find_result(folder: Path, name: object) -> Result | None:
    """A finished run by its name; None if its files are not kept any more, or it is no name."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        return None
    try:
        return load_result(folder / name / "metadata.json")
    except OSError:
        return None


def kept_until(clip: Path) -> str:
    """Until when the files of a clip's folder are there, as HTML; empty if they are gone."""
    try:
        written = clip.parent.stat().st_mtime
    except OSError:
        return ""
    return views.kept_until(written + KEPT_FOR)


@dataclass(frozen=True)
class Opening:
    """The example that the page opens with.

    Attributes:
        example: Its clips and settings.
        loupe: Where the loupe stands, in widths and heights of the frame: where the two differ.
    """

    example: Result
    loupe: tuple[float, float]

    @property
    def comparison(self) -> dict[str, Any]:
        """What the player starts with; its first picture is there before any clip."""
        poster = gr.FileData(path=str(self.example.poster)).model_dump()
        return compared(self.example) | {"loupe": self.loupe, "poster": poster}


def load_opening(folder: Path, examples: list[Result]) -> Opening | None:
    """The example that `opening.json` in their folder names; None where there is none."""
    try:
        named = json.loads((folder / "opening.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    found = (each for each in examples if name_of(each) == named["example"])
    example = next(found, None)
    return Opening(example, tuple(named["loupe"])) if example else None


def compared(result: Result) -> dict[str, Any]:
    """What the player takes: the clips that stand beside each other, and what they are."""
    return played(clips_of(result), result.metadata)


def clips_of(result: Result) -> dict[str, Path]:
    """The clips that can be compared, by name."""
    clips = {"native": result.native, "upscaled": result.upscaled}
    return clips | ({"base_native": result.base_native} if result.base_native else {})


def native_alone(ready: NativeReady) -> dict[str, Any]:
    """The same before there is anything to compare with."""
    return played({"native": ready.file}, ready.metadata)


def played(clips: Mapping[str, Path], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Clips by name, and what is said of them."""
    files = {name: gr.FileData(path=str(path)).model_dump() for name, path in clips.items()}
    facts = {"fps": metadata["fps"], "frames": metadata["request"]["num_frames"]}
    return files | facts | {"labels": metadata["labels"]}


def show(ui: Layout, result: Result, kept: str = "") -> Updates:
    """Everything that shows one run.

    Args:
        ui: The page's components.
        result: The run.
        kept: Until when its files are there, for people.
    """
    metadata = result.metadata
    downloads = [*clips_of(result).values(), result.side_by_side, result.metadata_path]
    full = str(result.base_native) if result.base_native else None
    return {
        ui.status: views.finished(metadata, kept),
        ui.comparison: compared(result),
        ui.native: str(result.native),
        ui.upscaled: str(result.upscaled),
        ui.side_by_side: str(result.side_by_side),
        ui.full: gr.update(value=full, visible=full is not None),
        ui.files: [str(path) for path in downloads],
        ui.metadata: metadata,
    }


def show_native(ui: Layout, ready: NativeReady) -> Updates:
    """What shows the native clip of a run that made no other one."""
    return {
        ui.comparison: native_alone(ready),
        ui.native: str(ready.file),
        ui.upscaled: None,
        ui.side_by_side: None,
        ui.full: gr.update(value=None, visible=False),
        ui.files: [str(ready.file)],
        ui.metadata: ready.metadata,
    }


def show_example(ui: Layout, models: Models, example: Result) -> Updates:
    """A finished example, with its settings."""
    asked = Request.from_metadata(example.metadata)
    return show(ui, example) | fill(ui, models, asked.to_dict())


def fill(ui: Layout, models: Models, settings: Mapping[str, Any]) -> Updates:
    """The settings' components with these values."""
    shown = {
        "windows": str(settings["windows"]),
        "loras": lora_rows(models, settings["loras"] or {}),
    } | {name: None if (number := settings[name]) is None else f"{number:g}" for name in TYPED}
    values = {**settings, **shown}
    return dict(zip(ui.settings, (values[name] for name in SETTINGS), strict=True))
