"""The web page and its API: components, wiring, launch."""

from __future__ import annotations

import spaces  # first: it has to see CUDA before anything else does

# isort: split
import inspect
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from html import escape, unescape
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any, Literal, get_type_hints

import gradio as gr
from gradio.components.api_component import Api
from gradio.utils import get_upload_folder
from gradio_client.utils import python_type_to_json_schema

from ultragen.compare import Models, Progress, Request, Result, job, load_models
from ultragen.cost import ZEROGPU_TIERS
from ultragen.presets import RESOLUTIONS
from ultragen.request import MAX_PROMPT, MAX_SEED, UPSCALERS
from ultragen.tiers import offers, seconds_asked
from ultragen.web import views
from ultragen.web.layout import Layout, theme
from ultragen.web.runs import CANCELLED, Runs
from ultragen.worker import Failed, Finished

EXAMPLES = Path(__file__).parent / "docs" / "examples"
DAY = 24 * 3600
SETTINGS = [field.name for field in fields(Request)]
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "run", "concurrency_limit": 1}
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
SCROLL_TO_STATUS = (
    "() => { if (innerWidth < 800)"
    " document.getElementById('status').scrollIntoView({behavior: 'smooth'}); }"
)
Updates = dict[Any, Any]


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
            self.ui = Layout(self.models.preset, self.describe_model(), self.examples, visitors)
            self.wire(blocks)
            self.build_api()
        return blocks.queue(max_size=20, default_concurrency_limit=1)

    def describe_model(self) -> str:
        """Which model runs here, why, and what the other one needs."""
        size = sum(p.numel() for p in self.models.native.transformer.parameters()) / 1e6
        choice = self.models.choice
        why = f"{choice.why} {choice.other}" if choice else ""
        turns = (
            " Its parts come to the GPU in turn, which takes longer."
            if self.models.placement == "in turn"
            else ""
        )
        return (
            f"<b>{self.models.preset.name.capitalize()} model</b>, {size:.0f} million parameters, "
            f"on {self.machine()}.{turns} {escape(why)}"
        )

    def machine(self) -> str:
        return "this machine's GPU" if self.models.device == "cuda" else "this machine's CPU"

    # Wiring

    def wire(self, blocks: gr.Blocks) -> None:
        """Connects the components with what they cause."""
        ui = self.ui
        looks = [ui.estimate, ui.drawing, ui.costs, *ui.offers.values()]
        costly = [ui.resolution, ui.windows, ui.num_frames, ui.steps, ui.guidance, ui.upscaler]
        gr.on(
            [blocks.load, *(component.change for component in [*costly, ui.base_native])],
            self.refresh,
            ui.settings,
            looks,
            trigger_mode="always_last",
            **QUIET,
        )
        gr.on(
            [blocks.load, ui.prompt.change],
            self.name_unknown_words,
            ui.prompt,
            ui.words,
            trigger_mode="always_last",
            **QUIET,
        )
        for visitor, button in ui.offers.items():
            button.click(
                partial(self.take_offer, visitor),
                None,
                [ui.resolution, ui.num_frames, ui.steps],
                **QUIET,
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
        checked.success(None, js=SCROLL_TO_STATUS, api_visibility="private")
        checked.success(
            self.run,
            [*ui.settings, ui.history],
            [*ui.result, *buttons, ui.history, ui.recent],
            show_progress="hidden",
            api_visibility="private",
            **ONE_AT_A_TIME,
        ).then(self.refresh, ui.settings, looks, **QUIET)
        ui.stop.click(self.cancel, None, ui.status, **QUIET)
        blocks.unload(self.leave)

        ui.recent.select(self.show_recent, ui.history, ui.result, **QUIET)
        ui.examples.select(self.show_example, None, [*ui.result, *ui.settings], **QUIET)

    # Before a run

    def refresh(self, *values: Any) -> Updates:
        """What the settings cost, and their windows on the frame."""
        settings = dict(zip(SETTINGS, values, strict=True)) | {"prompt": "-"}
        try:
            request = Request(**settings).validate(self.models.preset)
            self.models.check_memory(request)
        except ValueError as error:
            return {self.ui.estimate: views.notice("bad", "Please change a setting", str(error))}
        work = job(request, self.models)
        stages = self.models.estimator.estimate(work)
        grid = work.grid(work.height, work.width)
        return {
            self.ui.estimate: views.estimate(stages, self.machine(), on_zero_gpu()),
            self.ui.drawing: views.windows(
                grid, work.windows, str(request.windows), work.full_share
            ),
            self.ui.costs: views.resolution_costs(self.seconds_by_resolution(request)),
            **self.offer_labels(),
        }

    def offer_labels(self) -> Updates:
        """What the best settings for each kind of visitor take, as far as that is known by now."""
        found = {offer.visitor: offer for offer in offers(self.models)} if self.ui.offers else {}
        return {
            button: gr.update(
                value=f"Best for {visitor} ({found[visitor].seconds} s)"
                if visitor in found
                else "",
                visible=visitor in found,
            )
            for visitor, button in self.ui.offers.items()
        }

    def take_offer(self, visitor: str) -> Updates:
        """Resolution, frames and steps that fit a visitor's quota."""
        fitting = [offer.request for offer in offers(self.models) if offer.visitor == visitor]
        if not fitting:  # runs that ended since have shown that they take longer
            raise problem("Nothing fits that quota any more: reload the page.")
        [request], ui = fitting, self.ui
        values = (request.resolution, request.frames, request.num_inference_steps)
        return dict(zip((ui.resolution, ui.num_frames, ui.steps), values, strict=True))

    def seconds_by_resolution(self, request: Request) -> list[float]:
        """What every resolution takes here, with windows of the trained size."""
        others = [
            Request(**request.to_dict() | {"resolution": name, "windows": "auto"})
            for name in RESOLUTIONS
        ]
        estimator = self.models.estimator
        return [sum(estimator.estimate(job(other, self.models)).values()) for other in others]

    def name_unknown_words(self, prompt: str) -> str:
        """The words of the prompt that the model does not know."""
        return views.unknown_words(self.models.unknown_words(prompt[:MAX_PROMPT]))

    def validated(self, settings: dict[str, Any]) -> Request:
        """A request that can run.

        Raises:
            gr.Error: with what to change.
        """
        upscaler = settings["upscaler"]
        if upscaler not in UPSCALERS:  # files are for people at the machine, not for visitors
            raise problem(f"upscaler {upscaler!r:.60} is unknown: choose {' or '.join(UPSCALERS)}.")
        try:
            request = Request(**settings).validate(self.models.preset)
            self.models.check_memory(request)
        except ValueError as error:
            raise problem(str(error)) from error
        return request

    def prepare(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Checks the settings at once, before the run waits for its turn."""
        try:
            self.validated(dict(zip(SETTINGS, values, strict=True)))
        except gr.Error as error:
            text = unescape(error.message)
            yield {self.ui.status: views.notice("bad", "Please change a setting", text)}
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
        asked = self.validated(dict(zip(SETTINGS, settings, strict=True)))
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
            **self.show(result),
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

    def show(self, result: Result) -> Updates:
        """Everything that shows one run."""
        ui, metadata = self.ui, result.metadata
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

    def show_recent(self, history: list[Result], event: gr.SelectData) -> Updates:
        """An earlier run of this visit."""
        return self.show(history[event.index])

    def show_example(self, event: gr.SelectData) -> Updates:
        """A finished example, with its settings."""
        example = self.examples[event.index]
        settings = example.metadata["request"]
        values = [settings[name] for name in SETTINGS]
        values[SETTINGS.index("windows")] = str(settings["windows"])
        return self.show(example) | dict(zip(self.ui.settings, values, strict=True))

    # API

    def build_api(self) -> None:
        """The one public endpoint."""
        outputs = [
            gr.Video(label="native", visible=False),
            gr.Video(label="upscaled", visible=False),
            gr.Video(label="side_by_side", visible=False),
            gr.JSON(label="metadata", visible=False),
        ]
        gr.Button("generate", visible=False).click(
            self.generate,
            api_inputs(self.generate),
            outputs,
            api_name="generate",
            show_progress="hidden",
            **ONE_AT_A_TIME,
        )

    def generate(
        self,
        prompt: str,
        resolution: Literal["544p", "720p", "1080p", "2k", "4k"] | None = None,
        windows: str = "auto",
        num_frames: int | None = None,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        upscaler: Literal["network", "lanczos"] = "network",
        base_native: Literal["off", "on"] = "off",
        progress: gr.Progress = gr.Progress(),
    ) -> tuple[str, str, str, dict]:
        """Generates a landscape clip natively at the full size, and the base model's clip of the
        same prompt and seed, upscaled, to compare with.

        Args:
            prompt: What the clip shows, in English.
            resolution: Size of the clips; null takes the model's.
            windows: Attention windows on each axis: "auto", or an even number such as "2" or "4".
            num_frames: Frames, 4n + 1; null takes the model's.
            seed: Of the noise: the same seed gives the same clip.
            num_inference_steps: Denoising steps, 1 to 100; null takes the model's.
            guidance_scale: Classifier-free guidance, 1 (off) to 20; null takes the model's.
            negative_prompt: What guidance leads away from; null takes the model's.
            upscaler: Upscaler of the base model's clip.
            base_native: "on" also runs the base model at the full size, for its timings.

        Returns:
            The native clip, the upscaled clip, both side by side, and the metadata that
            reproduces the run.
        """
        given = locals()
        asked = self.validated({name: given[name] for name in SETTINGS})
        for item in self.runs.items(asked, self.gpu_part, Event()):
            if isinstance(item, Progress):
                progress(item.fraction, desc=item.message)
            elif isinstance(item, Failed):
                raise problem(item.message)
            elif isinstance(item, Finished):
                result = item.value
                files = (str(result.native), str(result.upscaled), str(result.side_by_side))
                return *files, result.metadata
        raise problem("The run ended without a result: try again.")


def on_zero_gpu() -> bool:
    """Whether visitors pay for GPU seconds with a quota."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def problem(message: str) -> gr.Error:
    """An error that the page and the API show as it is; what was typed is shown as text."""
    return gr.Error(escape(message, quote=False), title="Please note", print_exception=False)


def api_inputs(function: Any) -> list[Api]:
    """Inputs that hand a function's arguments over as they come, so that its own checks answer."""
    hints = get_type_hints(function)
    return [
        Api(
            None if parameter.default is parameter.empty else parameter.default,
            python_type_to_json_schema(hints[name]),
            name,
        )
        for name, parameter in inspect.signature(function).parameters.items()
        if name in SETTINGS
    ]


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


def build(models: Models, output_dir: Path | None = None) -> gr.Blocks:
    """The page for these models, to be launched with `launch_options`.

    Args:
        models: What clips are made with.
        output_dir: Where each run gets a folder of its own; None takes the folder that Gradio
            serves files from and cleans up.
    """
    return Page(models, output_dir or Path(get_upload_folder()) / "runs").build()


def launch_options() -> dict[str, Any]:
    """How the page is launched: its looks, and what clients rely on."""
    return {
        "theme": theme(),
        "css": views.asset("page.css"),
        "show_error": True,
        "allowed_paths": [str(EXAMPLES)],  # wherever it is started from
        "mcp_server": find_spec("mcp") is not None,
        "ssr_mode": False,
    }


def main() -> None:
    """Loads the models and starts the page.

    The models go to the GPU here, before the launch and nowhere else: a ZeroGPU Space has no other
    time for it, and importing this module does nothing.
    """
    try:
        blocks = build(load_models())
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"The page can't start: {error}")
    port = os.environ.get("GRADIO_SERVER_PORT")  # a port that was asked for is used, or refused
    try:
        blocks.launch(server_port=int(port) if port else None, **launch_options())
    except OSError as error:
        if "empty port" not in str(error):
            raise
        sys.exit(
            f"Port {port or '7860 and those after it'} can't be had: stop what runs there, or "
            "choose another one: GRADIO_SERVER_PORT=7960 python app.py"
        )


if __name__ == "__main__":
    main()
