"""One clip after the other, with models that are loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from ..files import first_line
from ..runs import loading
from ..runs.native import generate_native
from .clip_folder import MOST_ATTEMPTS, Outcome, Results
from .prompt_files import Clip


@dataclass(frozen=True)
class Settings:
    """What all clips of a run share.

    Attributes:
        out: Folder of the clips.
        source: Name of the file that asks for them.
        model: As in `load_models`.
        loras: Likewise.
        fp8: Whether large linear layers compute in FP8.
    """

    out: Path
    source: str
    model: str | None = None
    loras: list[str] | None = None
    fp8: bool = False


class Maker:
    """Makes clips, and loads the models for the first one.

    Args:
        settings: What they share.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.results = Results(settings.out)
        self.models: Any = None
        self.loading = 0.0

    def make(self, clip: Clip) -> Outcome:
        """Makes a clip, unless it is there.

        Raises:
            OSError: The models can't be loaded.
            ValueError: The machine can't run them.
            RuntimeError: Its memory ran out on the way.
        """
        # It may be there since a process was killed after it had written it.
        if self.results.has(clip.name):
            self.results.end(clip.name)
            return Outcome(clip.name, "kept")
        if self.models is None:
            self._load()
        try:
            return self._make(clip)
        except OSError as error:
            return Outcome(clip.name, "stopped", first_line(error))

    def _make(self, clip: Clip) -> Outcome:
        if (attempts := self.results.begin(clip.name)) >= MOST_ATTEMPTS:
            reason = f"the process that made it died {attempts} times"
            return Outcome(clip.name, "failed", reason)
        try:
            made = generate_native(clip.request, self.models)
        except Exception as error:  # whatever it is, other clips may do
            self.results.end(clip.name)
            return Outcome(clip.name, "failed", first_line(error))
        try:
            self.results.write(clip, made, self.settings.source, self.loading)
        finally:
            self.results.end(clip.name)
        return Outcome(clip.name, "made")

    def _load(self) -> None:
        began = perf_counter()
        self.models = loading.load_models(self.settings.model, self.settings.loras)
        if self.settings.fp8:
            self.models.enable_fp8()
        self.loading = perf_counter() - began
