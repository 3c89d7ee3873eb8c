"""What the page shows of runs and of finished examples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

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
    found = (each for each in examples if each.metadata_path.parent.name == named["example"])
    example = next(found, None)
    return Opening(example, tuple(named["loupe"])) if example else None


def compared(result: Result) -> dict[str, Any]:
    """What the player takes: the clips that stand beside each other, and what they are."""
    metadata = result.metadata
    clips = {name: gr.FileData(path=str(p)).model_dump() for name, p in clips_of(result).items()}
    facts = {"fps": metadata["fps"], "frames": metadata["request"]["num_frames"]}
    return clips | facts | {"labels": metadata["labels"]}


def clips_of(result: Result) -> dict[str, Path]:
    """The clips that can be compared, by name."""
    clips = {"native": result.native, "upscaled": result.upscaled}
    return clips | ({"base_native": result.base_native} if result.base_native else {})


def show(ui: Layout, result: Result) -> Updates:
    """Everything that shows one run."""
    metadata = result.metadata
    downloads = [*clips_of(result).values(), result.side_by_side, result.metadata_path]
    full = str(result.base_native) if result.base_native else None
    return {
        ui.status: views.finished(metadata),
        ui.comparison: compared(result),
        ui.native: str(result.native),
        ui.upscaled: str(result.upscaled),
        ui.side_by_side: str(result.side_by_side),
        ui.full: gr.update(value=full, visible=full is not None),
        ui.files: [str(path) for path in downloads],
        ui.metadata: metadata,
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
