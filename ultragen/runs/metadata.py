"""What made a clip: enough to make it again on the same machine."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from .loading import Models
from .progress import RunState
from .request import Request
from .used_loras import describe_loras

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "moviepy")


def describe(
    request: Request, models: Models, run: RunState, windows: int | None
) -> dict[str, Any]:
    """What made the clips: enough to make them again on the same machine."""
    import torch

    size, preset = request.size, models.preset
    rows, columns = size.kept
    base_rows, base_columns = preset.base_size(request.aspect)
    first = request.first_size(preset)
    how = models.upscaler(request.upscaler).name
    return {
        "made_by": f"UltraGen {__version__}",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "request": request.to_dict(),
        "model": {
            "name": preset.name,
            "method": preset.method,
            "fingerprint": models.fingerprint,
            "weights": list(models.origins),
            "loras": describe_loras(models, request),
            "transformer": dict_of_numbers(models.native.transformer),
            "base_transformer": dict_of_numbers(models.base.transformer),
        },
        "sizes": {
            "generated": [size.height, size.width],
            "files": [rows, columns],
            "base": [base_rows, base_columns],
            "composition": [first.height, first.width] if first else None,
            "tokens": [(request.frames + 3) // 4, *request.token_grid(preset)],
        },
        "windows": {
            "asked": request.windows,
            **_windows(models.native.transformer, windows),
            "motion": models.native.config.window_motion,
        },
        "fps": request.frame_rate,
        "labels": {
            "native": f"{preset.method}, native {columns}×{rows}",
            "upscaled": f"Base {base_columns}×{base_rows} + {how}",
            "base_native": f"Base model run natively at {columns}×{rows}",
        },
        "seconds": {"estimated": run.estimated, "measured": run.seconds},
        "machine": {
            "device": torch.cuda.get_device_name() if models.device == "cuda" else "cpu",
            "placement": models.placement,
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "fp8": models.fp8,
            "guidance_device": models.guidance_device,
            "processes": models.processes,
            "dtype": models.dtype,
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _windows(transformer: Any, windows: int | None) -> dict[str, Any]:
    """K of UltraGen's layers, or the numbers of windows that T3-Video's have in turn."""
    if windows is None:
        return {"t3": [list(counts) for counts in transformer.config.t3_windows]}
    return {"even_layers": windows, "odd_layers": windows + 1}


def dict_of_numbers(module: Any) -> dict[str, int]:
    """Parameters of a network, counted."""
    return {"parameters": sum(p.numel() for p in module.parameters())}


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
