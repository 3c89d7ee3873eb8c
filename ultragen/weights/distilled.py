"""What weights were distilled to, read without loading them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .folders import read_index
from .json_files import check_fields, read_object


@dataclass(frozen=True)
class Distilled:
    """How distilled weights are sampled, without guidance.

    Attributes:
        steps: Denoising steps.
        shift: Of their noise levels; None where it is the pipeline's own.
        with_base: Whether the dense base model beside them was distilled too: a pipeline says so
            of both its transformers, and `train wan-distill` of the one that it has trained.
    """

    steps: int
    shift: float | None = None
    with_base: bool = False


FIELDS = {"distilled_steps": int | None, "distilled_shift": float | None}


def read_distilled(source: Path) -> Distilled | None:
    """What weights were distilled to; None where they were not, or don't say so.

    Args:
        source: A file, or the folder of a transformer or a pipeline.

    Raises:
        OSError: if a folder's configuration is corrupt.
    """
    told: dict[str, Any] = {}
    with_base = False
    if source.suffix == ".safetensors" and source.is_file():
        from .released import header_settings  # torch, which those who only ask can do without

        with suppress(OSError, SafetensorError):  # loaders say what is wrong with the file
            told = header_settings(source)
    for folder in (source, source / "transformer"):
        if (folder / "config.json").is_file():
            told = read_object(folder / "config.json", FIELDS)
    if (source / "model_index.json").is_file():
        index = read_index(source)
        check_fields(index, FIELDS, source / "model_index.json")
        with_base = not told.get("distilled_steps")
        told = {**told, "distilled_steps": index.get("distilled_steps")}
    steps = told.get("distilled_steps")
    return Distilled(steps, told.get("distilled_shift"), with_base) if steps else None
