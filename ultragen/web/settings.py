"""What the page says before a run: whether its settings can be used, and what they cost."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from dataclasses import fields
from html import escape, unescape
from textwrap import shorten
from typing import Any

import gradio as gr

from ..estimates.cost import ZEROGPU_TIERS, Job
from ..presets import FAST, RESOLUTIONS, shown
from ..runs.choice import REASON
from ..runs.clip import job
from ..runs.loading import Models
from ..runs.request import MAX_SEED, UPSCALERS, Request, check_fast
from ..runs.zerogpu import offers, seconds_asked
from . import views
from .components import Layout

SETTINGS = [field.name for field in fields(Request)]
TYPED = ("shift", "base_num_inference_steps", "base_guidance_scale")
"""Numbers that may be left out, which the page has as text."""
Updates = dict[Any, Any]


def on_zero_gpu() -> bool:
    """Whether visitors pay for GPU seconds with a quota."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


LABELS = {
    "num_frames": "Frames",
    "num_inference_steps": "Denoising steps",
    "guidance_scale": "Guidance",
    "base_num_inference_steps": "Steps of the base clip and drafts",
    "base_guidance_scale": "Guidance of the base clip and drafts",
    "guidance_interval": "Guidance between noise levels",
    "cache": "Steps that are predicted",
    "shift": "Shift of the noise levels",
    "solver": "Solver",
    "progressive": "A smaller clip first",
    "negative_prompt": "Negative prompt",
    "seed": "Seed",
    "windows": "Attention windows",
}
"""What the page calls settings that errors name; the API calls them as they are."""


def in_page_words(message: str) -> str:
    """An error as the page says it: of the field that a visitor sees."""
    return re.sub(rf"\b({'|'.join(LABELS)})\b", lambda found: LABELS[found[0]], message, count=1)


def problem(message: str) -> gr.Error:
    """An error that the page and the API show as it is; what was typed is shown as text."""
    return gr.Error(escape(message, quote=False), title="Please note", print_exception=False)


def said(error: Exception) -> str:
    """What an exception says, as text; those of ZeroGPU say it as HTML."""
    if isinstance(error, gr.Error):
        return unescape(str(error.message))
    return str(error) or type(error).__name__


def machine(models: Models) -> str:
    """What computes, for people."""
    return "this machine's GPU" if models.device == "cuda" else "this machine's CPU"


def describe_model(models: Models) -> str:
    """Which model runs here, why, and what the other one needs."""
    size = sum(p.numel() for p in models.native.transformer.parameters()) / 1e6
    choice = models.choice
    told = [models.preset.credit, *((choice.why, choice.other) if choice else ())]
    why = " ".join(filter(None, told))
    turns = (
        " Its parts come to the GPU in turn, which takes longer."
        if models.placement == "in turn"
        else ""
    )
    left_out = "".join(
        f" The LoRA {name} is left out: {shorten(reason, REASON, placeholder=' …')}"
        for name, reason in models.left_out.items()
    )
    return (
        f"<b>{models.preset.name.capitalize()} model</b>, {size:.0f} million parameters, "
        f"on {machine(models)}.{turns} {escape(why + left_out)}"
    )


def validated(models: Models, settings: dict[str, Any]) -> Request:
    """A request that can run.

    Raises:
        gr.Error: with what to change.
    """
    upscaler = settings["upscaler"]
    if upscaler not in UPSCALERS:  # files are for people at the machine, not for visitors
        raise problem(f"upscaler {shown(upscaler)} is unknown: choose {' or '.join(UPSCALERS)}.")
    try:
        request = as_request(settings).validate(models.preset)
        models.check_memory(request)
    except ValueError as error:
        raise problem(str(error)) from error
    check_quota(seconds_asked(request, models))
    return request


def check_quota(seconds: int) -> None:
    """Checks that any visitor's quota can start a run that asks for so many GPU seconds.

    Raises:
        gr.Error: If none can.
    """
    who, most = ZEROGPU_TIERS[-1]
    if on_zero_gpu() and seconds > most:
        raise problem(
            f"This asks for {seconds:,} GPU seconds, and no quota starts more than {most:,}, that "
            f"of {who}: choose a smaller resolution, fewer frames or fewer steps."
        )


def as_settings(values: Sequence[Any]) -> dict[str, Any]:
    """The settings by name, of the page's components in their order."""
    settings = dict(zip(SETTINGS, values, strict=True))
    return settings | {name: typed_number(settings[name]) for name in TYPED}


def typed_number(text: object) -> Any:
    """A number as it was typed, or None; what is neither stays as it is, and its error tells it."""
    if not isinstance(text, str):
        return text
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def as_request(settings: dict[str, Any]) -> Request:
    """A request of settings as the page has them, whose LoRAs are rows of a table, or the API. An
    empty seed becomes a random one.

    Raises:
        ValueError: if a strength is no number.
    """
    loras = settings["loras"]
    if isinstance(loras, list) and all(isinstance(row, list) and len(row) == 2 for row in loras):
        # Visitors may add rows, and what they type into a column of numbers comes as text.
        loras = {name: _number(name, strength) for name, strength in loras if name}
    seed = random.randint(0, MAX_SEED) if settings["seed"] is None else settings["seed"]
    return Request(**settings | {"loras": loras, "seed": seed})


def _number(name: str, strength: object) -> object:
    if not isinstance(strength, str):
        return strength
    try:
        return float(strength)
    except ValueError:
        raise ValueError(
            f"The strength of the LoRA {name} must be a number, not {shown(strength)}: 1 is what "
            "it was trained for, 0 leaves it out."
        ) from None


def lora_rows(models: Models, strengths: dict[str, float]) -> list[list[Any]]:
    """The page's table of LoRAs with these strengths."""
    return [[lora.name, strengths.get(lora.name, 0.0)] for lora in models.preset.loras]


def refresh(ui: Layout, models: Models, *values: Any) -> Updates:
    """What the settings cost, and their windows on the frame."""
    settings = as_settings(values) | {"prompt": "-"}
    try:
        request = as_request(settings).validate(models.preset)
        models.check_memory(request)
    except ValueError as error:
        text = in_page_words(str(error))
        return {ui.estimate: views.notice("bad", "Please change a setting", text)}
    work = job(request, models)
    stages = models.estimator.estimate(work)
    return {
        ui.estimate: views.estimate(stages, machine(models), on_zero_gpu()),
        ui.drawing: _drawing(work, str(request.windows)),
        ui.costs: views.resolution_labels(
            [size.shaped(request.aspect).kept for size in RESOLUTIONS.values()],
            seconds_by_resolution(models, request),
        ),
        ui.length: views.length(request.frames, request.frame_rate),
        **offer_labels(ui, models),
    }


def _drawing(work: Job, asked: str) -> str:
    """The windows of a run."""
    grid = work.grid(work.height, work.width)
    if work.windows is None:
        return views.t3_windows(grid, work.t3_windows)
    return views.windows(grid, work.windows, asked, work.full_share)


def seconds_by_resolution(models: Models, request: Request) -> list[float]:
    """What every resolution takes here, with windows of the trained size."""
    others = [
        Request(**request.to_dict() | {"resolution": name, "windows": "auto"})
        for name in RESOLUTIONS
    ]
    estimate = models.estimator.estimate
    return [sum(estimate(job(other, models)).values()) for other in others]


def offer_labels(ui: Layout, models: Models) -> Updates:
    """What the best settings for each kind of visitor take, as far as that is known by now."""
    seconds = {offer.visitor: offer.seconds for offer in offers(models)} if ui.offers else {}
    return {
        button: gr.update(
            value=f"Best for {visitor} ({seconds.get(visitor)} s)", visible=visitor in seconds
        )
        for visitor, button in ui.offers.items()
    }


def take_fast(models: Models, *values: Any) -> list[str]:
    """What makes a guided clip in half the time: the interval of guidance, and the cache.

    Raises:
        gr.Error: if it is not guided.
    """
    settings = as_settings(values) | {"prompt": "-"}
    try:
        check_fast(as_request(settings | FAST).validate(models.preset))
    except ValueError as error:
        raise problem(in_page_words(str(error))) from error
    return [FAST["guidance_interval"], FAST["cache"]]


def take_offer(ui: Layout, models: Models, visitor: str) -> Updates:
    """Resolution, frames and steps that fit a visitor's quota.

    Raises:
        gr.Error: if runs that ended since have shown that nothing does.
    """
    fitting = [offer.request for offer in offers(models) if offer.visitor == visitor]
    if not fitting:
        raise problem("Nothing fits that quota any more: reload the page.")
    [request] = fitting
    return {
        ui.resolution: request.resolution,
        ui.num_frames: request.frames,
        ui.steps: request.num_inference_steps,
    }
