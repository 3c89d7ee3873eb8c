"""What a unit of work takes on this machine, from a few short runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

from ..estimates.coefficients import Coefficients, coefficients
from ..estimates.estimator import fit, probe
from ..presets import PROMPTS
from .clip import job
from .compare import compare
from .loading import Models
from .request import Request

MEASURED: dict[str, tuple[dict[str, Any], ...]] = {
    "embedded": (
        {"resolution": "544p", "num_inference_steps": 1, "num_frames": 5},
        {"resolution": "544p", "num_inference_steps": 1, "base_native": "on"},
        {"resolution": "544p", "num_inference_steps": 4, "windows": 8, "upscaler": "lanczos"},
        {"resolution": "1080p", "num_inference_steps": 1},
        {"resolution": "720p", "num_inference_steps": 1, "base_native": "on"},
    ),
    # About five minutes on an H100; the largest are those that the estimates are asked for.
    "wan": (
        {"resolution": "544p", "num_inference_steps": 1, "num_frames": 5},
        {
            "resolution": "544p",
            "num_inference_steps": 4,
            "num_frames": 17,
            "base_native": "on",
        },
        {"resolution": "544p", "num_inference_steps": 4, "windows": 8, "upscaler": "lanczos"},
        {
            "resolution": "1080p",
            "num_inference_steps": 2,
            "num_frames": 33,
            "base_native": "on",
        },
        {
            "resolution": "4k",
            "num_inference_steps": 2,
            "num_frames": 17,
            "upscaler": "lanczos",
        },
        {"resolution": "1080p", "num_inference_steps": 2, "upscaler": "lanczos"},
    ),
    "t3-4k": (
        {"resolution": "544p", "num_inference_steps": 1, "num_frames": 5},
        {
            "resolution": "1080p",
            "num_inference_steps": 2,
            "num_frames": 33,
            "base_native": "on",
        },
        {"resolution": "4k", "num_inference_steps": 2, "num_frames": 17, "upscaler": "lanczos"},
        {"resolution": "4k", "num_inference_steps": 1, "upscaler": "lanczos"},
    ),
}
"""Short runs, by preset, whose seconds tell what a unit of work costs."""


def measure(
    models: Models,
    report: Callable[[str], None] = lambda line: None,
    settings: Sequence[Mapping[str, Any]] | None = None,
) -> Coefficients:
    """Measures what a unit of work takes on this machine, by a few short runs of every stage.

    On a GPU each of them is made twice, and the second one counts: a new size first pays for its
    attention's plans.

    Args:
        models: What runs are made with.
        report: Called with a line before each run.
        settings: What each run's request has beside prompt and guidance; the first run is not
            counted. None takes the model's in `MEASURED`.
    """
    settings = MEASURED[models.preset.name] if settings is None else settings
    runs = []
    with TemporaryDirectory() as folder:
        for run, short in enumerate(settings):
            own = {"guidance_scale": 1.0, "loras": {}, **short}
            own |= {
                "base_num_inference_steps": own.get("num_inference_steps"),
                "base_guidance_scale": own["guidance_scale"],
            }
            request = Request(PROMPTS[0], **own).validate(models.preset)
            report(
                f"run {run + 1} of {len(settings)}: {request.resolution}, {request.frames} frames"
            )
            for _ in range(1 if models.device == "cpu" else 2):
                seconds = compare(request, models, folder).metadata["seconds"]["measured"]
            if run:  # the first one pays for memory and kernels that later ones find ready
                runs.append((job(request, models), seconds))
    known = coefficients(models.preset.name, models.device, models.dtype)
    dtype = models.dtype if models.device == "cuda" else known.dtype
    fitted = fit(runs, known)
    return replace(fitted, device=models.device, probe=probe(models.device, dtype), dtype=dtype)
