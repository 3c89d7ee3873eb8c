"""Tiny models with random weights, for the tests of the core."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.pipeline import UltraGenPipeline
from ultragen.training.build import TINY_SIZE, build_pipeline

WORDS = ("a", "calm", "lake", "at", "sunset", "snowy", "mountains", "the", "sea")
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
ULTRAGEN: dict[str, Any] = {"lora_rank": 4, "gate_dim": 8, "window_size": (3.0, 3.0)}


def randomise(module: nn.Module, seed: int = 0, strength: float = 1.0) -> None:
    """Moves every parameter away from the neutral value that it starts with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(strength * noise / fan_in**0.5)


def tiny_wan(seed: int = 0, **config: Any) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    model = WanTransformer3DModel(**{**WAN, **config}).eval()
    randomise(model, seed)
    return model


def tiny_ultragen(seed: int = 0, **config: Any) -> UltraGenTransformer3DModel:
    torch.manual_seed(seed)
    model = UltraGenTransformer3DModel(**{**WAN, **ULTRAGEN, **config}).eval()
    randomise(model, seed)
    return model


def tiny_pipeline() -> UltraGenPipeline:
    """All parts of a pipeline, of which the transformers have two layers."""
    torch.manual_seed(0)
    pipe = build_pipeline(TINY_SIZE, WORDS)
    randomise(pipe.transformer, strength=0.3)
    randomise(pipe.vae, strength=0.3)
    mean = [0.1 * i for i in range(TINY_SIZE.z_dim)]
    std = [0.5 + 0.1 * i for i in range(TINY_SIZE.z_dim)]
    pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.text_encoder, pipe.vae, pipe.transformer, pipe.base_transformer):
        part.eval().requires_grad_(False)
    return pipe


def inputs(
    grid: tuple[int, int, int], batch: int = 1, channels: int = 4, text_dim: int = 8, seed: int = 0
) -> dict[str, Tensor]:
    """Arguments of a transformer with patches of 1 × 2 × 2, for a grid of tokens t h w."""
    generator = torch.Generator().manual_seed(seed)
    frames, height, width = grid
    return {
        "hidden_states": torch.randn(
            (batch, channels, frames, 2 * height, 2 * width), generator=generator
        ),
        # Small, because the sinusoid of a large time is exact to fewer digits in float32.
        "timestep": torch.linspace(1.25, 7.5, batch),
        "encoder_hidden_states": torch.randn((batch, 5, text_dim), generator=generator),
    }
