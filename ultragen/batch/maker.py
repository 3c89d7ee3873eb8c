"""One clip after the other, with models that are loaded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from ..files import first_line
from ..runs.loading import load_models
from ..runs.native import generate_native
from .prompt_files import Clip
from .results import MOST_ATTEMPTS, Outcome, Results


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
        load: Gives the models.
    """

    def __init__(
        self, settings: Settings, load: Callable[[Settings], Any] = lambda s: load_for(s)
    ) -> None:
        self.settings, self.load = settings, load
        self.results = Results(settings.out)
        self.models: Any = None
        self.loading = 0.0

    def make(self, clip: Clip) -> Outcome:
        """Makes a clip, unless it is there.

        Raises:
            OSError: The models can't be loaded, or the clip not be written: no other one can.
            ValueError: The machine can't run the models.
            RuntimeError: Its memory ran out on the way.
        """
        # It may be there since a process was killed after it had written it.
        if self.results.has(clip.name):
            self.results.end(clip.name)
            return Outcome(clip.name, "kept")
        if self.models is None:
            began = perf_counter()
            self.models = self.load(self.settings)
            self.loading = perf_counter() - began
        if (attempts := self.results.begin(clip.name)) >= MOST_ATTEMPTS:
            reason = f"the process that made it died {attempts} times"
            return Outcome(clip.name, "failed", reason)
        try:
            made = generate_native(clip.request, self.models)
        except Exception as error:  # whatever it is, other clips may do
            self.results.end(clip.name)
            return Outcome(clip.name, "failed", first_line(error))
        self.results.write(clip, made, self.settings.source, self.loading)
        self.results.end(clip.name)
        return Outcome(clip.name, "made")


def load_for(settings: Settings) -> Any:
    """The models of a run; errors as in `load_models`."""
    models = load_models(settings.model, settings.loras)
    if settings.fp8:
        models.enable_fp8()
    return models
