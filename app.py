"""The web page and its API: components, wiring, launch."""

# ruff: noqa: E402 - proxies are settled before Gradio is imported, which makes clients of them
from __future__ import annotations

import spaces  # first: it has to see CUDA before anything else does

# isort: split
from ultragen.web.proxies import reach_localhost

reach_localhost()

# isort: split
import os
import random
import sys
import time
from collections.abc import Iterator
from functools import partial
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from ultragen.estimates.cost import ZEROGPU_TIERS
from ultragen.runs.clip import job
from ultragen.runs.loading import Models, load_models
from ultragen.runs.progress import Progress
from ultragen.runs.request import MAX_SEED, Request
from ultragen.runs.worker import Failed, Finished
from ultragen.runs.write import Result, remove_old
from ultragen.runs.zerogpu import seconds_asked
from ultragen.web import about, suggestions, views
from ultragen.web.api import build_api
from ultragen.web.calls import checker
from ultragen.web.components import Layout, negative_info, theme
from ultragen.web.gate import PLACES, Gate
from ultragen.web.results import load_examples, load_opening, show, show_example
from ultragen.web.runs import CANCELLED, Runs
from ultragen.web.server import serve
from ultragen.web.settings import (
    SETTINGS,
    Updates,
    describe_model,
    on_zero_gpu,
    problem,
    refresh,
    take_offer,
    validated,
)

ROOT = Path(__file__).parent
EXAMPLES = ROOT / "docs" / "examples"
DAY = 24 * 3600
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "run", "concurrency_limit": 1}
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
SCRIPTED: dict[str, Any] = {"queue": False, "api_visibility": "private"}
SCROLL_TO_STATUS = "() => { if (innerWidth < 900) ultragenShow('#status', 'start'); }"
SCROLL_TO_PLAYER = "() => ultragenShow('.uc', 'nearest')"  # as far as it takes to see all of it
# What plays takes a CPU's time from what is to be made.
PAUSE = "() => document.querySelectorAll('.uc video').forEach((video) => video.pause())"
TELL_PROMPT = (
    "(prompt) => { document.dispatchEvent(new CustomEvent('ultragen:prompt', {detail: prompt})); }"
)


class Page:
    """What happens on the page, and its API.

    Args:
        models: What clips are made with.
        output_dir: Where each run gets a folder of its own.
    """

    def __init__(self, models: Models, output_dir: Path) -> None:
        self.models = models
        self.runs = Runs(models, output_dir)
        self.examples = load_examples(EXAMPLES)

        # Half a card holds all that is offered; the whole one costs visitors twice the quota.
        @spaces.GPU(duration=lambda request: seconds_asked(request, models), size="large")
        def gpu_part(request: Request) -> Iterator:
            yield from self.runs.frames(request)

        self.gpu_part = gpu_part

    def build(self) -> gr.Blocks:
        """The page with everything wired."""
        with gr.Blocks(title="UltraGen", delete_cache=(DAY // 4, DAY)) as blocks:
            visitors = [visitor for visitor, _ in ZEROGPU_TIERS] if on_zero_gpu() else []
            described = describe_model(self.models)
            opening = load_opening(EXAMPLES, self.examples)
            player = opening.comparison if opening else None
            self.ui = Layout(self.models.preset, described, self.examples, visitors, player)
            self.wire(blocks)
            build_api(self.runs, self.gpu_part, **ONE_AT_A_TIME)
        blocks.check = checker(self.models)  # for the gate
        return blocks.queue(max_size=PLACES, default_concurrency_limit=1, api_open=False)

    # Wiring

    def wire(self, blocks: gr.Blocks) -> None:
        """Connects the components with what they cause."""
        ui, models = self.ui, self.models
        looks = [ui.estimate, ui.drawing, ui.costs, *ui.offers.values()]
        costly = [ui.resolution, ui.windows, ui.num_frames, ui.steps, ui.guidance, ui.upscaler]
        gr.on(
            [blocks.load, *(component.change for component in [*costly, ui.base_native])],
            partial(refresh, ui, models),
            ui.settings,
            looks,
            trigger_mode="always_last",
            **QUIET,
        )
        gr.on(
            [blocks.load, ui.prompt.change],
            partial(suggestions.name_unknown_words, models),
            ui.prompt,
            ui.words,
            trigger_mode="always_last",
            **QUIET,
        )
        for visitor, button in ui.offers.items():
            button.click(
                partial(take_offer, ui, models, visitor),
                None,
                [ui.resolution, ui.num_frames, ui.steps],
                **QUIET,
            )
        gr.on([blocks.load, ui.prompt.change], None, ui.prompt, js=TELL_PROMPT, **SCRIPTED)
        ui.guidance.change(
            lambda scale: gr.update(info=negative_info(scale)), ui.guidance, ui.negative, **QUIET
        )
        ui.dice.click(lambda: random.randint(0, MAX_SEED), None, ui.seed, **QUIET)

        buttons = [ui.start, ui.stop]
        checked = gr.on(
            [ui.start.click, ui.prompt.submit],
            self.prepare,
            ui.settings,
            [ui.status, *buttons],
            trigger_mode="once",
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        )
        checked.then(None, js=SCROLL_TO_STATUS, api_visibility="private")
        checked.success(None, js=PAUSE, api_visibility="private")
        checked.success(
            self.run,
            [*ui.settings, ui.history],
            [*ui.result, *buttons, ui.history, ui.recent],
            show_progress="hidden",
            api_visibility="private",
            **ONE_AT_A_TIME,
        ).then(partial(refresh, ui, models), ui.settings, looks, **QUIET)
        ui.stop.click(self.cancel, None, ui.status, **QUIET)
        blocks.unload(self.leave)

        ui.recent.select(self.show_recent, ui.history, ui.result, **QUIET)
        chosen = ui.examples.select(self.show_example, None, [*ui.result, *ui.settings], **QUIET)
        chosen.then(None, js=SCROLL_TO_PLAYER, **SCRIPTED)

    # Before a run

    def prepare(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Checks the settings at once, before the run waits for its turn."""
        try:
            validated(self.models, dict(zip(SETTINGS, values, strict=True)))
        except gr.Error as error:
            text = unescape(error.message)
            yield {self.ui.status: views.notice("bad", "Please change a setting", text)}
            error.visible = False  # a second time, above the page
            raise
        self.runs.stop_event(request.session_hash)
        yield {
            self.ui.status: views.notice("idle", "Waiting", "The run starts when it is its turn."),
            self.ui.start: gr.update(interactive=False),
            self.ui.stop: gr.update(visible=True),
        }

    # A run

    def run(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Makes both clips, and tells how far it is."""
        *settings, history = values
        asked = validated(self.models, dict(zip(SETTINGS, settings, strict=True)))
        stages = self.models.estimator.estimate(job(asked, self.models))
        stop = self.runs.waiting_or_running(request.session_hash)
        began = time.monotonic()
        progress = Progress("text", 0, 1, 0.0, "Starting")
        elapsed = 0.0
        try:
            for item in self.runs.items(asked, self.gpu_part, stop):
                elapsed = time.monotonic() - began
                if isinstance(item, Finished):
                    yield self.succeeded(item.value, history)
                elif isinstance(item, Failed):
                    yield self.failed(item, progress, elapsed)
                else:
                    progress = item or progress
                    title = "Stopping after this step" if stop.is_set() else progress.message
                    yield {self.ui.status: views.running(progress, stages, elapsed, title)}
        except gr.Error as error:  # ZeroGPU's own: no quota is left, or the run took too long
            yield self.failed(Failed(unescape(str(error.message))), progress, elapsed)
            raise
        except Exception as error:  # of what lends GPUs, too
            message = str(error) or type(error).__name__
            yield self.failed(Failed(message), progress, elapsed)
            raise problem(message) from error

    def succeeded(self, result: Result, history: list[Result]) -> Updates:
        """The page after a run: its result, and one more in the history."""
        history = [result, *history][:12]
        posters = [(str(past.poster), views.caption(past.metadata)) for past in history]
        return {
            **show(self.ui, result),
            self.ui.start: gr.update(interactive=True),
            self.ui.stop: gr.update(visible=False),
            self.ui.history: history,
            self.ui.recent: gr.update(value=posters, visible=True),
        }

    def failed(self, failure: Failed, progress: Progress, elapsed: float) -> Updates:
        """The page after a run that was cancelled or went wrong."""
        if failure == CANCELLED:
            text = f"Stopped after {views.duration(elapsed)} at: {progress.message}."
            card = views.notice("stopped", "Cancelled", f"{text} Nothing was kept.")
        else:
            card = views.notice("bad", "This run failed", failure.message)
        return {
            self.ui.status: card,
            self.ui.start: gr.update(interactive=True),
            self.ui.stop: gr.update(visible=False),
        }

    def cancel(self, request: gr.Request) -> str:
        """Stops this visitor's run."""
        if self.runs.cancel(request.session_hash):
            return views.notice("stopped", "Stopping", "The step that runs now is the last one.")
        return views.notice("idle", "Nothing to cancel", "No run of yours is under way.")

    def leave(self, request: gr.Request) -> None:
        """Stops the run of a visitor who has left, so that others need not wait for it."""
        self.runs.forget(request.session_hash)

    # Results

    def show_recent(self, history: list[Result], event: gr.SelectData) -> Updates:
        """An earlier run of this visit."""
        return show(self.ui, history[event.index])

    def show_example(self, event: gr.SelectData) -> Updates:
        """A finished example, with its settings."""
        return show_example(self.ui, self.models, self.examples[event.index])


def build(models: Models, output_dir: Path | None = None) -> gr.Blocks:
    """The page for these models, to be launched with `launch_options`.

    Args:
        models: What clips are made with.
        output_dir: Where each run gets a folder of its own; None takes the folder that Gradio
            serves files from and cleans up.
    """
    return Page(models, output_dir or runs_folder()).build()


def runs_folder() -> Path:
    """Where runs get their folders: within what Gradio serves files from."""
    return Path(get_upload_folder()) / "runs"


def launch_options() -> dict[str, Any]:
    """How the page is launched: its looks, and what clients rely on."""
    return {
        "theme": theme(),
        "css": views.asset("page.css") + views.asset("first.css"),
        "show_error": True,
        "allowed_paths": [str(EXAMPLES)],  # wherever it is started from
        "mcp_server": find_spec("mcp") is not None,
        "ssr_mode": False,
        "head": f"<script>{views.asset('page.js')}</script>",
        "app_kwargs": {"middleware": [Middleware(Gate)], "routes": about.routes(ROOT)},
    }


def main() -> None:
    """Loads the models and starts the page.

    The models go to the GPU here, before the launch and nowhere else: a ZeroGPU Space has no other
    time for it. Importing this module changes nothing but the environment's proxies.
    """
    try:
        blocks = build(load_models(), runs_folder())
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"The page can't start: {error}")
    port = os.environ.get("GRADIO_SERVER_PORT")  # a port that was asked for is used, or refused
    try:
        serve(
            blocks,
            partial(remove_old, runs_folder(), DAY),
            server_port=int(port) if port else None,
            **launch_options(),
        )
    except OSError as error:
        if "empty port" not in str(error):
            raise
        sys.exit(
            f"Port {port or '7860 and those after it'} can't be had: stop what runs there, or "
            "choose another one: GRADIO_SERVER_PORT=7960 python app.py"
        )


if __name__ == "__main__":
    main()
