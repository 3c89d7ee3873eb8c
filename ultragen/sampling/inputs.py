"""What goes into the sampling loop: settings, prompts and noise, checked before anything runs."""

from __future__ import annotations

import re
from numbers import Integral, Real

import torch
from diffusers import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from ..model.transformer import UltraGenTransformer3DModel
from ..model.windows import check_windows
from ..presets import check_guidance_scale
from .guidance import Guidance

# Settings. All of these raise a `ValueError` with the value that is wrong and those that are right.


def check_prompts(prompt: object) -> None:
    """Checks that every prompt says something."""
    prompts = prompt if isinstance(prompt, list | tuple) else [prompt]
    if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise ValueError("The prompt is empty: describe a scene in a few words.")


Texts = dict[str, list[str] | Tensor]


def pair_texts(
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    width: int | None = None,
) -> Texts:
    """Prompts and as many negative ones, each typed or encoded already (b n d, with d = `width`),
    by the name that they have encoded; a single negative prompt is for all."""
    for name, typed, embeds in (
        ("prompt", prompt, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
    ):
        if embeds is None:
            continue
        if typed:
            raise ValueError(f"Give either {name} or {name}_embeds, not both.")
        if embeds.ndim != 3 or width not in (None, embeds.shape[-1]):
            raise ValueError(
                f"{name}_embeds must be b × n × {width or 'd'}, as `encode_prompt` gives them, "
                f"not {' × '.join(map(str, embeds.shape))}."
            )
    positives: list[str] | Tensor
    if prompt_embeds is None:
        check_prompts(prompt)
        positives = [prompt] if isinstance(prompt, str) else list(prompt or ())
    else:
        positives = prompt_embeds
    negatives: list[str] | Tensor
    if negative_prompt_embeds is not None:
        negatives = negative_prompt_embeds
    elif isinstance(negative_prompt, list | tuple):
        negatives = list(negative_prompt)
    else:
        negatives = [negative_prompt or ""] * len(positives)
    if len(negatives) != len(positives):
        raise ValueError(
            f"{len(positives)} prompts need as many negative prompts, not {len(negatives)}."
        )
    return {"prompt_embeds": positives, "negative_prompt_embeds": negatives}


def check_whole(**settings: object) -> None:
    """Checks that settings, given by their names, are whole numbers."""
    for name, value in settings.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number, not {value!r}.")


def check_size(height: int, width: int, token: int) -> None:
    """Checks that tokens of `token` × `token` pixels cover a frame."""
    for name, value in (("height", height), ("width", width)):
        if value % token or value < token:
            below = max(token, value // token * token)
            raise ValueError(
                f"{name} must be a multiple of {token}, not {value}: "
                f"choose {below} or {below + token}."
            )


def check_sampling(num_inference_steps: int, guidance: Guidance) -> None:
    """Checks the settings of the sampling loop."""
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}.")
    check_guidance_scale(guidance.scale)
    levels = guidance.interval
    pair = isinstance(levels, tuple | list) and all(isinstance(level, Real) for level in levels)
    if not (pair and len(levels) == 2 and 0 <= levels[0] < levels[1] <= 1):
        raise ValueError(
            f"guidance_interval must be two rising noise levels from 0 to 1, not {levels!r}: "
            "(0, 1) guides every step."
        )


def check_model_windows(
    transformer: UltraGenTransformer3DModel | WanTransformer3DModel,
    windows: int | str | None,
    rows: int,
    columns: int,
) -> None:
    """Checks that a transformer can cut a frame of rows × columns tokens into these windows."""
    if isinstance(transformer, UltraGenTransformer3DModel):
        check_windows(transformer.resolve_windows(windows, rows, columns), rows, columns)
    elif windows is not None:
        raise ValueError("The dense model has no windows: leave out `windows`.")


# Text


def find_unknown_words(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[str]:
    """Words of a prompt that a tokenizer maps to its unknown token, in order, once each."""
    words = dict.fromkeys(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", prompt.lower()))
    return [
        word
        for word in words
        if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids
    ]


def embed_prompts(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: UMT5EncoderModel,
    prompts: list[str],
    length: int,
    device: torch.device,
) -> Tensor:
    """Prompts → text embeddings b n d, cut or padded to `length`; padding is zero, as Wan was
    trained."""
    tokens = tokenizer(
        [prompt_clean(p) for p in prompts],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
    embeddings = text_encoder(ids, mask).last_hidden_state
    return embeddings * mask[..., None]


# Noise


def starting_noise(
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Gaussian noise b c t h w in float32, the same on every device for a CPU generator; given
    latents take its place.

    Raises:
        ValueError: if the latents have another shape, or the generators another number.
    """
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(f"{shape[0]} prompts need as many generators, not {len(generator)}.")
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    if tuple(latents.shape) != shape:
        needed, given = (" × ".join(map(str, sizes)) for sizes in (shape, latents.shape))
        raise ValueError(f"latents must be {needed} for this size, not {given}.")
    return latents.to(device, torch.float32)
