"""What makes a clip again: carried by the clip itself, and read back from it or its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..presets import shown
from ..video import read_comment
from .loading import Models
from .request import UPSCALERS, Request

LARGEST = 2**20  # bytes of metadata; ours has a few thousand
SUFFIXES = (".json", ".mp4", ".webm")
ANSWER = (
    "Choose the metadata.json of a run, the .json beside a clip, or an MP4 or WebM made by "
    "UltraGen."
)


@dataclass(frozen=True)
class Recipe:
    """What makes a clip again.

    Attributes:
        request: The settings, not yet checked against a model.
        made_by: Program and version.
        model: Name of the model.
        fingerprint: Of its weights, in hexadecimal digits; empty where nothing is said of it.
    """

    request: Request
    made_by: str
    model: str
    fingerprint: str

    def differs(self, models: Models) -> str:
        """What will be different with these models, for people; empty if the clip will be alike."""
        if not self.fingerprint or self.fingerprint == models.fingerprint:
            return ""
        return (
            f"The clip was made by other weights ({self.model or 'unknown'}) than those that run "
            f"here ({models.preset.name}): the same settings will give another clip."
        )


def carried(metadata: Mapping[str, Any]) -> str:
    """What an MP4 or WebM carries of its metadata.

    Neither times nor machines, so that the same clip is the same file, and no folders, which are
    no business of whom the clip is sent to.
    """
    request = dict(metadata["request"])
    if request["upscaler"] not in UPSCALERS:
        request["upscaler"] = Path(request["upscaler"]).name
    model = {name: metadata["model"][name] for name in ("name", "method", "fingerprint")}
    content = {"made_by": metadata["made_by"], "request": request, "model": model}
    return json.dumps(content, ensure_ascii=False)


def read_recipe(path: Path) -> Recipe:
    """The settings of a clip, from its metadata or from the clip itself.

    Args:
        path: A `.json` that UltraGen wrote, or an `.mp4` or `.webm`, which carries the same.

    Raises:
        ValueError: if the file is of another kind or program, broken, or of a version whose
            settings are not known here.
        OSError: if it can't be read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        *others, last = SUFFIXES
        raise ValueError(f"{path.name} is no {', '.join(others)} or {last} file. {ANSWER}")
    if not path.is_file():
        raise OSError(f"there is no file {path}")
    if suffix != ".json":
        text = read_comment(path) or ""
        if not text.lstrip().startswith("{"):
            raise ValueError(
                f"{path.name} carries no settings of UltraGen: another program made it, or wrote "
                f"it anew without them. {ANSWER}"
            )
    else:
        if path.stat().st_size > LARGEST:
            raise ValueError(
                f"{path.name} has {path.stat().st_size:,} bytes, far more than metadata have. "
                f"{ANSWER}"
            )
        text = path.read_text(encoding="utf-8", errors="replace")
    return parse_recipe(text, path.name)


def parse_recipe(text: str, name: str) -> Recipe:
    """The settings that a text holds.

    Args:
        text: JSON.
        name: What to call it in errors.

    Raises:
        ValueError: as `read_recipe`.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{name} is broken: it is no JSON{where}. {ANSWER}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("request"), Mapping):
        found = (
            ", ".join(map(shown, content)) if isinstance(content, Mapping) else "a list or value"
        )
        raise ValueError(
            f"{name} is of another program: it holds {found[:200] or 'nothing'}, and no 'request'. "
            f"{ANSWER}"
        )
    made_by = str(content.get("made_by", "an unknown program"))[:80]
    try:
        request = Request.from_metadata(content)
    except ValueError as error:
        raise ValueError(f"{name} (by {made_by}): {error}") from error
    model = content.get("model")
    said = model if isinstance(model, Mapping) else {}
    return Recipe(
        request, made_by, str(said.get("name", ""))[:80], str(said.get("fingerprint", ""))
    )
