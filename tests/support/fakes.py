"""A stand-in for the pipelines: the same calls, a drawn landscape instead of a model.

It makes tests of the comparison and the page fast; the embedded model has tests of its own.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from ports import free_port

from ultragen.estimates.coefficients import CPU
from ultragen.estimates.estimator import Estimator
from ultragen.model.window_plan import WindowRule
from ultragen.model.windows import auto_windows
from ultragen.presets import EMBEDDED, LoraChoice, steps_taken
from ultragen.runs.loading import Models

KNOWN = {"a", "calm", "lake", "under", "snowy", "mountains", "at", "sunset", "the", "camera"} | {
    "pans",
    "right",
    "still",
}


class FakeTransformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(7))
        self.layer_kinds = ["even", "odd"]
        self.rule = WindowRule()
        self.cache: Any = None

    def enable_cache(self, config: Any) -> None:
        assert self.cache is None
        self.cache = config

    def disable_cache(self) -> None:
        self.cache = None

    def resolve_windows(self, windows: int | str, height: int, width: int) -> int:
        return auto_windows(height, width, (8.5, 15.0)) if windows == "auto" else windows


class FakePipeline:
    """Draws mountains over a lake; `delay` seconds a step, `damage` as a broken model would."""

    edition = 1

    def __init__(self, delay: float = 0.0, damage: str = "none", detail: float = 1.0) -> None:
        self.delay, self.damage, self.detail = delay, damage, detail
        self.transformer = FakeTransformer()
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.config = SimpleNamespace(window_motion="none")
        self.calls: list[dict] = []
        self.guidance_device: str | None = None
        self.fp8 = False
        self.steps_done = 0
        self.sampling: tuple[str, float | None] = ("own", None)
        self.loras: list[tuple[str, float]] = []  # files and strengths

    def load_lora_weights(self, file: str, adapter_name: str) -> None:
        self.loras.append((file, 1.0))

    def set_adapters(self, names: list[str], strengths: list[float]) -> None:
        files = [file for file, _ in self.loras]
        self.loras = list(zip(files, strengths, strict=True))

    def with_sampling(self, solver: str, shift: float | None) -> FakePipeline:
        self.sampling = (solver, shift)
        return self

    def unload_lora_weights(self) -> None:
        self.loras = []

    def enable_parallel_guidance(self, device: str) -> None:
        self.guidance_device = device

    def enable_fp8(self) -> None:
        self.fp8 = True

    def unknown_words(self, prompt: str) -> list[str]:
        words = (word.strip(".,!?'\"") for word in prompt.lower().split())
        return [word for word in dict.fromkeys(words) if word and word not in KNOWN]

    def unread(self, prompt: str) -> str:
        return " ".join(prompt.split()[EMBEDDED.max_sequence_length :])

    def encode_prompt(self, prompt, negative_prompt, do_classifier_free_guidance):
        """What was typed stands in for embeddings."""
        return prompt, [negative_prompt] * len(prompt) if do_classifier_free_guidance else None

    def __call__(
        self, prompt, height, width, num_frames, num_inference_steps, guidance_scale, generator,
        noise, callback_on_step_end, output_type, prompt_embeds, negative_prompt_embeds=None,
        windows=None, guidance_interval=(0.0, 1.0), composition=None,
    ):  # fmt: skip
        assert prompt is None and (guidance_scale > 1) == (negative_prompt_embeds is not None)
        [prompt] = prompt_embeds
        self.calls.append(
            {"prompt": prompt, "size": (height, width), "windows": windows,
             "seed": generator.initial_seed(), "steps": num_inference_steps,
             "guidance": guidance_scale, "loras": list(self.loras), "noise": noise,
             "interval": guidance_interval, "cache": self.transformer.cache,
             "sampling": self.sampling, "composition": composition}
        )  # fmt: skip
        for step in range(steps_taken(num_inference_steps) if composition else num_inference_steps):
            time.sleep(self.delay)
            self.steps_done += 1
            callback_on_step_end(self, step, 1000 - step, {})
        shape = (prompt, generator.initial_seed(), num_frames, height, width)
        return SimpleNamespace(frames=shape)

    def decode_stream(self, latents):
        """What was asked for stands in for latents."""
        clip = landscape(*latents, self.detail)
        if self.damage == "nan":
            raise RuntimeError("The decoded frames are not finite. Use another seed.")
        if self.damage == "black":
            clip[:] = 0
        for first in range(0, len(clip), 4):
            yield torch.from_numpy(clip[first : first + 4]).permute(3, 0, 1, 2)[None]


class PatientPipeline(FakePipeline):
    """Makes nothing until it is told to."""

    def __init__(self, damage: str = "none") -> None:
        super().__init__(damage=damage)
        self.told = Event()

    def __call__(self, *arguments, **settings):
        assert self.told.wait(60)
        return super().__call__(*arguments, **settings)


def landscape(
    prompt: str, seed: int, frames: int, height: int, width: int, detail: float
) -> np.ndarray:
    """Frames t h w 3 in [0, 1]: a sky, ridges in parallax, and water that mirrors them."""
    random = np.random.default_rng([seed, zlib.crc32(prompt.encode())])
    x, y = np.linspace(0, 1, width, dtype=np.float32), np.linspace(0, 1, height, dtype=np.float32)
    top, low = random.uniform(0.1, 0.5, 3), np.array([1.0, 0.6, 0.35]) * random.uniform(0.8, 1)
    phases = random.uniform(0, 6.3, (3, 4))
    sky = top + (low - top) * np.minimum(y / 0.6, 1)[:, None]
    clip = np.empty((frames, height, width, 3), np.float32)
    for t, picture in enumerate(clip):
        picture[:] = sky[:, None]
        for ridge in range(3):
            shift = t * 0.004 * (ridge + 1)
            line = 0.35 + 0.08 * ridge
            for octave in range(4):
                wave = np.sin((x + shift) * (5 + ridge * 2) * 2**octave + phases[ridge, octave])
                line = line - wave * 0.05 / 1.8**octave
            picture[y[:, None] > line] = low * (0.55 - 0.15 * ridge) + 0.05
        shore = int(height * 0.68)
        mirrored = picture[shore - 1 :: -1][: height - shore]
        ripple = 0.06 * detail * np.sin(y[shore:, None] * 400 + x * 60 + t)
        picture[shore:] = mirrored * 0.75 + ripple[: len(mirrored), :, None]
    return clip.clip(0, 1, out=clip)


class FakeUpscaler:
    name = "×4 network"

    def stream(self, frames, height: int, width: int):
        for frame in frames:
            rows = np.arange(height) * frame.shape[0] // height
            columns = np.arange(width) * frame.shape[1] // width
            yield frame[rows][:, columns]


def fake_models(
    delay: float = 0.0, damage: str = "none", loras: tuple[LoraChoice, ...] = ()
) -> Models:
    """Models of the embedded preset that run at once."""
    fast = Estimator(CPU.scaled(1.0))
    upscalers = {"network": FakeUpscaler(), "lanczos": FakeUpscaler()}
    return Models(
        FakePipeline(delay, damage),
        FakePipeline(delay, detail=0.2),
        replace(EMBEDDED, loras=loras),
        Path("fake"),
        "0" * 64,
        "cpu",
        fast,
        upscalers,
    )


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something that happens in a server."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def without_a_server(page: Any) -> Any:
    """The page, built, whose runs begin at once in place of waiting in Gradio's queue."""
    page.build()
    page.following.enqueue = lambda run, request: Thread(target=run.compute, daemon=True).start()
    return page


def run_on(page: Any, request: Any, *values: Any) -> Iterator[dict]:
    """What a run changes on the page, of its settings, history and visitor."""
    *settings, history, visitor = values
    return follow_on(
        page, request, page.following.run(request, *settings, visitor), history, visitor
    )


def rejoin_on(page: Any, request: Any, history: list, visitor: object) -> Iterator[dict]:
    """What a page that is loaded anew shows of the run that its browser started."""
    yield page.following.rejoin(request, visitor)
    yield from follow_on(page, request, page.following.wait(request), history, visitor)


def follow_on(
    page: Any, request: Any, begun: Iterator, history: list, visitor: object
) -> Iterator[dict]:
    """What all events of a run change, once the first one has begun."""
    for status in begun:
        if status != gr.skip():
            yield {page.ui.status: status}
    for update in page.following.compute(request):
        if update != gr.skip():
            yield update
    yield from page.following.end(request, history, visitor)


@contextmanager
def served(models: Models, output_dir: Path, **options):
    """The page on a port of its own; yields its address. Options are those of `app.build`."""
    import app

    blocks = app.build(models, output_dir, **options)
    launch = app.launch_options() | {"prevent_thread_lock": True, "quiet": True}
    # Gradio 6.31 can lose the port that it looked for to another process, and then gets none.
    _, url, _ = blocks.launch(server_port=free_port(), **launch)
    try:
        yield url.rstrip("/")
    finally:
        blocks.close(verbose=False)
