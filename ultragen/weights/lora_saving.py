"""Writing a LoRA adapter under diffusers' names and under those that ComfyUI reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import WanLoraLoaderMixin
from safetensors.torch import save_file
from torch import Tensor

from ..files import whole_file
from .keys import model_keys

DIFFUSERS, COMFYUI = "pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"


def save_lora(
    folder: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any], layers: int
) -> None:
    """Writes an adapter twice.

    Args:
        folder: For the file that `pipe.load_lora_weights(folder)` takes, and for ComfyUI's.
        weights: Tensors by peft's names, such as `blocks.0.attn1.to_q.lora_A.weight`.
        settings: peft's, with `lora_alpha` and `r`.
        layers: Blocks of the transformer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: x.contiguous() for key, x in weights.items()}
    with whole_file(folder / DIFFUSERS) as unfinished:
        WanLoraLoaderMixin.save_lora_weights(
            unfinished.parent,
            transformer_lora_layers=plain,
            transformer_lora_adapter_metadata=dict(settings),
            weight_name=unfinished.name,
        )
    with whole_file(folder / COMFYUI) as unfinished:
        save_file(original_names(plain, settings["lora_alpha"], layers), unfinished)


def original_names(weights: Mapping[str, Tensor], alpha: float, layers: int) -> dict[str, Tensor]:
    """An adapter's tensors under the original model's names, each layer with its alpha."""
    theirs = {
        ours.removesuffix(".weight"): name.removesuffix(".weight")
        for name, ours in model_keys(layers, ()).items()
        if ours.endswith(".weight")
    }
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        layer, side = key.rsplit(".lora_", 1)
        name = f"diffusion_model.{theirs[layer]}"
        found[f"{name}.lora_{side}"] = tensor
        found[f"{name}.alpha"] = torch.tensor(float(alpha))
    return found
