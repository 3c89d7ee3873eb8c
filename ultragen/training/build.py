"""Sizes of the embedded model's parts, and how they are put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import log
from typing import Any, Literal

from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

from ..model.autoencoder import CompactAutoencoder
from ..model.classifier import AttributeClassifier
from ..model.coordinates import CHANNELS
from ..model.transformer import UltraGenTransformer3DModel
from ..model.upscaler import UpscalerNetwork
from ..pipeline import UltraGenPipeline
from ..sampling.flow import Prediction
from ..world.scene import allowed_values
from .vocabulary import build_text_encoder, build_tokenizer


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths of a small model.

    Attributes:
        z_dim: Latent channels.
        autoencoder: Other settings of `CompactAutoencoder`.
        classifier: Other settings of `AttributeClassifier`.
        heads: Attention heads of the transformer, 64 features each.
        layers: Transformer blocks.
        ffn_dim: Hidden width of the feed-forward networks.
        text_dim: Features of a text token.
        text_length: Most text tokens.
        lora_rank: Rank of the compressed branches' updates.
        gate_dim: Hidden width of the time gates.
        base_tokens: Token rows and columns of the base model's frame.
        window_size: Token rows and columns of a window that `auto` keeps.
        base_shift: Shift of the noise schedule at the base model's frame.
        prediction: What the transformers' outputs mean, see `sampling.flow.to_velocity`.
        data_std: Standard deviation of clean latents that the preconditioning takes, see there.
        solver_order: Order of the sampler, see `UltraGenPipeline`.
    """

    z_dim: int = 48
    autoencoder: tuple[tuple[str, tuple[int, int, int]], ...] = (("decoder_blocks", (4, 3, 4)),)
    classifier: tuple[tuple[str, Any], ...] = ()
    heads: int = 5
    layers: int = 10
    ffn_dim: int = 1152
    text_dim: int = 256
    text_length: int = 64
    lora_rank: int = 16
    gate_dim: int = 64
    base_tokens: tuple[int, int] = (9, 16)
    window_size: tuple[float, float] = (8.5, 15.0)
    base_shift: float = 12.0
    prediction: Prediction = "preconditioned"
    data_std: float = 0.5
    solver_order: Literal[1, 2] = 2

    def with_decoder_blocks(self, blocks: tuple[int, int, int]) -> ModelSize:
        """The same with other numbers of residual blocks in the autoencoder's decoder."""
        return replace(self, autoencoder=(*self.autoencoder, ("decoder_blocks", blocks)))


EMBEDDED_SIZE = ModelSize()
TINY_SIZE = ModelSize(
    z_dim=8,
    autoencoder=(
        ("encoder_channels", (8, 8, 16)),
        ("encoder_blocks", (1, 1, 1)),
        ("decoder_channels", (16, 8, 8)),
        ("decoder_blocks", (1, 1, 1)),
    ),
    classifier=(
        ("channels", (8, 16)),
        ("blocks", (1, 1)),
        ("grid_features", 8),
        ("height", 32),
        ("width", 48),
    ),
    heads=1,
    layers=2,
    ffn_dim=64,
    text_dim=64,
    lora_rank=4,
    gate_dim=16,
)


def build_autoencoder(size: ModelSize) -> CompactAutoencoder:
    return CompactAutoencoder(z_dim=size.z_dim, **dict(size.autoencoder))


def build_classifier(size: ModelSize, edition: int = 1) -> AttributeClassifier:
    """A classifier of every attribute of the procedural world, freshly initialised."""
    attributes = {name: list(values) for name, values in allowed_values(edition).items()}
    return AttributeClassifier(attributes, **dict(size.classifier))


def build_base_transformer(size: ModelSize) -> WanTransformer3DModel:
    """A dense Wan transformer, freshly initialised."""
    return WanTransformer3DModel(
        num_attention_heads=size.heads,
        attention_head_dim=64,
        in_channels=size.z_dim + CHANNELS,
        out_channels=size.z_dim,
        text_dim=size.text_dim,
        ffn_dim=size.ffn_dim,
        num_layers=size.layers,
        rope_max_seq_len=512,
    )


def convert(base: WanTransformer3DModel, size: ModelSize, **config) -> UltraGenTransformer3DModel:
    """The base model with UltraGen's attention, before training."""
    settings = {
        "lora_rank": size.lora_rank,
        "gate_dim": size.gate_dim,
        "window_size": size.window_size,
    }
    return UltraGenTransformer3DModel.from_wan(base, **{**settings, **config})


def build_upscaler() -> UpscalerNetwork:
    """The network that enlarges the base model's clips four times."""
    return UpscalerNetwork(channels=48, num_blocks=4, stride=2)


def build_scheduler(size: ModelSize) -> FlowMatchEulerDiscreteScheduler:
    """Flow matching whose shift is `base_shift` at the base size and grows with the square root
    of the tokens in a frame."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=log(size.base_shift),
        base_image_seq_len=size.base_tokens[0] * size.base_tokens[1],
    )


def build_pipeline(size: ModelSize, words: Iterable[str]) -> UltraGenPipeline:
    """A whole pipeline with random weights, latents taken as normalised."""
    tokenizer = build_tokenizer(words, size.text_length)
    base = build_base_transformer(size)
    vae = build_autoencoder(size)
    vae.register_to_config(latents_mean=[0.0] * size.z_dim, latents_std=[1.0] * size.z_dim)
    return UltraGenPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(len(tokenizer), size.text_dim),
        vae=vae,
        scheduler=build_scheduler(size),
        transformer=convert(base, size),
        base_transformer=base,
        max_sequence_length=size.text_length,
        prediction=size.prediction,
        data_std=size.data_std,
        solver_order=size.solver_order,
    )
