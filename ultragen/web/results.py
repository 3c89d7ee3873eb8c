"""What the page shows of runs and of finished examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from ..runs.early import NativeReady
from ..runs.loading import Models
from ..runs.request import Request
from ..runs.write import Result
from . import views
from .components import Layout
from .settings import SETTINGS, Updates, lora_rows


def load_examples(folder: Path) -> list[Result]:
    """The finished examples in a folder; those that are not complete are left out."""
    examples = []
    for path in sorted(folder.glob("*/metadata.json")):
        metadata = json.loads(path.read_text(encoding="utf-8"))
        files = {name: path.parent / file for name, file in metadata["files"].items()}
        poster = path.parent / "poster.jpg"
        if all(file.is_file() for file in [*files.values(), poster]):
            clips = (files["native"], files["upscaled"], files["side_by_side"])
            examples.append(Result(*clips, files.get("base_native"), poster, path, metadata))
    return examples


def show(ui: Layout, result: Result) -> Updates:
    """Everything that shows one run."""
    metadata = result.metadata
    clips = {"native": result.native, "upscaled": result.upscaled}
    if result.base_native:
        clips["base_native"] = result.base_native
    files = {name: gr.FileData(path=str(path)).model_dump() for name, path in clips.items()}
    facts = {"fps": metadata["fps"], "frames": metadata["request"]["num_frames"]}
    downloads = [*clips.values(), result.side_by_side, result.metadata_path]
    full = str(result.base_native) if result.base_native else None
    return {
        ui.status: views.finished(metadata),
        ui.comparison: files | facts | {"labels": metadata["labels"]},
        ui.native: str(result.native),
        ui.upscaled: str(result.upscaled),
        ui.side_by_side: str(result.side_by_side),
        ui.full: gr.update(value=full, visible=full is not None),
        ui.files: [str(path) for path in downloads],
        ui.metadata: metadata,
    }


def native_alone(ready: NativeReady) -> dict[str, Any]:
    """The comparison before there is anything to compare with."""
    metadata = ready.metadata
    return {
        "native": gr.FileData(path=str(ready.file)).model_dump(),
        "fps": metadata["fps"],
        "frames": metadata["request"]["num_frames"],
        "labels": metadata["labels"],
    }


def show_example(ui: Layout, models: Models, example: Result) -> Updates:
    """A finished example, with its settings."""
    settings = Request.from_metadata(example.metadata).to_dict()
    shown = {
        "windows": str(settings["windows"]),
        "loras": lora_rows(models, settings["loras"] or {}),
    }
    values = list({name: (settings | shown)[name] for name in SETTINGS}.values())
    return show(ui, example) | dict(zip(ui.settings, values, strict=True))
