"""The web page and its API: components, wiring, launch."""

# ruff: noqa: E402 - proxies are settled before Gradio is imported, which makes clients of them
from __future__ import annotations

import spaces  # first: it has to see CUDA before anything else does

# isort: split
from ultragen.web.proxies import reach_localhost

reach_localhost()

# isort: split
import json
import random
import sys
from collections.abc import Iterator
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from ultragen.estimates.cost import ZEROGPU_TIERS
from ultragen.runs.drafts import drafts_seconds_asked
from ultragen.runs.loading import Models, load_models
from ultragen.runs.request import MAX_SEED, Request, check_prompt
from ultragen.runs.write import Result, remove_old
from ultragen.runs.zerogpu import seconds_asked
from ultragen.web import about, suggestions, views
from ultragen.web.api import build_api
from ultragen.web.browser import remembered, script
from ultragen.web.cache import (
    LARGEST_UPLOAD,
    RUNS_FOLDER,
    forget_removed,
    lasting_copies,
    own_folder,
    remove_old_copies,
)
from ultragen.web.call_places import MAKES_CLIPS, PLACES
from ultragen.web.calls import checker
from ultragen.web.cards import Cards
from ultragen.web.components import Layout, negative_info, theme
from ultragen.web.downloads import make_file
from ultragen.web.drafting import Drafts, busy, draft_frames, with_scene
from ultragen.web.following import HIDDEN, WAITING, WATCHING, Following
from ultragen.web.gate import Gate
from ultragen.web.kept import GRACE, KeptRuns
from ultragen.web.links import RUN
from ultragen.web.places import Places
from ultragen.web.results import (
    KEPT_FOR,
    kept_until,
    load_examples,
    load_opening,
    name_of,
    show,
    show_example,
)
from ultragen.web.runs import Runs
from ultragen.web.server import NoPort, serve
from ultragen.web.settings import (
    SETTINGS,
    Updates,
    as_settings,
    describe_model,
    in_page_words,
    on_zero_gpu,
    refresh,
    take_fast,
    take_offer,
    validated,
)
from ultragen.web.tools import serve_tools
from ultragen.web.visits import GONE, Visits

ROOT = Path(__file__).parent
EXAMPLES = ROOT / "docs" / "examples"
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": MAKES_CLIPS, "concurrency_limit": 1}
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# Seconds between two looks for what waits. Gradio 6.31 looks each millisecond, on Windows each 50.
LOOK = 0.01
PROGRESS_LOOK = 0.1  # and for progress of calls, for which it looks each 10, at all that are active
# Calls that Gradio 6.31 lists, for a table that it makes anew at the end of each; else 10,000.
LISTED = 3 * PLACES
STOPPING = views.notice("stopped", "Stopping", "The step that runs now is the last one.")
SCRIPTED: dict[str, Any] = {"queue": False, "api_visibility": "private"}
SCROLL_TO_STATUS = "() => { if (innerWidth < 900) ultragenShow('#status', 'start'); }"
SCROLL_TO_PLAYER = "() => ultragenShow('.uc', 'nearest')"  # as far as it takes to see all of it
TELL_PROMPT = (
    "(prompt) => { document.dispatchEvent(new CustomEvent('ultragen:prompt', {detail: prompt})); }"
)


class Page:
    """What happens on the page, and its API.

    Args:
        models: What clips are made with.
        output_dir: Where each run gets a folder of its own.
        grace: Seconds for which a run waits for its page to come back.
    """

    def __init__(self, models: Models, output_dir: Path, grace: float = GRACE) -> None:
        self.models = models
        self.runs = Runs(models, output_dir)
        self.kept = KeptRuns()
        self.grace = grace
        self.examples = load_examples(EXAMPLES)

        # Half a card holds all that is offered; the whole one costs visitors twice the quota.
        @spaces.GPU(
            duration=lambda request, previews=False: seconds_asked(request, models),
            size="large",
        )
        def gpu_part(request: Request, previews: bool = False) -> Iterator:
            yield from self.runs.frames(request, previews)

        @spaces.GPU(
            duration=lambda request, count: drafts_seconds_asked(request, count, models),
            size="large",
        )
        def draft_part(request: Request, count: int) -> Iterator:
            yield from draft_frames(request, count, models)

        self.gpu_part = gpu_part
        self.draft_part = draft_part

    def build(self) -> gr.Blocks:
        """The page with everything wired."""
        with gr.Blocks(title="UltraGen", delete_cache=(KEPT_FOR // 4, KEPT_FOR)) as blocks:
            visitors = [visitor for visitor, _ in ZEROGPU_TIERS] if on_zero_gpu() else []
            described = describe_model(self.models)
            opening = load_opening(EXAMPLES, self.examples)
            player = opening.comparison if opening else None
            edition = self.models.edition
            self.ui = Layout(
                self.models.preset, described, self.examples, visitors, player, edition
            )
            self.places = Places(blocks, self.kept, self.runs, self.grace)
            self.visits = Visits(self.ui, self.models, self.runs.output_dir)
            self.following = Following(
                self.ui,
                self.runs,
                self.kept,
                self.places,
                self.visits,
                partial(self.gpu_part, previews=True),
            )
            self.wire(blocks)
            build_api(self.runs, self.gpu_part, **ONE_AT_A_TIME)
        blocks.check = checker(self.models)  # for the gate
        blocks.find_run = self.visits.find  # for link previews
        blocks.queue(max_size=3 * PLACES, default_concurrency_limit=1, api_open=False)
        blocks._queue.sleep_when_free = LOOK
        blocks._queue.progress_update_sleep_when_free = PROGRESS_LOOK
        blocks._queue.ANALYTICS_MAX_EVENTS = LISTED
        return blocks

    # Wiring

    def wire(self, blocks: gr.Blocks) -> None:
        """Connects the components with what they cause."""
        ui, models = self.ui, self.models
        looks = [ui.estimate, ui.drawing, ui.costs, ui.length, *ui.offers.values()]
        # All but the prompt may cost something, or be what can't be used.
        costly = [component for component in ui.settings if component is not ui.prompt]
        gr.on(
            [blocks.load, *(component.change for component in costly)],
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
        ui.fast.click(partial(take_fast, models), ui.settings, [ui.interval, ui.cache], **QUIET)
        gr.on([blocks.load, ui.prompt.change], None, ui.prompt, js=TELL_PROMPT, **SCRIPTED)
        ui.guidance.change(
            lambda scale: gr.update(info=negative_info(scale, models.preset.base_guidance_scale)),
            ui.guidance,
            ui.negative,
            **QUIET,
        )
        ui.dice.click(lambda: random.randint(0, MAX_SEED), None, ui.seed, **QUIET)

        buttons = [ui.start, ui.stop, ui.draft, ui.large]
        checked = gr.on(
            [ui.start.click, ui.prompt.submit],
            self.prepare,
            ui.settings,
            [ui.status, *buttons],
            trigger_mode="once",
            concurrency_limit=None,
            **HIDDEN,
        )
        checked.then(None, js=SCROLL_TO_STATUS, api_visibility="private")
        run = checked.success(self.following.run, [*ui.settings, ui.visitor], ui.status, **WATCHING)
        ended = self.following.wire(run, buttons)
        ended.then(partial(refresh, ui, models), ui.settings, looks, **QUIET)
        self.wire_drafts(buttons, looks)
        ui.status.change(None, ui.status, js="(status) => ultragenRest(status)", **SCRIPTED)
        # The page says it itself: the server's word could come after that of the run's end.
        stopping = ui.stop.click(
            None, None, ui.status, js=f"() => {json.dumps(STOPPING)}", **SCRIPTED
        )
        stopping.then(self.cancel, None, ui.status, **QUIET)
        blocks.unload(self.leave)
        self.places.wire(**ONE_AT_A_TIME)

        ui.convert.click(
            partial(make_file, ui, self.runs.output_dir),
            [ui.which, ui.kind, ui.native, ui.upscaled, ui.side_by_side],
            [ui.download, ui.download_size],
            api_visibility="private",
            concurrency_id="convert",
            concurrency_limit=1,
        )
        ui.recent.select(
            self.show_recent, [ui.history, ui.visitor], [*ui.result, ui.visitor], **QUIET
        )
        chosen = ui.examples.select(self.show_example, None, [*ui.result, *ui.settings], **QUIET)
        chosen.then(None, js=SCROLL_TO_PLAYER, **SCRIPTED)
        self.wire_memory(blocks, buttons)

    def wire_memory(self, blocks: gr.Blocks, buttons: list[Any]) -> None:
        """What the browser keeps, what comes back on a reload, links and files with settings."""
        ui = self.ui
        names = json.dumps(SETTINGS)
        gr.on(
            [component.change for component in ui.settings],
            None,
            [ui.kept_settings, *ui.settings],
            ui.kept_settings,
            js=script(f"(...values) => keep({names}, ...values)"),
            **QUIET,
        )
        back = blocks.load(
            self.visits.restore,
            [ui.kept_settings, ui.visitor],
            [*ui.settings, *ui.result, ui.history, ui.recent, ui.visitor],
            **QUIET,
        )
        back.then(
            self.drafts.restore,
            [ui.kept_drafts, ui.visitor],
            [*ui.draft_result, ui.large],
            **QUIET,
        )
        restored = back.then(
            None, js=script(f"() => restored({json.dumps([*SETTINGS, RUN])})"), **QUIET
        )
        again = restored.then(self.following.rejoin, ui.visitor, buttons, **WATCHING)
        again = again.success(self.following.wait, None, ui.status, **WATCHING)
        self.following.wire(again, buttons)
        ui.share.click(
            self.visits.share,
            [ui.history, ui.visitor, *ui.settings],
            [ui.link, ui.link_told],
            **QUIET,
        ).success(
            None, [ui.link, ui.link_told], [ui.link, ui.link_told], js=script("copyLink"), **QUIET
        )
        ui.drop.upload(self.visits.take_file, ui.drop, [ui.status, ui.drop, *ui.settings], **QUIET)

    def wire_drafts(self, buttons: list[Any], looks: list[Any]) -> None:
        """Connects what makes drafts, and what makes one of them large."""
        ui = self.ui
        drafts = self.drafts = Drafts(ui, self.runs, self.kept, self.draft_part)
        at_once: dict[str, Any] = {"trigger_mode": "once", "concurrency_limit": None, **HIDDEN}
        checked = ui.draft.click(self.prepare, ui.settings, [ui.status, *buttons], **at_once)
        checked.then(None, js=SCROLL_TO_STATUS, api_visibility="private")
        run = checked.success(
            drafts.run,
            [*ui.settings, ui.count],
            [ui.status, *ui.draft_result, *buttons],
            **HIDDEN,
            **ONE_AT_A_TIME,
        )
        self.following.wire_failure(run, buttons)
        ui.drafts.select(drafts.choose, ui.drafted, [ui.comparison, ui.scene, ui.large], **QUIET)
        settings = [*ui.settings, ui.scene]
        changed = [ui.status, *buttons, ui.seed]
        checked = ui.large.click(self.prepare_large, settings, changed, **at_once)
        checked.then(None, js=SCROLL_TO_STATUS, api_visibility="private")
        run = checked.success(self.run_large, [*settings, ui.visitor], ui.status, **WATCHING)
        ended = self.following.wire(run, buttons)
        ended.then(partial(refresh, ui, self.models), ui.settings, looks, **QUIET)

    # Before a run

    def prepare(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Checks the settings at once, before the run waits for its turn."""
        # Keys start runs whatever the buttons' state, and two of them come at once.
        under_way = gr.Error("A run is under way.", visible=False, print_exception=False)
        if self.kept.shown(request.session_hash).busy:
            raise under_way
        try:
            validated(self.models, as_settings(values))
        except gr.Error as error:
            yield {self.ui.status: self.refusal(unescape(error.message), *values)}
            # It is said once, and nothing else is to happen.
            raise gr.Error(error.message, visible=False, print_exception=False) from error
        if not self.kept.announce_next(request.session_hash):
            raise under_way
        yield {
            self.ui.status: WAITING,
            **busy(self.ui),
        }

    def refusal(self, text: str, *values: Any) -> str:
        """Why a run can't start; settings other than the prompt are said beside their costs."""
        try:
            check_prompt(values[SETTINGS.index("prompt")])
        except ValueError:
            return views.notice("bad", "Please change the prompt", in_page_words(text))
        note = "The note above the button says which setting to change."
        return views.notice("bad", "Not started", note)

    def prepare_large(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Checks a draft's settings at the size that the page has by now."""
        *settings, scene = values
        yield from self.prepare(request, *with_scene(settings, scene))
        # A seed that was typed becomes the draft's: links are made of what the fields say.
        if scene and settings[SETTINGS.index("seed")] is not None:
            yield {self.ui.seed: scene["seed"]}

    # A run

    def run_large(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Makes both clips of the draft that was chosen."""
        *settings, scene, visitor = values
        yield from self.following.run(request, *with_scene(settings, scene), visitor)

    def cancel(self, request: gr.Request) -> Any:
        """Stops this visitor's run, which tells itself how it ends. Where it has done so just now,
        that is said again: the page may have put over it that the run stops."""
        run = self.kept.cancel(request.session_hash)
        if run is None:
            return views.notice("idle", "Nothing to cancel", "No run of yours is under way.")
        return run.told or gr.skip()

    def leave(self, request: gr.Request) -> None:
        """A page was closed or loads anew; its run waits for it to come back, for a while."""
        self.kept.leave(request.session_hash)

    # Results

    def show_recent(self, history: list[Result], visitor: object, event: gr.SelectData) -> Updates:
        """An earlier run of this browser."""
        result = history[event.index]
        if self.visits.find(name_of(result)) is None:
            return {self.ui.status: views.notice("stopped", "This clip is gone", GONE)}
        kept = {self.ui.visitor: remembered(visitor, history, result)}
        return show(self.ui, result, kept_until(result.native)) | kept

    def show_example(self, event: gr.SelectData) -> Updates:
        """A finished example, with its settings."""
        return show_example(self.ui, self.models, self.examples[event.index])


def build(models: Models, output_dir: Path | None = None, grace: float = GRACE) -> gr.Blocks:
    """The page for these models, to be launched with `launch_options`.

    Args:
        models: What clips are made with.
        output_dir: Where each run gets a folder of its own; None takes the folder that Gradio
            serves files from and cleans up.
        grace: Seconds for which a run waits for its page to come back.
    """
    return Page(models, output_dir or runs_folder(), grace).build()


def runs_folder() -> Path:
    """Where runs get their folders: within what Gradio serves files from."""
    return Path(get_upload_folder()) / RUNS_FOLDER


def launch_options() -> dict[str, Any]:
    """How the page is launched: its looks, and what clients rely on."""
    return {
        "theme": theme(),
        "css": views.asset("page.css") + views.asset("first.css"),
        "show_error": True,
        "allowed_paths": [str(EXAMPLES)],  # wherever it is started from
        "max_file_size": LARGEST_UPLOAD,
        "mcp_server": serve_tools(),
        "ssr_mode": False,
        "head": f"<script>{views.asset('page.js')}</script>",
        "app_kwargs": {
            "middleware": [Middleware(Gate), Middleware(Cards)],
            "routes": about.routes(ROOT),
        },
    }


def clean_up(blocks: gr.Blocks, folder: Path) -> None:
    """Removes what is older than the page promises to keep."""
    remove_old(folder / RUNS_FOLDER, KEPT_FOR)
    remove_old_copies(folder, KEPT_FOR, lasting_copies(blocks))
    forget_removed(blocks)


def main() -> None:
    """Loads the models and starts the page.

    The models go to the GPU here, before the launch and nowhere else: a ZeroGPU Space has no other
    time for it. Importing this module changes nothing but the environment's proxies.
    """
    folder = own_folder()
    try:
        blocks = build(load_models(), runs_folder())
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"The page can't start: {error}")
    try:
        serve(blocks, partial(clean_up, blocks, folder), **launch_options())
    except NoPort as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
