"""What is on the page and where: components without behaviour."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..presets import (
    ASPECTS,
    EVERY_STEP,
    PROMPTS,
    RESOLUTIONS,
    SUGGESTED,
    ModelPreset,
    frame_rates,
)
from ..runs.drafts import FRAMES, MOST
from ..runs.recipe import SUFFIXES
from ..runs.request import MAX_STEPS
from ..runs.write import Result
from ..video import FORMATS
from . import suggestions, views

LARGEST_GUIDANCE = 20  # that the page offers; the API takes more
GUIDED = "How closely the prompt is followed; 1 switches it off and halves the time."
DISTILLED = "This model was taught to do without: leave it at 1. More doubles the time."
LIKE_NATIVE = "as the native clip"
FASTER = "Fast, for guided clips: of 30 steps half the time, nearly the same clip"
NO_SECRET = "ultragen"  # the browser keeps nothing that its owner may not see


class Layout:
    """The page's components.

    Args:
        preset: Settings that suit the model.
        model: What runs here and why, as HTML.
        examples: Finished examples to offer.
        visitors: Kinds of them, where they have quotas: each gets a button for what fits.
        opening: What the player starts with.
        edition: Of the procedural world that the model belongs to.
    """

    def __init__(
        self,
        preset: ModelPreset,
        model: str,
        examples: list[Result],
        visitors: Sequence[str] = (),
        opening: dict[str, Any] | None = None,
        edition: int = 1,
    ) -> None:
        self.preset = preset
        gr.HTML(views.header(model), apply_default_css=False, elem_id="head")
        # In the order of a narrow screen; on a wide one the results stand beside the other two.
        with gr.Row(equal_height=False, elem_id="frame"):
            with gr.Column(min_width=0, elem_classes="ug-column ug-ask"):
                self.main_settings(preset, visitors, edition)
            with gr.Column(min_width=0, elem_classes="ug-column ug-show"):
                self.results(preset, opening)
                self.galleries(examples)
            with gr.Column(min_width=0, elem_classes="ug-column ug-more"):
                self.more_settings(preset)
        self.history = gr.State([])
        self.drafted = gr.State([])
        self.scene = gr.State(None)
        # Gradio's own secret is another one at each start, and what was kept with it is lost then.
        self.kept_settings = gr.BrowserState({}, storage_key="ultragen-settings", secret=NO_SECRET)
        self.visitor = gr.BrowserState({}, storage_key="ultragen-visitor", secret=NO_SECRET)
        self.kept_drafts = gr.BrowserState({}, storage_key="ultragen-drafts", secret=NO_SECRET)

    @property
    def settings(self) -> list[Any]:
        """The settings' components, in the order of `Request`'s fields."""
        return [
            self.prompt,
            self.resolution,
            self.windows,
            self.num_frames,
            self.seed,
            self.steps,
            self.guidance,
            self.negative,
            self.upscaler,
            self.base_native,
            self.loras,
            self.noise,
            self.aspect,
            self.fps,
            self.interval,
            self.cache,
            self.shift,
            self.solver,
            self.base_steps,
            self.base_guidance,
            self.progressive,
        ]

    @property
    def result(self) -> list[Any]:
        """The components that show a run."""
        return [
            self.status,
            self.comparison,
            self.native,
            self.upscaled,
            self.side_by_side,
            self.full,
            self.files,
            self.metadata,
        ]

    @property
    def draft_result(self) -> list[Any]:
        """The components that show drafts, and what is known of them."""
        return [self.drafts, self.drafted, self.comparison, self.scene, self.kept_drafts]

    def main_settings(self, preset: ModelPreset, visitors: Sequence[str], edition: int) -> None:
        """What everybody sets, and the button."""
        words = preset.vocabulary == "words"
        self.prompt = gr.Textbox(
            PROMPTS[0],
            label="Prompt",
            info="A landscape. Ctrl + Enter runs it." if words else "Ctrl + Enter runs it.",
            lines=3,
            elem_id="prompt",
        )
        self.words = gr.HTML("", apply_default_css=False, elem_id="words")
        gr.HTML(
            suggestions.panel(edition),
            js_on_load=views.asset("suggestions.js"),
            server_functions=[suggestions.surprises(edition)],
            apply_default_css=False,
            elem_id="suggestions",
        )
        self.resolution = gr.Radio(
            list(RESOLUTIONS),
            value=preset.resolution,
            label="Resolution, and what it takes here",
            elem_id="resolution",
        )
        self.aspect = gr.Radio(list(ASPECTS), value=ASPECTS[0], label="Shape", elem_id="aspect")
        with gr.Row(visible=bool(visitors)):
            # What is best is said, and may change, as the page learns what runs take.
            self.offers = {
                visitor: gr.Button(f"Best for {visitor}", size="sm") for visitor in visitors
            }
        sizes = [size.kept for size in RESOLUTIONS.values()]
        labels = views.resolution_labels(sizes)
        self.costs = gr.HTML(labels, apply_default_css=False, elem_id="costs")
        self.estimate = gr.HTML(apply_default_css=False, elem_id="estimate")
        with gr.Row():
            self.start = gr.Button("Generate both clips", variant="primary", elem_id="generate")
            self.stop = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")

    def more_settings(self, preset: ModelPreset) -> None:
        """Drafts, length, seed and windows; the rest folded away."""
        with gr.Group(elem_id="drafting"):
            self.count = gr.Radio(
                list(range(1, MOST + 1)),
                value=MOST,
                label="Seeds to try first",
                info=f"{FRAMES} frames each, small; the best one can be made large.",
                elem_id="count",
            )
            self.draft = gr.Button("Draft", size="sm", elem_id="draft")
        with gr.Row():
            with gr.Column(min_width=150, elem_classes="ug-tight"):
                self.num_frames = gr.Slider(
                    5,
                    preset.max_frames,
                    value=preset.num_frames,
                    step=4,
                    label="Frames",
                    elem_id="frames",
                )
                length = views.length(preset.num_frames, preset.fps)
                self.length = gr.HTML(length, apply_default_css=False, elem_id="length")
            with gr.Column(min_width=150, elem_classes="ug-tight"):
                self.seed = gr.Number(
                    None,
                    label="Seed",
                    info="Same seed, same clip; empty: a new one each time",
                    placeholder="random",
                    elem_id="seed",
                )
                self.dice = gr.Button("Random seed", size="sm", elem_id="dice")
        with gr.Group():
            self.windows = gr.Radio(
                [("auto", "auto"), *((f"{k} × {k}", k) for k in preset.windows[1:])],
                value="auto",
                label="Attention windows",
                info="How finely attention cuts the frame.",
                elem_id="windows",
            )
            self.drawing = gr.HTML(apply_default_css=False, elem_id="drawing")
        self.loras = self.lora_table(preset)
        with gr.Accordion("Advanced settings", open=False, elem_id="advanced"):
            self.advanced_settings(preset)
        self.drop = gr.UploadButton(
            "Settings of an earlier clip: choose its MP4, WebM or metadata.json, or drop it "
            "on the page",
            file_types=list(SUFFIXES),
            size="sm",
            elem_id="drop",
        )

    def lora_table(self, preset: ModelPreset) -> gr.Dataframe:
        """The machine's LoRAs, each with a strength; not shown where there is none."""
        rows = [[lora.name, lora.strength] for lora in preset.loras]
        return gr.Dataframe(
            rows,
            headers=["LoRA", "Strength"],
            datatype=["str", "number"],
            type="array",
            label="LoRAs: 0 leaves one out, 1 is what it was trained for",
            interactive=True,
            static_columns=[0],
            column_widths=["70%", "30%"],
            max_height=260,
            buttons=[],
            visible=bool(rows),
            elem_id="loras",
        )

    def advanced_settings(self, preset: ModelPreset) -> None:
        """Settings that few people change."""
        self.steps = gr.Slider(
            1,
            MAX_STEPS,
            value=preset.num_inference_steps,
            step=1,
            label="Denoising steps",
            elem_id="steps",
        )
        self.guidance = gr.Slider(
            1,
            LARGEST_GUIDANCE,
            value=preset.guidance_scale,
            step=0.1,
            label="Guidance",
            info=GUIDED if preset.guidance_scale > 1 else DISTILLED,
            elem_id="guidance",
        )
        self.interval = gr.Textbox(
            EVERY_STEP,
            label="Guidance between noise levels",
            info="0.6-1 leaves it out where it changes least, and these steps take half the time.",
            lines=1,
            elem_id="interval",
        )
        self.cache = gr.Radio(
            [("none", "off"), ("every second", "taylor-2"), ("two of three", "taylor-3")],
            value="off",
            label="Steps that are predicted",
            info="After the fifth, from those before: of 30 steps 13 or 17 are left out, of 10 "
            "three. The scene stays, its detail changes a little.",
            elem_id="cache",
        )
        own = f"{preset.shift:g}" if preset.shift else "grows with the frame"
        # In an accordion that is opened, a number shows 0 for none (Gradio 6.31).
        self.shift = gr.Textbox(
            label="Shift of the noise levels",
            info="Above 1 towards more noise; distillation LoRAs want 3 to 8.",
            lines=1,
            placeholder=f"the model's own: {own}",
            elem_id="shift",
        )
        self.solver = gr.Radio(
            [("the model's own", "own"), ("Euler", "euler"), ("UniPC", "unipc")],
            value="own",
            label="Solver",
            elem_id="solver",
        )
        self.progressive = gr.Radio(
            composing(preset),
            value="auto",
            visible=preset.first_size != [*RESOLUTIONS][-1],
            label="A smaller clip first",
            info="It decides where things are, so that moons and horizons are not repeated, and "
            "fewer steps are left for the full size.",
            elem_id="progressive",
        )
        self.fast = gr.Button(FASTER, size="sm", elem_id="fast")
        self.negative = gr.Textbox(
            preset.negative_prompt,
            label="Negative prompt",
            info=negative_info(preset.guidance_scale, preset.base_guidance_scale),
            lines=1,
            elem_id="negative",
        )
        self.upscaler = gr.Radio(
            [("×4 network", "network"), ("Lanczos", "lanczos")],
            value="network",
            label="Upscaler of the base clip",
        )
        self.base_sampling(preset)
        self.base_native = gr.Radio(
            ["off", "on"],
            value="off",
            label="Run the base model at the full size too",
            info="Shows why it needs upscaling. Slow at large sizes.",
            elem_id="base-native",
        )
        self.fps = gr.Radio(
            [(f"{rate} a second", rate) for rate in frame_rates(preset.fps)],
            value=preset.fps,
            label="Frame rate of the files",
            info="The same frames, shown faster or slower: none are added between them.",
            elem_id="fps",
        )
        self.noise = gr.Radio(
            [("the same scene", "spectral"), ("another one", "independent")],
            value="spectral",
            label="A seed at other sizes and lengths",
            elem_id="noise",
        )

    def base_sampling(self, preset: ModelPreset) -> None:
        """Steps and guidance of the base clip, as text, as the shift is."""
        steps, scale = preset.base_num_inference_steps, preset.base_guidance_scale
        with gr.Row():
            self.base_steps = gr.Textbox(
                label="Steps of the base clip and drafts",
                lines=1,
                placeholder=LIKE_NATIVE if steps is None else f"the base model's own: {steps}",
                elem_id="base-steps",
            )
            self.base_guidance = gr.Textbox(
                label="Guidance of the base clip and drafts",
                lines=1,
                placeholder=LIKE_NATIVE if scale is None else f"the base model's own: {scale:g}",
                elem_id="base-guidance",
            )

    def results(self, preset: ModelPreset, opening: dict[str, Any] | None) -> None:
        """How the run stands, both clips, files."""
        begin = "Choose a prompt and press Generate."
        self.status = gr.HTML(
            views.notice("idle", "Ready", "An example plays below." if opening else begin),
            apply_default_css=False,
            elem_id="status",
        )
        self.drafts = self.gallery([], "Drafts: click to see one play", "drafts")
        self.large = gr.Button("Make it large", variant="primary", visible=False, elem_id="large")
        self.comparison = gr.HTML(
            opening,
            html_template=views.asset("compare.html"),
            js_on_load=views.asset("compare.js"),
            apply_default_css=False,
            elem_id="comparison",
        )
        with gr.Accordion("Plain players and downloads", open=False, elem_id="plain"):
            with gr.Row():
                self.native = self.player(f"{preset.method}, native", "native")
                self.upscaled = self.player("Base model, upscaled", "upscaled")
            with gr.Row():
                self.side_by_side = self.player("Side by side", "side-by-side")
                self.full = self.player("Base model at full size", "base-full", visible=False)
            self.files = gr.Files(label="Files", interactive=False, elem_id="files")
            self.other_files()
        with gr.Accordion("Settings and timings of this run", open=False):
            self.metadata = gr.JSON(show_label=False, elem_id="metadata")

    def other_files(self) -> None:
        """Other kinds of files, made on demand from the MP4s."""
        with gr.Row(elem_id="other-files"):
            self.which = gr.Dropdown(
                [("Native", "native"), ("Upscaled", "upscaled"), ("Side by side", "side_by_side")],
                value="native",
                label="Clip",
                min_width=140,
            )
            self.kind = gr.Radio(
                [(kind.name, suffix) for suffix, kind in FORMATS.items() if suffix != ".mp4"],
                value=".webm",
                label="Other kind of file",
                elem_id="kind",
                min_width=220,
            )
        self.convert = gr.Button("Make this file", size="sm", elem_id="convert")
        self.download_size = gr.HTML("", apply_default_css=False, elem_id="download-size")
        self.download = gr.File(
            label="Your file", interactive=False, visible=False, elem_id="download"
        )

    def galleries(self, examples: list[Result]) -> None:
        """Earlier runs, examples, prompts."""
        self.recent = self.gallery([], "Your runs: click to see one again", "recent")
        posters = [(str(example.poster), views.caption(example.metadata)) for example in examples]
        self.examples = self.gallery(posters, "Examples: click to see one at no cost", "examples")
        gr.Examples(
            [[prompt] for prompt in PROMPTS[SUGGESTED:]],
            self.prompt,
            label="Prompts to try",
            api_visibility="private",
        )
        with gr.Row():
            self.share = gr.Button("Share these settings", size="sm", elem_id="share")
            gr.DuplicateButton(
                "Duplicate this Space", size="sm", visible=bool(os.environ.get("SPACE_ID"))
            )
        self.link = gr.Textbox(
            label="Link to these settings",
            visible=False,
            interactive=False,
            buttons=["copy"],
            lines=3,
            max_lines=3,
            elem_id="link",
        )
        self.link_told = gr.Markdown(visible=False, elem_id="link-told")

    @staticmethod
    def player(label: str, name: str, visible: bool = True) -> gr.Video:
        return gr.Video(
            label=label,
            elem_id=name,
            interactive=False,
            loop=True,
            buttons=["download"],
            visible=visible,
        )

    @staticmethod
    def gallery(items: list[tuple[str, str]], label: str, name: str) -> gr.Gallery:
        return gr.Gallery(
            items,
            label=label,
            columns=4,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            visible=bool(items),
            buttons=[],
            elem_id=name,
            elem_classes="ug-gallery",
        )


def negative_info(guidance: float, of_base: float | None = None) -> str:
    """What a negative prompt does at this scale of guidance, and the base model's own if any."""
    if guidance > 1:
        return "What to lead away from."
    if (of_base or 0) > 1:
        return "Leads the base clip alone, while Guidance is 1."
    return "Does nothing while Guidance is 1."


def theme() -> gr.themes.Base:
    """Quiet and legible; no font is downloaded."""
    return gr.themes.Default(
        primary_hue="cyan",
        neutral_hue="slate",
        radius_size="lg",
        font=[gr.themes.Font(name) for name in ("Inter", "system-ui", "sans-serif")],
        font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")],
    ).set(
        body_background_fill="#f6f8fa",
        body_background_fill_dark="#0b1117",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_title_text_weight="650",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_shadow="0 1px 2px rgba(15, 23, 42, .05)",
        button_primary_background_fill="#0e7490",
        button_primary_background_fill_hover="#155e75",
        button_primary_background_fill_dark="#0e7490",
        button_primary_background_fill_hover_dark="#155e75",
        button_primary_text_color="white",
        button_cancel_background_fill="#fff",
        button_cancel_background_fill_dark="#1e293b",
        button_cancel_text_color="#b91c1c",
        button_cancel_text_color_dark="#fca5a5",
        slider_color="#0e7490",
        slider_color_dark="#22b8cf",
    )


def composing(preset: ModelPreset) -> list[tuple[str, str]]:
    """When a smaller clip may come first: what people read, and the setting."""
    always = (f"above {preset.first_size}", "on")
    if preset.progressive_above is None:
        return [("never", "auto"), always]
    return [("beyond the trained size", "auto"), always, ("never", "off")]
