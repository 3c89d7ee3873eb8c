"""Drafts on the page: a grid of seeds, and the one that is made large."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from threading import Event
from time import monotonic
from typing import Any

import gradio as gr

from ..runs.drafts import (
    FRAMES,
    MOST,
    Draft,
    DraftFrames,
    check_count,
    draft_folder,
    draft_of,
    drafts_seconds_asked,
    estimate_drafts,
    generate_drafts,
    write_draft,
)
from ..runs.loading import Models
from ..runs.progress import Progress
from ..runs.request import Request
from ..runs.worker import Failed, Finished, stream
from . import views
from .components import Layout
from .kept import KeptRun, KeptRuns
from .runs import CANCELLED, NOT_WRITTEN, Runs, until_stopped
from .settings import SETTINGS, Updates, as_settings, check_quota, problem, said, validated

OF_THE_SCENE = (
    "prompt", "seed", "guidance_scale", "negative_prompt", "loras", "noise", "aspect",
    "guidance_interval", "cache", "shift", "solver", "base_guidance_scale",
)  # fmt: skip
"""Settings that a large clip takes from its draft; the others are those of the page by then."""

FOLDER = re.compile(r"drafts-\d+-[0-9a-f]{8}")
"""Names of folders as `draft_folder` makes them."""

DraftPart = Callable[[Request, int], Iterator[Any]]


class Drafts:
    """What the page does with drafts.

    Args:
        ui: The page's components.
        runs: What starts runs.
        kept: What stops them.
        gpu_part: `draft_frames` of the models, or what wraps it.
    """

    def __init__(self, ui: Layout, runs: Runs, kept: KeptRuns, gpu_part: DraftPart) -> None:
        self.ui, self.runs, self.kept, self.gpu_part = ui, runs, kept, gpu_part

    def run(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Makes drafts, and shows each as soon as it is there. They end when their page goes."""
        announced = self.kept.announced(request.session_hash)
        try:
            yield from self._run(announced, *values)
        except gr.Error as error:
            announced.end(error)  # which the page says after it
            raise
        finally:
            announced.end()

    def _run(self, run: KeptRun, *values: Any) -> Iterator[Updates]:
        """The same, until it is stopped."""
        models = self.runs.models
        *settings, count = values
        asked = validated(models, as_settings(settings))
        count = self.checked(count, asked)
        stages = estimate_drafts(asked, count, models)

        def work() -> Iterator[Any]:
            return until_stopped(run.stop, self._work(asked, count))

        items = self.runs.in_turn(work, run.stop, sum(stages.values()))
        try:
            with closing(items):  # an exception that is kept would keep the device with them
                yield from self._shown(run, items, stages)
        except Exception as error:  # else the page would show for ever how far they were
            yield self._failed(run, Failed(said(error)))
            if isinstance(error, gr.Error):
                raise
            raise problem(said(error)) from error

    def _shown(
        self, run: KeptRun, items: Iterator[Any], stages: dict[str, float]
    ) -> Iterator[Updates]:
        """The page while drafts are made, and after it."""
        ui = self.ui
        began, progress = None, Progress("text", 0, 1, 0.0, "Starting")
        made: list[Draft] = []
        for item in items:
            if isinstance(item, Progress):  # the first one comes when the device is free
                began = began or monotonic()
            elapsed = None if began is None else monotonic() - began
            if isinstance(item, Draft):
                made.append(item)
                yield {ui.drafts: gallery(made), ui.drafted: list(made)}
            elif isinstance(item, Finished):
                first = chosen(ui, made[0]) | {ui.kept_drafts: remembered(made)}
                # Again, since a busy browser can pass over one of several updates in a row.
                first |= {ui.drafts: gallery(made), ui.drafted: list(made)}
                run.told = finished(made, elapsed or 0.0)
                yield ready(ui) | first | {ui.status: run.told}
            elif isinstance(item, Failed):
                yield self._failed(run, item, elapsed)
            else:
                progress = item or progress
                title = "Stopping after this step" if run.stop.is_set() else progress.message
                yield {ui.status: views.running(progress, stages, elapsed or 0.0, title)}

    def _failed(self, run: KeptRun, failure: Failed, elapsed: float | None = None) -> Updates:
        """The page after drafts that were cancelled or went wrong."""
        ui = self.ui
        run.told = failed(failure, elapsed)
        return ready(ui) | {
            ui.status: run.told,
            ui.drafts: gr.update(value=[], visible=False),
            ui.large: gr.update(visible=False),
            ui.kept_drafts: {},
        }

    def checked(self, count: object, asked: Request) -> int:
        """How many drafts are made.

        Raises:
            gr.Error: If it is another number, or if they exceed every quota.
        """
        try:
            number = check_count(count, asked, self.runs.models)
        except ValueError as error:
            raise problem(str(error)) from error
        check_quota(drafts_seconds_asked(asked, number, self.runs.models))
        return number

    def _work(self, asked: Request, count: int) -> Iterator[Any]:
        """Passes items on, drafts as files in a new folder; of a run that does not end nothing is
        left."""
        items, folder, whole = self.gpu_part(asked, count), None, False
        try:
            for item in items:
                if isinstance(item, DraftFrames):
                    folder = folder or draft_folder(asked, self.runs.output_dir)
                    yield write_draft(item, folder)
                else:
                    whole = whole or isinstance(item, Finished)
                    yield item
        except OSError as error:  # its paths are for whoever runs the page
            print(f"A draft could not be written: {error}", file=sys.stderr)
            yield Failed(NOT_WRITTEN)
        finally:
            items.close()  # type: ignore[attr-defined]
            if folder is not None and not whole:
                shutil.rmtree(folder, ignore_errors=True)

    def restore(self, kept: object, visitor: object) -> Updates:
        """The drafts that this browser has kept, as long as their files are there. The first one
        plays where no run is shown."""
        made = self.found(kept)
        if not made:
            return {self.ui.kept_drafts: {}}
        updates = {self.ui.drafts: gallery(made), self.ui.drafted: made} | chosen(self.ui, made[0])
        if isinstance(visitor, dict) and visitor.get("shown"):
            del updates[self.ui.comparison]
        return updates

    def found(self, kept: object) -> list[Draft]:
        """The drafts of what a browser has kept, whatever that is; none if one can't be used."""
        if not (isinstance(kept, dict) and isinstance(kept.get("settings"), list)):
            return []
        name, made = kept.get("folder"), []
        if not (isinstance(name, str) and FOLDER.fullmatch(name)):
            return []
        for settings in kept["settings"][:MOST]:
            try:
                asked = Request(**settings).validate(self.runs.models.preset)
            except (TypeError, ValueError):
                return []
            draft = draft_of(asked, self.runs.output_dir / name)
            if not (draft.clip.is_file() and draft.poster.is_file()):
                return []
            made.append(draft)
        return made

    def choose(self, drafted: list[Draft], event: gr.SelectData) -> Updates:
        """The draft that is to be made large."""
        return chosen(self.ui, drafted[event.index])


def draft_frames(asked: Request, count: int, models: Models) -> Iterator[Any]:
    """The part of drafts that needs the GPU."""

    def task(report: Callable[[Any], None], cancelled: Event) -> None:
        generate_drafts(asked, count, models, report, cancelled)

    yield from stream(task)


def with_scene(values: Sequence[Any], scene: dict[str, Any] | None) -> list[Any]:
    """The page's settings with those of a draft, where one was chosen."""
    settings = dict(zip(SETTINGS, values, strict=True)) | (scene or {})
    return list(settings.values())


def chosen(ui: Layout, draft: Draft) -> Updates:
    """The page after a draft was chosen: it plays, and the button says which one it makes."""
    settings = draft.request.to_dict()
    height, width = ui.preset.base_size(draft.request.aspect)
    file = gr.FileData(path=str(draft.clip)).model_dump()
    return {
        ui.comparison: {
            "native": file,
            "fps": draft.request.frame_rate,
            "frames": FRAMES,
            "labels": {"native": f"Draft {width}×{height}, seed {draft.request.seed}"},
        },
        ui.scene: {name: settings[name] for name in OF_THE_SCENE},
        ui.large: gr.update(
            value=f"Make it large: seed {draft.request.seed}", visible=True, interactive=True
        ),
    }


def remembered(made: Sequence[Draft]) -> dict[str, Any]:
    """What a browser keeps of drafts: the server has no prompt of theirs."""
    return {
        "folder": made[0].clip.parent.name,
        "settings": [draft.request.to_dict() for draft in made],
    }


def gallery(made: list[Draft]) -> Any:
    """The grid of drafts."""
    items = [(str(draft.poster), f"seed {draft.request.seed}") for draft in made]
    return gr.update(value=items, visible=True)


def busy(ui: Layout) -> Updates:
    """The page while something runs or waits."""
    return {
        ui.start: gr.update(interactive=False),
        ui.draft: gr.update(interactive=False),
        ui.large: gr.update(interactive=False),
        ui.stop: gr.update(visible=True),
    }


def ready(ui: Layout) -> Updates:
    """The page when nothing runs any more."""
    return {
        ui.start: gr.update(interactive=True),
        ui.draft: gr.update(interactive=True),
        ui.large: gr.update(interactive=True),
        ui.stop: gr.update(visible=False),
    }


def finished(made: list[Draft], elapsed: float) -> str:
    """What is said of drafts that were made."""
    number = "A draft" if len(made) == 1 else f"{len(made)} drafts"
    text = "Click one to see it play; made large, it is much the same scene."
    return views.notice("good", f"{number} in {views.duration(elapsed)}", text)


def failed(failure: Failed, elapsed: float | None) -> str:
    """What is said of drafts that were not."""
    if failure == CANCELLED:
        return views.notice("stopped", "Cancelled", views.stopped(elapsed))
    return views.notice("bad", "The drafts failed", failure.message)
