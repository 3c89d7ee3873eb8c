"""Whole runs: by the command line, by diffusers' own pipeline, and short ones whose seconds tell
what a unit of work costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from diffusers import WanPipeline
from hardware_memory import Watch
from hardware_plan import PROMPT, Clip, Files, Plan
from hardware_results import Entry, Results
from hardware_tables import coefficients_code

from ultragen.benchmark.bench import free_memory
from ultragen.benchmark.machine import default_dtype
from ultragen.model.autoencoder import denormalize
from ultragen.presets import WAN
from ultragen.runs import calibrate
from ultragen.runs.loading import load_models
from ultragen.weights.wan import load_text_encoder

ROOT = Path(__file__).parents[1]


def measure_runs(plan: Plan, results: Results, clips: list[str], files: Files) -> None:
    """Prompt to MP4 by the command line, in a process of its own, as users run it."""
    for name in clips:
        if name in plan.runs and results.wants("runs", plan.runs[name].name):
            entry = run_command_line(plan.runs[name], plan.steps, files)
            results.add("runs", plan.runs[name].name, entry)


def run_command_line(clip: Clip, steps: int, files: Files) -> Entry:
    """Seconds by stage of `ultragen generate`."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "clip.mp4"
        command = [sys.executable, "-m", "ultragen", "generate", "--model", "wan"]
        command += ["--prompt", PROMPT, "--resolution", clip.resolution]
        command += ["--frames", str(clip.frames), "--steps", str(steps), "--out", str(out)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        began = perf_counter()
        ended = subprocess.run(
            command, env={**os.environ, **files.environment, "PYTHONPATH": path}, check=False
        )
        whole = perf_counter() - began
        if ended.returncode:
            raise RuntimeError(f"`ultragen generate` ended with code {ended.returncode}")
        metadata = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        return {
            **asdict(clip),
            "steps": steps,
            "placement": metadata["machine"]["placement"],
            "guidance_scale": metadata["request"]["guidance_scale"],
            "windows": metadata["windows"]["even_layers"],
            "seconds": metadata["seconds"]["measured"],
            "loading": metadata["seconds"]["loading"],
            "whole": whole,
            "file_bytes": out.stat().st_size,
        }


def measure_dense(plan: Plan, results: Results, clips: list[str], files: Files) -> None:
    """diffusers' own pipeline from the same folder."""
    wanted = [plan.runs[name] for name in clips if name in plan.runs]
    wanted = [clip for clip in wanted if results.wants("dense", clip.name)]
    if not wanted:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = default_dtype(device)
    began = perf_counter()
    # Its own loader would keep the word embeddings twice, see `load_text_encoder`.
    text_encoder = load_text_encoder(files.wan / "text_encoder", dtype)
    pipe = WanPipeline.from_pretrained(
        files.wan, text_encoder=text_encoder, dtype=dtype, local_files_only=True
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    loading = perf_counter() - began
    for clip in wanted:
        entry = run_dense(pipe, clip, plan.dense_steps, device)
        results.add("dense", clip.name, {**asdict(clip), "loading": loading, **entry})


def run_dense(pipe: Any, clip: Clip, steps: int, device: str) -> Entry:
    """Seconds of a guided step and of decoding, and the peaks of both."""
    times: list[float] = []

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter())
        return tensors

    free_memory()
    watch = Watch(device)
    began = perf_counter()
    with torch.no_grad():
        pipe.encode_prompt([PROMPT, WAN.negative_prompt], do_classifier_free_guidance=False)
        text = watch.lap()  # waits for the device
        text_seconds = perf_counter() - began
        latents = pipe(
            PROMPT,
            negative_prompt=WAN.negative_prompt,
            height=clip.height,
            width=clip.width,
            num_frames=clip.frames,
            num_inference_steps=steps + 1,
            guidance_scale=WAN.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(0),
            callback_on_step_end=after_step,
            output_type="latent",
        ).frames
        transformer = watch.lap()
        decode_seconds, tiled = decode_dense(pipe.vae, latents)
    return {
        "step_seconds": (times[-1] - times[0]) / steps,
        "steps_timed": steps,
        "text_seconds": text_seconds,
        "decode_seconds": decode_seconds,
        "tiled": tiled,
        "stages": {"text": text, "transformer": transformer, "decoding": watch.lap()},
    }


def decode_dense(vae: Any, latents: Any) -> tuple[float, bool]:
    """Seconds of diffusers' decoding, and whether it had to be in tiles."""
    for tiled in (False, True):
        vae.use_tiling = tiled
        free_memory()
        began = perf_counter()
        try:
            vae.decode(denormalize(vae, latents), return_dict=False)[0][0, 0, 0, 0, 0].item()
            return perf_counter() - began, tiled
        except torch.OutOfMemoryError:
            if tiled:
                raise
    raise AssertionError("unreachable")


def measure_coefficients(plan: Plan, results: Results, files: Files) -> None:
    """What a unit of work costs, for both models."""
    for name in ("wan", "embedded"):
        if not results.wants("coefficients", name):
            continue
        began = perf_counter()
        with patch.dict(os.environ, files.environment):
            models = load_models(name)
        loading = perf_counter() - began

        def say(line: str, name: str = name) -> None:
            print(f"coefficients, {name}, {line}", flush=True)

        found = calibrate.measure(models, say, plan.measured)
        took = perf_counter() - began
        entry = {**asdict(found), "loading": loading, "measured_in_s": took}
        results.add("coefficients", name, entry)
        print(coefficients_code(name, entry), flush=True)
        del models
        free_memory()
