"""The LoRAs that a run uses: put onto both models, and told in its metadata."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..weights.hub import origin
from .loading import Models
from .request import Request


def use_loras(models: Models, request: Request) -> None:
    """Gives both models the LoRAs of a validated request, and takes off those of the run before.

    Raises:
        OSError: if a file has gone or is damaged.
        ValueError: if it does not fit; the models have no LoRA then.
    """
    wanted = dict(request.loras or {})
    if wanted == models.used_loras:
        return
    places = {lora.name: lora.place for lora in models.preset.loras}
    try:
        _take_off(models)
        models.lora_hashes = {name: _sha256(places[name]) for name in wanted}
        for pipe in (models.native, models.base):
            for i, name in enumerate(wanted):
                pipe.load_lora_weights(places[name], adapter_name=f"lora_{i}")
            if wanted:
                names = [f"lora_{i}" for i in range(len(wanted))]
                pipe.set_adapters(names, list(wanted.values()))
        models.used_loras = wanted
    except BaseException:
        models.used_loras = wanted  # as far as it went
        _take_off(models)
        raise
    finally:
        models.place_again()


def _take_off(models: Models) -> None:
    # Not only switched off: a layer that has an adapter computes in another order, and the same
    # seed would no longer give the same clip.
    if models.used_loras:
        for pipe in (models.native, models.base):
            pipe.unload_lora_weights()
    models.used_loras = {}


def describe_loras(models: Models, request: Request) -> list[dict[str, Any]]:
    """What tells the LoRAs of a run's request, which `use_loras` has loaded, from others."""
    places = {lora.name: lora.place for lora in models.preset.loras}
    return [
        {
            "name": name,
            "file": origin(Path(places[name])),
            "sha256": models.lora_hashes[name],
            "strength": strength,
        }
        for name, strength in (request.loras or {}).items()
    ]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
