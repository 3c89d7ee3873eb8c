"""The parts of the 1.3B pipeline: Wan's text encoder, autoencoder and dense transformer from a
folder in diffusers' layout, the authors' UltraGen transformer from their released file. The text
encoder may be a file of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, UMT5EncoderModel

from ..files import first_line
from ..model.strict_loading import load_strictly
from ..presets import ULTRAGEN_SOURCE, WAN, WAN_SHIFT, WAN_SOURCE
from .folders import check_base, check_kind
from .headers import check_pipeline
from .hub import base_source, check_space, find_local, locate, preview, text_encoder_file
from .keys import WORD_EMBEDDINGS
from .layouts import asked_layout, weights_source
from .released import cast_weights, load_dense, load_ultragen
from .umt5 import load_umt5


def load_wan(
    base: str | Path | None,
    ultragen: str | Path | None,
    dtype: torch.dtype,
    local_files_only: bool,
    text_encoder: str | Path | None = None,
    layout: str | None = None,
) -> dict[str, Any]:
    """All arguments of the pipeline; its own as in `UltraGenPipeline.from_wan`."""
    layout, text_file = asked_layout(layout), text_encoder_file(text_encoder)
    folder, released = locate_wan(base, ultragen, local_files_only, text_file, layout)
    check_base(folder, _replaced(text_file))
    transformer = load_ultragen(released, layout=layout)
    dense = load_dense(folder / "transformer")
    parts = {
        "tokenizer": load_tokenizer(folder / "tokenizer"),
        "text_encoder": (
            load_umt5(text_file, dtype)
            if text_file
            else load_text_encoder(folder / "text_encoder", dtype)
        ),
        "vae": load_vae(folder / "vae", dtype),
        # Wan's own scheduler is another one, with other steps.
        "scheduler": FlowMatchEulerDiscreteScheduler(
            shift=transformer.config.distilled_shift or WAN_SHIFT
        ),
        "transformer": cast_weights(transformer, dtype),
        "base_transformer": cast_weights(dense, dtype),
    }
    check_fit(parts)
    distilled = transformer.config.distilled_steps
    return {
        **parts,
        "max_sequence_length": WAN.max_sequence_length,
        "distilled_steps": distilled,
    }


def locate_wan(
    base: str | Path | None = None,
    ultragen: str | Path | None = None,
    local_files_only: bool = False,
    text_encoder: Path | None = None,
    layout: str | None = None,
) -> tuple[Path, Path]:
    """The base model's folder and UltraGen's weights, downloaded where they are not there yet; of
    the base model not the text encoder, where a file is given for it.

    What is wrong with either shows before the other is downloaded.

    Raises:
        OSError: as in `locate`.
        ValueError: if either is another model.
    """
    wanted = (base, base_source(text_encoder)), (ultragen, weights_source(ultragen))
    if not local_files_only and not all(find_local(*each) for each in wanted):
        wan, released_ones = (preview(*each) for each in wanted)
        if wan.path is not None:
            check_kind(wan.path)
        if released_ones.path is not None:
            load_ultragen(released_ones.path, "meta", asked_layout(layout))
        check_space(wan.missing + released_ones.missing)
    folder, released = (locate(*each, local_files_only) for each in wanted)
    return folder, released


def locate_encoders(base: str | Path | None = None, local_files_only: bool = False) -> Path:
    """The base model's folder, of which autoencoder, tokenizer and text encoder are needed alone:
    only these are downloaded where they are not there yet.

    Raises:
        OSError: as in `locate`, or if a file is missing, truncated or corrupt.
        ValueError: if it is another model.
    """
    unneeded = ("transformer", "scheduler")
    patterns = [name for name in WAN_SOURCE.files if not name.startswith(unneeded)]
    source = replace(WAN_SOURCE, files=tuple(patterns))
    if not local_files_only and not find_local(base, source):
        found = preview(base, source)
        if found.path is not None:
            check_kind(found.path)
        check_space(found.missing)
    folder = locate(base, source, local_files_only)
    check_base(folder, unneeded)
    return folder


def check_wan(base: Path | None, ultragen: Path | None, text_encoder: Path | None = None) -> None:
    """Checks what is on this machine of the 1.3B model, without reading its weights: names, shapes
    and settings, and whether they fit each other.

    Args:
        base: The base model's folder, if it is there.
        ultragen: UltraGen's weights, if they are there.
        text_encoder: A file that stands for the base model's text encoder.

    Raises:
        OSError: if a file is missing, incomplete or damaged.
        ValueError: if a file is of another model, or the two don't fit each other.
    """
    parts: dict[str, Any] = {}
    if ultragen is not None:
        parts["transformer"] = load_ultragen(ultragen, "meta", asked_layout())
    if text_encoder is not None:
        parts["text_encoder"] = load_umt5(text_encoder, torch.bfloat16, device="meta")
    if base is not None:
        check_base(base, _replaced(text_encoder))
        parts |= check_pipeline(base, (*_replaced(text_encoder), "transformer"))
        parts["base_transformer"] = load_dense(base / "transformer", device="meta")
    if {"text_encoder", "vae", "transformer", "base_transformer"} <= parts.keys():
        check_fit(parts)


def check_fit(parts: dict[str, Any]) -> None:
    """Checks that the text encoder and the autoencoder are those of both transformers, and the
    tokenizer, where it is there, the text encoder's.

    Raises:
        ValueError: with the sizes that differ.
    """
    found = {
        "text features": parts["text_encoder"].config.d_model,
        "latent channels": parts["vae"].config.z_dim,
    }
    known, words = parts["text_encoder"].config.vocab_size, len(parts.get("tokenizer", ()))
    if words > known:
        raise ValueError(f"The tokenizer has {words} pieces, and the text encoder knows {known}.")
    for name in ("transformer", "base_transformer"):
        config = parts[name].config
        needed = {"text features": config.text_dim, "latent channels": config.in_channels}
        if needed != found:
            raise ValueError(
                f"The {name} was trained with {needed}, and the base model has {found}: take the "
                f"UltraGen weights and the base model of the same size, {ULTRAGEN_SOURCE.variable} "
                f"and {WAN_SOURCE.variable}."
            )


def _replaced(text_encoder: Path | None) -> tuple[str, ...]:
    """Parts of the base model that need not be there."""
    return ("text_encoder",) if text_encoder else ()


def load_tokenizer(folder: Path) -> Any:
    """The text encoder's tokenizer.

    Raises:
        OSError: if it is damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the readers of a damaged file raise whatever they like
        raise OSError(f"The tokenizer in {folder} can't be read: {first_line(error)}") from error


def load_text_encoder(folder: Path, dtype: torch.dtype) -> UMT5EncoderModel:
    """umT5's encoder from a folder in transformers' layout; errors as in `load_strictly`."""
    # The published file holds the word embeddings once, under `shared`; some releases of
    # transformers missed the encoder's own, which are the same, and left them at zero.
    model = load_strictly(
        UMT5EncoderModel, folder, tied=WORD_EMBEDDINGS[1:], use_safetensors=True, dtype=dtype
    )
    model.set_input_embeddings(model.shared)
    return model


def load_vae(folder: Path, dtype: torch.dtype) -> AutoencoderKLWan:
    """Wan's autoencoder from a folder in diffusers' layout; errors as in `load_strictly`."""
    return load_strictly(AutoencoderKLWan, folder, use_safetensors=True, torch_dtype=dtype)
