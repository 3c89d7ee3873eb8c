"""What a run is asked for, checked before anything runs, and the noise that it starts from.

All checks raise a `ValueError` with the value that is wrong and those that are right.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, get_args

import torch
from diffusers import WanTransformer3DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..model.transformer import UltraGenTransformer3DModel
from ..model.windows import check_windows
from ..presets import (
    Noise,
    check_guidance_interval,
    check_guidance_scale,
    check_lora_strength,
    shown,
)
from .guidance import Guidance
from .spectral_noise import draw_key, spectral_noise


def check_whole(**settings: Any) -> None:
    """Checks that settings, given by their names, are whole numbers."""
    for name, value in settings.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number, not {value!r}.")


def check_count(**settings: Any) -> None:
    """Checks that settings, given by their names, are whole numbers of at least 1."""
    check_whole(**settings)
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")


def check_size(height: int, width: int, token: int) -> None:
    """Checks that tokens of `token` × `token` pixels cover a frame."""
    for name, value in (("height", height), ("width", width)):
        if value % token or value < token:
            below = max(token, value // token * token)
            raise ValueError(
                f"{name} must be a multiple of {token}, not {value}: "
                f"choose {below} or {below + token}."
            )


def check_guidance(guidance: Guidance) -> None:
    """Checks the scale of the guidance and the interval in which it is computed."""
    check_guidance_scale(guidance.scale)
    check_guidance_interval(guidance.interval)


def check_attention_kwargs(given: object) -> None:
    """Checks what is for the transformer's attention, of which there is one: `scale`."""
    if given is not None and not isinstance(given, dict):
        raise ValueError(f"attention_kwargs must be a dictionary, not {shown(given)}.")
    for name in given or {}:
        if name != "scale":
            raise ValueError(
                f"attention_kwargs has {shown(name)}, which nothing uses: there is scale, the "
                "strength of LoRA adapters."
            )
    check_lora_strength("scale", (given or {}).get("scale", 1.0))


def check_model_windows(
    transformer: UltraGenTransformer3DModel | WanTransformer3DModel,
    windows: int | str | None,
    rows: int,
    columns: int,
) -> None:
    """Checks that a transformer can cut a frame of rows × columns tokens into these windows."""
    if isinstance(transformer, UltraGenTransformer3DModel):
        count = transformer.resolve_windows(windows, rows, columns)
        if count is not None:
            check_windows(count, rows, columns)
    elif windows is not None:
        raise ValueError("The dense model has no windows: leave out `windows`.")


# Noise


def check_noise(noise: str) -> None:
    """Checks how noise is drawn.

    Raises:
        ValueError: if there is no such way, with those that there are.
    """
    if noise not in get_args(Noise):
        raise ValueError(f"noise must be one of {get_args(Noise)}, not {noise!r}.")


def starting_noise(
    shape: tuple[int, int, int, int, int],
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
    noise: Noise,
) -> Tensor:
    """Gaussian noise b c t h w, the same on every device for a CPU generator; given latents take
    its place.

    Raises:
        ValueError: if the latents have another shape, or the generators another number.
    """
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(f"{shape[0]} clips need as many generators, not {len(generator)}.")
    if latents is None and noise == "spectral":
        sources = generator if isinstance(generator, list) else [generator] * shape[0]
        clips = [spectral_noise(draw_key(source), shape[1:]) for source in sources]
        return torch.stack(clips).to(device, dtype)
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
    if tuple(latents.shape) != shape:
        needed, given = (" × ".join(map(str, sizes)) for sizes in (shape, latents.shape))
        raise ValueError(f"latents must be {needed} for this size, not {given}.")
    return latents.to(device, dtype)
