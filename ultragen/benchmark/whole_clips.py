"""Decoding, and the whole way from a prompt to a file."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from ..model import wan_1_3b
from ..model.autoencoder import CompactAutoencoder, denormalize
from ..pictures import to_frames
from ..pipeline import UltraGenPipeline
from ..presets import EMBEDDED, EMBEDDED_MODEL, PROMPTS, WAN, WAN_SHIFT, ModelPreset
from ..video import encode_video
from ..weights.released import cast_weights
from .bench import Bench
from .cases import AUTO, OURS, PLAIN, TEXT_TOKENS, TILED, Case, Family, build
from .forward import operations_of
from .machine import default_dtype
from .parts import device_clock
from .records import Measurement

PRESETS: dict[Family, ModelPreset] = {
    "wan": WAN,
    "embedded": EMBEDDED,
    "tiny": replace(WAN, num_inference_steps=2),
}
VAE_CONFIGS: dict[Family, dict[str, Any]] = {
    "wan": wan_1_3b.VAE,
    "tiny": {"base_dim": 8, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
}
TEXT_CONFIGS: dict[Family, dict[str, Any]] = {
    "wan": wan_1_3b.TEXT_ENCODER,
    "tiny": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
}


def measure_decoding(bench: Bench, case: Case) -> None:
    """Measures the autoencoders on the way from latents to frames."""
    variants = (OURS,) if case.family == "embedded" else (OURS, TILED, PLAIN)
    for variant in variants:
        bench.attempt(case, variant, partial(measure_decoder, bench, case, variant))


def measure_decoder(bench: Bench, case: Case, variant: str) -> None:
    """Measures one way to decode random latents."""
    operations = decoding_operations(case)
    floor = operations / bench.report.machine.matrix_rate
    bench.require(floor)
    device, dtype = bench.device, default_dtype(bench.device)
    vae = build_decoder(case.family, device, dtype)
    if variant == TILED:
        vae.enable_tiling()
    latents = random_latents(vae, case, device)
    call = partial(decode_through_pipeline if variant == OURS else decode_plainly, vae, latents)
    bench.record(case, bench.measure(variant, call, operations, floor))


def decode_plainly(vae: Any, latents: Tensor) -> None:
    """As diffusers decodes, the whole clip in memory."""
    vae.decode(denormalize(vae, latents), return_dict=False)


def decode_through_pipeline(vae: Any, latents: Tensor) -> None:
    """As our pipeline decodes; what comes is not kept, as on the way into a file."""
    pipe = UltraGenPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=None,
    )
    for _ in pipe.decode_stream(latents):
        pass


def build_decoder(family: Family, device: str, dtype: torch.dtype) -> Any:
    """An autoencoder with random weights."""
    with torch.device(device):
        if family == "embedded":
            config = CompactAutoencoder.load_config(EMBEDDED_MODEL / "vae")
            vae = CompactAutoencoder.from_config(config)
        else:
            vae = AutoencoderKLWan(**VAE_CONFIGS[family])
    return cast_weights(vae, dtype).eval()


def random_latents(vae: Any, case: Case, device: str) -> Tensor:
    return torch.randn(1, vae.config.z_dim, *case.latents, device=device)


@cache
def decoding_operations(case: Case) -> int:
    """Operations of the plain decoding, counted without computing it."""
    vae = build_decoder(case.family, "meta", torch.float32)
    with FlopCounterMode(display=False) as counter:
        vae.decode(random_latents(vae, case, "meta"), return_dict=False)
    return counter.get_total_flops()


def measure_run(bench: Bench, case: Case) -> None:
    """Measures a whole run, stage by stage, once and as it comes; loading is left out."""
    bench.attempt(case, "whole", partial(measure_stages, bench, case))


def measure_stages(bench: Bench, case: Case) -> None:
    """Text → latents → file, with our transformer and windows of constant size."""
    preset, machine = PRESETS[case.family], bench.report.machine
    forward, decoding = operations_of(case, AUTO), decoding_operations(case)
    passes = preset.num_inference_steps * (2 if preset.guidance_scale > 1 else 1)
    work = passes * sum(forward.values()), decoding
    floors = passes * machine.floor(forward), decoding / machine.matrix_rate
    bench.require(sum(floors))
    pipe = build_pipeline(case.family, bench.device, default_dtype(bench.device))
    bench.reset_peak()
    text, denoising, writing = time_stages(pipe, case, preset, bench.device)
    # The pipeline encodes its texts itself: alone they are shown, but not counted twice.
    for measurement in (
        Measurement("text alone", text, 1),
        Measurement(f"text and {passes} passes", denoising, 1, None, work[0], floors[0]),
        Measurement("decoding and writing", writing, 1, None, work[1], floors[1]),
        Measurement("whole", denoising + writing, 1, bench.peak(), sum(work), sum(floors)),
    ):
        bench.record(case, measurement)


def time_stages(
    pipe: UltraGenPipeline, case: Case, preset: ModelPreset, device: str
) -> tuple[float, ...]:
    """Seconds of the text encoder alone, of the latents from a text, and of the file from them."""
    clock = device_clock(device)
    marks = [clock.mark()]
    pipe.encode_prompt(PROMPTS[0], preset.negative_prompt)
    marks.append(clock.mark())
    latents: Any = pipe(
        PROMPTS[0],
        height=case.height,
        width=case.width,
        num_frames=case.frames,
        windows="auto",
        num_inference_steps=preset.num_inference_steps,
        guidance_scale=preset.guidance_scale,
        negative_prompt=preset.negative_prompt,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="latent",
    ).frames
    marks.append(clock.mark())
    write(pipe, latents, preset.fps)
    marks.append(clock.mark())
    clock.finish()
    return tuple(clock.between(*pair) for pair in pairwise(marks))


def write(pipe: UltraGenPipeline, latents: Tensor, fps: int) -> None:
    """Decodes into a video file, piece by piece."""
    frames = (frame for piece in pipe.decode_stream(latents) for frame in to_frames(piece[0]))
    with TemporaryDirectory() as folder:
        encode_video(frames, Path(folder) / "clip.mp4", fps)


def build_pipeline(family: Family, device: str, dtype: torch.dtype) -> UltraGenPipeline:
    """A pipeline with random weights; the embedded one with its own."""
    if family == "embedded":
        pipe = UltraGenPipeline.from_pretrained(EMBEDDED_MODEL, dtype=dtype).to(device)
    else:
        with torch.device(device):
            text_encoder = UMT5EncoderModel(
                UMT5Config(**{**TEXT_CONFIGS[family], "dropout_rate": 0.0})
            )
        pipe = UltraGenPipeline(
            # Any tokenizer does: what a token means changes nothing of its cost.
            tokenizer=AutoTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer"),
            text_encoder=text_encoder.to(dtype).eval(),
            vae=build_decoder(family, device, dtype),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=WAN_SHIFT),
            transformer=build(family, AUTO, device, dtype),
            max_sequence_length=TEXT_TOKENS[family],
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
