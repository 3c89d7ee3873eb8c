"""The rows of a table, as data, and how their clips are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ..dataset.encoders import encode_clip
from ..pictures import crop_frames
from ..pipeline import UltraGenPipeline
from ..presets import EVERY_STEP, FAST
from ..runs.clip import composition_of, encode_text, make_clips, resolve_windows
from ..runs.loading import Models
from ..runs.progress import RunState
from ..runs.request import Request
from ..weights.folders import read_index
from .case import Case
from .instruments import Instruments, measure
from .scores import LEVEL, ClipScores, RowScores


@dataclass(frozen=True)
class Row:
    """A way to make clips.

    Attributes:
        key: Name of its folder and in JSON.
        title: What people read.
        source: `ultragen`, its dense `base` model, `real` clips of the same scenes, or the
            autoencoder's `copies` of these.
        upscaler: Enlarges clips of the base model's own size; without it they are made at the full
            size.
        model: Another model than the one that is evaluated: `TEACHER`, or the name of an ablation's
            folder.
        num_inference_steps: In place of the request's.
        guidance_scale: In place of the request's.
        guidance_interval: In place of the request's.
        cache: In place of the request's.
        progressive: In place of the request's.
    """

    key: str
    title: str
    source: Literal["ultragen", "base", "real", "copies"]
    upscaler: str | None = None
    model: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: str | None = None
    cache: str | None = None
    progressive: str | None = None

    @property
    def own(self) -> dict[str, Any]:
        """The settings that it has in place of the request's."""
        names = (
            "num_inference_steps", "guidance_scale", "guidance_interval", "cache", "progressive",
        )  # fmt: skip
        return {name: value for name in names if (value := getattr(self, name)) is not None}


TEACHER = "teacher"
"""The model that a distilled one was made from, in the folder that the command line names."""
MAIN = "evaluated"
"""What results call the model of rows that name no other."""
SETS: dict[str, tuple[Row, ...]] = {
    "table1": (
        Row("base-native", "Base model, native", "base"),
        Row("base-lanczos", "Base model + Lanczos", "base", upscaler="lanczos"),
        Row("base-network", "Base model + ×4 network", "base", upscaler="network"),
        Row("ultragen", "UltraGen, native", "ultragen"),
        Row("real", "Real clips", "real"),
    ),
    "distillation": (
        Row(
            "teacher",
            "Teacher",
            "ultragen",
            model=TEACHER,
            num_inference_steps=30,
            guidance_scale=3.0,
        ),
        Row("student", "Student", "ultragen"),
        Row("real", "Real clips", "real"),
    ),
    "fast": (
        Row("full", "All steps, guided throughout", "ultragen"),
        Row(
            "fast",
            "Fast",
            "ultragen",
            guidance_interval=FAST["guidance_interval"],
            cache=FAST["cache"],
        ),
        Row("real", "Real clips", "real"),
    ),
    "progressive": (
        Row("whole", "At the full size throughout", "ultragen", progressive="off"),
        Row("composed", "Composed by a smaller clip", "ultragen", progressive="on"),
        Row("real", "Real clips", "real"),
    ),
    "copies": (
        Row("ultragen", "UltraGen, native", "ultragen"),
        Row("copies", "The autoencoder's copies of real clips", "copies"),
        Row("real", "Real clips", "real"),
    ),
    "table4": (
        Row("full", "Full", "ultragen"),
        *(
            Row(name, title, "ultragen", model=name)
            for name, title in (
                ("without-global", "Without global"),
                ("without-crossing", "Without crossing windows"),
                ("without-hierarchical", "Without hierarchical"),
                ("without-lora", "Without low-rank updates"),
                ("swin", "Swin's shift in place of K + 1"),
            )
        ),
        Row("real", "Real clips", "real"),
    ),
}
"""Tables by name; another table is another entry."""
REFERENCE = Row("reference", "Reference", "real")
"""What HD-FVD compares with: real clips of other scenes, in no table."""


def rows_of(table: str, teacher: bool = False, models: Path | None = None) -> tuple[Row, ...]:
    """The rows of a table.

    Args:
        table: Its name.
        teacher: Whether there is one.
        models: Folder of the models of ablations, each in a folder of its row's name; rows that it
            lacks are left out, but for the first one.

    Raises:
        ValueError: There is no such table, or it needs a teacher or a folder of models, or has no
            use for one; or as `_with_models`.
        OSError: A model's index is damaged.
    """
    if table not in SETS:
        raise ValueError(f"set {table!r:.40} is unknown: choose from {', '.join(SETS)}.")
    rows = SETS[table]
    asked = any(row.model == TEACHER for row in rows)
    if asked and not teacher:
        raise ValueError(f"--set {table} needs the teacher: add --teacher FOLDER.")
    if teacher and not asked:
        raise ValueError(f"--set {table} has no row of a teacher: leave --teacher out.")
    ablations = {row.key for row in rows if row.model not in (None, TEACHER)}
    if ablations and models is None:
        raise ValueError(f"--set {table} needs the folder of its models: add --models FOLDER.")
    if models is None:
        return rows
    if not ablations:
        raise ValueError(f"--set {table} has no rows of ablations: leave --models out.")
    return _with_models(rows, {rows[0].key} | ablations, models)


def _with_models(rows: Sequence[Row], known: set[str], models: Path) -> tuple[Row, ...]:
    """Those of the rows whose models are in a folder, and those that need none.

    Raises:
        ValueError: It lacks the first row's model, holds others than those that are known, or some
            that are not distilled as the others.
        OSError: A model's index is damaged.
    """
    found = {path.parent.name for path in models.glob("*/model_index.json")}
    if rows[0].key not in found or found - known:
        raise ValueError(
            f"{models} has models called {', '.join(sorted(found)) or 'nothing'}: there must be "
            f"{rows[0].key}, and none but {', '.join(row.key for row in rows if row.key in known)}."
        )
    steps = {name: read_index(models / name).get("distilled_steps") for name in sorted(found)}
    if len(set(steps.values())) > 1:
        said = ", ".join(f"{name} in {n}" if n else f"{name} is not" for name, n in steps.items())
        raise ValueError(
            f"The models in {models} are not distilled alike: {said}. Distil all of them or none."
        )
    return tuple(row for row in rows if row.key in found or row.key not in known)


Clip = tuple[np.ndarray, float | None]
"""Frames t rows w 3, uint8, and the seconds they took, None for a real clip."""


ENCODED = 16  # frames of a clip that are encoded together, after the first
LATER = {
    "guidance_interval": EVERY_STEP,
    "cache": "off",
    "shift": None,
    "solver": "own",
    "base_num_inference_steps": None,
    "base_guidance_scale": None,
    "progressive": "off",
}
"""Settings that older evaluations don't name, which were made without them."""


class Source(Protocol):
    """Where the clips of an evaluation come from.

    Attributes:
        batch: Clips that are made together.
        shows_reference: Whether what HD-FVD compares with has a row of its own.
    """

    @property
    def batch(self) -> int: ...

    @property
    def shows_reference(self) -> bool: ...

    def measured(
        self, row: Row, cases: Sequence[tuple[int, Case]], instruments: Instruments
    ) -> Iterator[tuple[ClipScores, np.ndarray]]:
        """What a row's clips gave, and the middle frame of each."""
        ...

    def settings(self, rows: Sequence[Row], cases: Sequence[Case]) -> dict[str, Any]:
        """What must be the same for clips to stand in one table, as plain values."""
        ...

    def lines(self, scores: Sequence[RowScores], settings: dict[str, Any]) -> list[str]:
        """What a table says of its clips, in Markdown."""
        ...

    def against(self, references: Sequence[Case]) -> str:
        """What HD-FVD compares with, in words."""
        ...

    def results(self, cases: Sequence[Case], references: Sequence[Case]) -> dict[str, Any]:
        """What `results.json` says of the clips and of what they are compared with."""
        ...

    def release(self) -> None:
        """Gives memory back that is not needed for a while."""
        ...


class Maker:
    """Makes the clips of all rows.

    Args:
        load: Gives the models that a row names, or those that are evaluated for None.
        request: Settings of every clip but the prompt; clip i has the noise of its seed + i.
        batch: Clips that are denoised together, which takes a GPU less time.
    """

    shows_reference = False  # the row of real clips stands for it

    def __init__(
        self, load: Callable[[str | None], Models], request: Request, batch: int = 1
    ) -> None:
        self.load, self.batch = load, batch
        self.loaded: dict[str | None, Models] = {}
        self.small: dict[tuple[str | None, tuple[Request, ...]], list[tuple[np.ndarray, float]]]
        self.small = {}
        # The models as they are, whatever LoRAs a machine has.
        self.request = replace(request, loras={}).validate(self.models().preset)

    def models(self, name: str | None = None) -> Models:
        """A row's models, loaded at their first use."""
        if name not in self.loaded:
            self.loaded[name] = self.load(name)
        return self.loaded[name]

    def edition(self, rows: Sequence[Row]) -> int:
        """The edition of the procedural world that the models of some rows belong to.

        Raises:
            ValueError: They belong to several.
        """
        found = {name: models.edition for name, models in self._models_of(rows).items()}
        if len(set(found.values())) > 1:
            said = ", ".join(f"{name} to {edition}" for name, edition in found.items())
            raise ValueError(
                f"The models belong to several editions of the world: {said}. Say by --edition "
                "which one prompts and real clips come from."
            )
        return found[MAIN]

    def _models_of(self, rows: Sequence[Row]) -> dict[str, Models]:
        """The models that are evaluated, and those that rows name."""
        names = {row.model: None for row in rows if row.model is not None}
        return {MAIN: self.models(), **{name: self.models(name) for name in names}}

    def make(self, row: Row, cases: Sequence[tuple[int, Case]]) -> Iterator[Clip]:
        """A row's clips of some scenes with their numbers; those of a batch share its seconds.

        Raises:
            RuntimeError: A clip is black or not finite.
        """
        models, size = self.models(row.model), self.request.size
        full = (size.height, size.width)
        if row.source in ("real", "copies"):
            for _, case in cases:
                frames = case.frames(*full, self.request.frames, models.device)
                if row.source == "copies":
                    frames = copy_clip(models.native, frames)
                yield crop_frames(frames, *size.kept), None
            return
        requests = tuple(self._request(row, number, case) for number, case in cases)
        if row.upscaler is None:
            for frames, seconds in self._generate(row, requests, full):
                yield crop_frames(frames, *size.kept), seconds
            return
        upscaler = models.upscaler(row.upscaler)
        for frames, seconds in self._small(row, requests):
            began = perf_counter()
            frames = np.stack(list(upscaler.stream(frames, *size.kept)))
            yield frames, seconds + perf_counter() - began

    def measured(
        self, row: Row, cases: Sequence[tuple[int, Case]], instruments: Instruments
    ) -> Iterator[tuple[ClipScores, np.ndarray]]:
        """What a row's clips gave, and the middle frame of each; errors as `make` and `measure`."""
        for (_, case), (frames, seconds) in zip(cases, self.make(row, cases), strict=True):
            yield measure(frames, case, instruments, seconds), frames[len(frames) // 2]

    def settings(self, rows: Sequence[Row], cases: Sequence[Case]) -> dict[str, Any]:
        """What must be the same for clips to stand in one table."""
        request = self.request.to_dict()
        first = self.request.first_size(self.models().preset)
        request["progressive"] = "on" if first else "off"
        noise = request.pop("noise")  # beside it, because older evaluations have a request without
        for name, off in LATER.items():
            if request[name] == off:
                del request[name]
        made = ("prompt", "upscaler", "base_native")  # each row and clip has its own
        found: dict[str, Any] = {
            "request": {name: value for name, value in request.items() if name not in made},
            "models": {x: models.fingerprint for x, models in self._models_of(rows).items()},
            "noise": noise,
            "batch": self.batch,  # which seconds depend on
            "world": cases[0].world,
        }
        if own := {row.key: row.own for row in rows if row.own}:
            found["own_settings"] = own
        return found

    def lines(self, scores: Sequence[RowScores], settings: dict[str, Any]) -> list[str]:
        """What a table says of its clips, in Markdown."""
        request, batch = settings["request"], settings["batch"]
        own = settings.get("own_settings", {})
        medians = f"medians of clips made {batch} at a time" if batch > 1 else "medians"
        apart = [f"- {row.title}: {_listed(own[row.key])}" for row in scores if row.key in own]
        of_base = ""
        if steps := request.get("base_num_inference_steps"):
            scale = request["base_guidance_scale"]
            of_base = f" (the base model: {steps} steps, guidance {scale})"
        if request.get("progressive") and not any("progressive" in each for each in own.values()):
            of_base += "; UltraGen's are composed by smaller clips"
        return [
            f"{scores[0].clips} clips of {request['num_frames']} frames a row at "
            f"{request['resolution']}, {settings['noise']} noise from seed {request['seed']} on, "
            f"{request['num_inference_steps']} steps, guidance {request['guidance_scale']}"
            f"{of_base}. In brackets: {LEVEL:.0%} intervals, bootstrap over clips. Seconds are "
            f"{medians}.",
            "",
            *apart,
        ]

    def against(self, references: Sequence[Case]) -> str:
        """What HD-FVD compares with, in words."""
        return f"real clips of {len(references)} other scenes"

    def results(self, cases: Sequence[Case], references: Sequence[Case]) -> dict[str, Any]:
        """What `results.json` says of the clips and of what they are compared with."""
        return {
            "clips": [
                {
                    "number": i,
                    "scene": case.seed,
                    "caption": case.caption,
                    "named": dict(case.named),
                }
                for i, case in enumerate(cases)
            ],
            "reference_scenes": [case.seed for case in references],
        }

    def release(self) -> None:
        """Gives the models' memory back; they are loaded anew when they are needed."""
        self.loaded.clear()
        self.small.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _request(self, row: Row, number: int, case: Case) -> Request:
        own = {"prompt": case.caption, "seed": self.request.seed + number, **row.own}
        return replace(self.request, **own).validate(self.models(row.model).preset)

    def _small(self, row: Row, requests: tuple[Request, ...]) -> list[tuple[np.ndarray, float]]:
        """The base model's own clips, which rows with other upscalers share; only the last ones
        are kept."""
        key = (row.model, requests)
        if key not in self.small:
            preset = self.models(row.model).preset
            size = (preset.base_height, preset.base_width)
            self.small = {key: self._generate(row, requests, size)}
        return self.small[key]

    def _generate(
        self, row: Row, requests: tuple[Request, ...], size: tuple[int, int]
    ) -> list[tuple[np.ndarray, float]]:
        models = self.models(row.model)
        if row.source == "base":
            requests = tuple(replace(request.of_base, **row.own) for request in requests)
        run = RunState(lambda progress: None, Event(), {})
        text = encode_text(run, models.native, requests)
        if row.source == "ultragen":
            windows = {"windows": resolve_windows(requests[0], models)}
            first = composition_of(requests[0], models)
            clips = make_clips(run, models.native, requests, text, size, "", windows, first=first)
        else:
            prefix = "base_" if row.upscaler else "base_native_"
            clips = make_clips(run, models.base, requests, text, size, prefix, {})
        seconds = sum(run.seconds.values()) / len(requests)
        return [(frames, seconds) for frames in clips]


def copy_clip(pipe: UltraGenPipeline, frames: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of a clip, uint8, t h w 3, 4n + 1 frames.

    Raises:
        GenerationError: The copy is black or not finite.
    """
    cuts = (0, *range(ENCODED + 1, len(frames), ENCODED), len(frames))
    pieces = (  # made when they are encoded: a whole clip as floats would take gigabytes at 4K
        torch.from_numpy(frames[first:last]).permute(3, 0, 1, 2).float() / 127.5 - 1
        for first, last in pairwise(cuts)
    )
    try:
        latents = encode_clip(pipe.vae, pieces)[None].to(pipe.vae.device)
        return np.asarray(pipe.decode(latents, "uint8")[0])
    finally:
        pipe.maybe_free_model_hooks()  # an autoencoder that came to the GPU leaves it


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
