"""Memory of a forward pass and of the whole pipeline, by stage."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hardware_plan import PIECES, PROMPT, Clip, Plan
from hardware_results import Entry, Results

from ultragen.benchmark.bench import free_memory
from ultragen.benchmark.machine import default_dtype
from ultragen.estimates.memory import Placement, weights_of
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import WAN, WAN_SHIFT
from ultragen.runs.loading import take_turns
from ultragen.weights.random import Noise, Sizes, builders, make_tokenizer
from ultragen.weights.released import cast_weights

PLACEMENTS: tuple[Placement, ...] = ("whole", "in turn")


class Watch:
    """Memory and time since it was last asked."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.lap()

    def lap(self) -> Entry:
        """Bytes that tensors took at most, and that the allocator held for them; None on a CPU."""
        if self.device != "cuda":
            return {"peak_bytes": None, "reserved_bytes": None}
        torch.cuda.synchronize()
        found = {
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return found


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


# A forward pass


def one_of_each(weights: Sizes, device: str) -> Any:
    """UltraGen's transformer with one full, one odd and one even layer: no layer's memory depends
    on how many follow."""
    three = replace(weights, transformer={**weights.transformer, "num_layers": 3}, full=(0,))
    model = Noise(0, device).weigh(builders(three)["transformer"])
    return cast_weights(model, default_dtype(device))


def forward(model: Any, clip: Clip, device: str) -> None:
    """One forward pass with random inputs."""
    config, dtype = model.config, default_dtype(device)
    latents = (config.in_channels, (clip.frames + 3) // 4, clip.height // 8, clip.width // 8)
    text = (WAN.max_sequence_length, config.text_dim)
    with torch.no_grad():
        model(
            hidden_states=torch.randn(1, *latents, device=device, dtype=dtype),
            timestep=torch.full((1,), 500.0, device=device),
            encoder_hidden_states=torch.randn(1, *text, device=device, dtype=dtype),
            windows="auto",
            return_dict=False,
        )


def measure_tokens(plan: Plan, results: Results, device: str) -> None:
    """What a forward pass takes beside its weights."""
    wanted = [clip for clip in plan.tokens if results.wants("tokens", clip.name)]
    if not wanted:
        return
    model = one_of_each(plan.weights, device)
    forward(model, plan.tokens[0], device)  # what libraries keep from their first call on
    for clip in wanted:
        free_memory()
        held, watch = allocated(device), Watch(device)
        forward(model, clip, device)
        found = watch.lap()
        if found["peak_bytes"] is not None:
            found = {name: size - held for name, size in found.items()}
        results.add("tokens", clip.name, {**asdict(clip), "tokens": clip.tokens, **found})


# The whole pipeline


def build_pipeline(weights: Sizes, device: str) -> UltraGenPipeline:
    """All parts with random weights, the base model among them."""
    noise, dtype = Noise(0, device), default_dtype(device)
    parts = {name: noise.weigh(build) for name, build in builders(weights).items()}
    for name, part in parts.items():  # each as its own library loads it
        part.to(dtype) if name == "text_encoder" else cast_weights(part, dtype)
    pipe = UltraGenPipeline(
        tokenizer=make_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=WAN_SHIFT),
        max_sequence_length=WAN.max_sequence_length,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure_memory(plan: Plan, results: Results, device: str, clips: list[str]) -> None:
    """Peaks by stage, with all parts on the GPU and with one at a time."""
    wanted = {
        placement: {
            key: clip
            for name in clips
            if (clip := plan.clips[name])
            and results.wants("memory", key := f"{clip.name}, {placement}")
        }
        for placement in PLACEMENTS
    }
    if not any(wanted.values()):
        return
    pipe = build_pipeline(plan.weights, device)
    weights = asdict(weights_of(pipe))
    for placement in PLACEMENTS:
        if placement == "in turn":
            take_turns(pipe, pipe.base_pipeline(), device)
        for key, clip in wanted[placement].items():
            entry = {**asdict(clip), "placement": placement, "weights": weights}
            results.add("memory", key, {**entry, "stages": stage_peaks(pipe, clip, device)})


def stage_peaks(pipe: UltraGenPipeline, clip: Clip, device: str) -> Entry:
    """Peaks of text encoding, one guided step, and decoding."""
    free_memory()
    stages: Entry = {}
    watch = Watch(device)

    def text_is_done(*arguments: Any) -> None:
        if not stages:
            stages["text"] = watch.lap()

    hook = pipe.transformer.register_forward_pre_hook(text_is_done)
    try:
        latents: Any = pipe(
            PROMPT,
            height=clip.height,
            width=clip.width,
            num_frames=clip.frames,
            num_inference_steps=1,
            negative_prompt=WAN.negative_prompt,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="latent",
        ).frames
    finally:
        hook.remove()
    stages["transformer"] = watch.lap()
    for piece in islice(pipe.decode_stream(latents), PIECES):
        piece.cpu()
    stages["decoding"] = watch.lap()
    return stages
