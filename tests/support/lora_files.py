"""LoRAs in the layouts of the tools that write them, and the same weights merged by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ultragen.weights.keys import model_keys

ATTENTION = tuple(f"{part}.{x}" for part in ("self_attn", "cross_attn") for x in "qkvo")
LAYERS = (*ATTENTION, "ffn.0", "ffn.2")
OUTSIDE = ("time_projection.1", "text_embedding.0", "text_embedding.2", "head.head")
RANK = 3  # so that α / rank is no power of two

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Layer by its original name → A, rank × in, and B, out × rank."""


def ours(layer: str) -> str:
    """A layer's name in diffusers' Wan, by its original one."""
    return model_keys(99, ())[f"{layer}.weight"].removesuffix(".weight")


def draw(*shape: int, number: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def draw_factors(model: nn.Module, layers: tuple[str, ...], rank: int = RANK) -> Factors:
    found = {}
    for number, layer in enumerate(layers):
        out, features = model.get_submodule(ours(layer)).weight.flatten(1).shape
        found[layer] = (
            draw(rank, features, number=2 * number) / features**0.5,
            draw(out, rank, number=2 * number + 1) / rank**0.5,
        )
    return found


def in_blocks(*layers: str, blocks: tuple[int, ...] = (0, 1)) -> tuple[str, ...]:
    return tuple(f"blocks.{i}.{layer}" for i in blocks for layer in layers)


EVERYTHING = (*in_blocks(*LAYERS), *OUTSIDE)


def merged(model: nn.Module, changes: Mapping[str, Tensor]) -> Any:
    """A copy of a model with something added to its parameters."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for name, change in changes.items():
            parameter = found.get_parameter(name)
            parameter.add_(change.reshape(parameter.shape).to(parameter))
    return found


def products(factors: Factors, scale: float) -> dict[str, Tensor]:
    return {f"{ours(layer)}.weight": b @ a * scale for layer, (a, b) in factors.items()}


# Layouts


def plain(prefix: str, down: str, up: str, name: Callable[[str], str] = str) -> Callable:
    def write(factors: Factors, alpha: float | None) -> dict[str, Tensor]:
        found = {}
        for layer, (a, b) in factors.items():
            found[f"{prefix}{name(layer)}.{down}.weight"] = a
            found[f"{prefix}{name(layer)}.{up}.weight"] = b
            if alpha is not None:
                found[f"{prefix}{name(layer)}.alpha"] = torch.tensor(alpha)
        return found

    return write


def underscored(layer: str) -> str:
    return layer.replace(".", "_")


LAYOUTS = {
    "diffusers": plain("transformer.", "lora_A", "lora_B", ours),
    "diffusers, bare": plain("", "lora_A", "lora_B", ours),
    "diffusers, old": plain("transformer.", "lora.down", "lora.up", ours),
    "ComfyUI": plain("diffusion_model.", "lora_A", "lora_B"),
    "ComfyUI, up and down": plain("diffusion_model.", "lora_down", "lora_up"),
    "DiffSynth": plain("", "lora_A.default", "lora_B.default"),
    "DiffSynth, without default": plain("", "lora_A", "lora_B"),
    "DiffSynth, whole pipeline": plain("pipe.dit.", "lora_A.default", "lora_B.default"),
    "peft": plain("base_model.model.", "lora_A", "lora_B"),
    "peft of diffusers": plain("base_model.model.", "lora_A", "lora_B", ours),
    "peft, named": plain("base_model.model.", "lora_A.style", "lora_B.style"),
    "bare, up and down": plain("", "lora_down", "lora_up"),
    "musubi": plain("lora_unet_", "lora_down", "lora_up", underscored),
    "VideoX-Fun": plain("lora_unet__", "lora_down", "lora_up", underscored),
    "LyCORIS": plain("lycoris_", "lora_down", "lora_up", underscored),
}


def save(weights: Mapping[str, Tensor], path: Path, **metadata: Any) -> Path:
    text = {key: json.dumps(value) for key, value in metadata.items()}
    save_file({key: value.contiguous() for key, value in weights.items()}, path, text or None)
    return path
