"""The page's one public endpoint, for scripts and agents."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_type_hints

import gradio as gr
from gradio.components.api_component import Api
from gradio_client.utils import python_type_to_json_schema

from ..presets import EVERY_STEP
from ..runs.progress import Progress
from ..runs.worker import Failed, Finished
from .runs import GpuPart, Runs
from .settings import SETTINGS, problem, validated


def build_api(runs: Runs, gpu_part: GpuPart, **limits: Any) -> None:
    """Adds the endpoint to the page that is being built.

    Args:
        runs: What starts runs.
        gpu_part: What makes a request's frames, see `Runs.items`.
        limits: How many runs may go on at once, as Gradio's events take it.
    """

    def generate(
        prompt: str,
        resolution: Literal["544p", "720p", "1080p", "2k", "4k"] | None = None,
        windows: str = "auto",
        num_frames: int | None = None,
        seed: int | None = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        upscaler: Literal["network", "lanczos"] = "network",
        base_native: Literal["off", "on"] = "off",
        loras: dict[str, float] | None = None,
        noise: Literal["independent", "spectral"] = "spectral",
        aspect: Literal["16:9", "9:16", "1:1", "4:3", "21:9"] = "16:9",
        fps: int | None = None,
        guidance_interval: str = EVERY_STEP,
        cache: Literal["off", "taylor-2", "taylor-3"] = "off",
        shift: float | None = None,
        solver: Literal["own", "euler", "unipc"] = "own",
        base_num_inference_steps: int | None = None,
        base_guidance_scale: float | None = None,
        progressive: Literal["auto", "on", "off"] = "auto",
        progress: gr.Progress = gr.Progress(),
    ) -> Iterator[tuple[str | None, str | None, str | None, dict]]:
        """Generates a landscape clip natively at the full size, and the base model's clip of the
        same prompt and seed, upscaled, to compare with.

        Args:
            prompt: What the clip shows, in English.
            resolution: Size of the clips; null takes the model's.
            windows: Attention windows on each axis: "auto", or an even number such as "2" or "4".
            num_frames: Frames, 4n + 1; null takes the model's.
            seed: Where the noise begins: the same seed gives the same clip; null
                draws one, which the metadata tell.
            num_inference_steps: Denoising steps, 1 to 100; null takes the model's.
            guidance_scale: Scale of classifier-free guidance, 0 to 100, where 1 and below
                switch it off; null takes the model's.
            negative_prompt: What guidance leads away from; null takes the model's.
            upscaler: Upscaler of the base model's clip.
            base_native: "on" also runs the base model at the full size, for its timings.
            loras: Strength of each LoRA by its name, of those that the page lists; null takes
                those that the page starts with.
            noise: "spectral" makes a seed much the same scene at every size; "independent" draws
                each of them anew, as clips from before there was a choice did.
            aspect: Shape of the clips: "9:16" stands, "1:1" is square.
            fps: Frames a second of the files: 12, 15, 16 or 24; null takes the model's. The frames
                are the same, shown faster or slower.
            guidance_interval: Noise levels, from 0 to 1, between which guidance is computed, such
                as "0.6-1"; other steps take half the time.
            cache: "taylor-2" predicts every second step after the fifth from those before,
                "taylor-3" two of three, which changes clips a little.
            shift: Shift of the noise levels, 0.01 to 100, above 1 towards more noise; null takes
                the model's.
            solver: What takes the steps: "own" is the model's, "euler", or "unipc".
            base_num_inference_steps: Denoising steps of the base model's clip; null takes the
                native clip's, or the base model's own where only the native one is distilled.
            base_guidance_scale: Guidance of the base model's clip; null as for its steps.
            progressive: "on" makes a smaller clip first, which decides where things are; "auto"
                does so where frames are larger than the model was trained for; "off" begins at the
                full size.

        Returns:
            The native clip, the upscaled clip, both side by side, and the metadata that
            reproduces the run. While it is under way there are no clips, and how far it is
            stands in the place of the metadata.
        """
        given = locals()
        asked = validated(runs.models, {name: given[name] for name in SETTINGS})
        last = Progress("text", 0, 1, 0.0, "Starting")
        for item in runs.items(asked, gpu_part):
            if isinstance(item, Failed):
                raise problem(item.message)
            elif isinstance(item, Finished):
                result = item.value
                files = (str(result.native), str(result.upscaled), str(result.side_by_side))
                yield *files, result.metadata
                return
            else:  # Gradio closes a generator whose caller is gone, and only between two items
                last = item if isinstance(item, Progress) else last
                progress(last.fraction, desc=last.message)
                yield None, None, None, {"fraction": last.fraction, "message": last.message}
        raise problem("The run ended without a result: try again.")

    outputs = [
        gr.Video(label="native", visible=False),
        gr.Video(label="upscaled", visible=False),
        gr.Video(label="side_by_side", visible=False),
        gr.JSON(label="metadata", visible=False),
    ]
    gr.Button("generate", visible=False).click(
        generate,
        api_inputs(generate),
        outputs,
        api_name="generate",
        show_progress="hidden",
        **limits,
    )


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
