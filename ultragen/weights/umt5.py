"""umT5's encoder from one file: ComfyUI's in FP8, a GGUF file, or Wan's own.

What is quantised stays so, in half of bfloat16's memory or less: a layer's matrix is made when the
layer runs. That is what lets the 1.3B model run on cards of 12 and 16 GB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from ..model.quantised import HALVES, Quantised, QuantisedEmbedding, QuantisedLinear, StateDict
from ..model.strict_loading import differences
from .keys import TOKENIZER, WORD_EMBEDDINGS, read_umt5_config, umt5_keys
from .read import read_stored


def load_umt5(path: Path, dtype: torch.dtype, device: str = "cpu") -> UMT5EncoderModel:
    """Loads umT5's encoder; its widths and depth are told by names and shapes.

    Args:
        path: The file, with the names of transformers, of llama.cpp or of Wan's authors.
        dtype: Type that is computed in, and of all weights that are not quantised.
        device: Where the file is read to, as in `read_stored`: on `meta` it is only checked.

    Raises:
        OSError: if the file is missing, incomplete or damaged.
        ValueError: if it is another model; missing, unexpected and misshapen keys are listed.
    """
    stored = read_stored(path, device, aside=(TOKENIZER,))
    names = umt5_keys(stored, str(path))
    weights = {ours: stored[theirs] for theirs, ours in names.items()}
    main, alias = WORD_EMBEDDINGS
    if main not in weights and alias in weights:
        weights[main] = weights[alias]
    weights.pop(alias, None)
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    try:
        config = UMT5Config(**read_umt5_config(shapes))
    except ValueError as error:
        raise ValueError(f"{path} is no text encoder of Wan, umT5-XXL's: {error}") from error
    with init_empty_weights():
        model = UMT5EncoderModel(config)
    expected = {key: tuple(x.shape) for key, x in model.state_dict().items() if key != alias}
    if wrong := differences(expected, shapes):
        raise ValueError(f"{path} does not fit umT5's encoder: {wrong}.")
    if device == "meta":
        return model.eval()
    return fill_umt5(model, weights, dtype)


def fill_umt5(model: UMT5EncoderModel, weights: StateDict, dtype: torch.dtype) -> UMT5EncoderModel:
    """Gives an empty encoder its weights, by transformers' names: quantised matrices as they are,
    all else in the type that is computed in."""
    for key, value in weights.items():
        owner, _, name = key.rpartition(".")
        layer = model.get_submodule(owner)
        if kept := _kept(layer, value, dtype):
            model.set_submodule(owner, kept)
        else:
            setattr(layer, name, nn.Parameter(_plain(value, dtype)))
    model.set_input_embeddings(model.shared)
    return model.eval().requires_grad_(False)


def _kept(layer: nn.Module, value: Tensor | Quantised, dtype: torch.dtype) -> nn.Module | None:
    """The layer with its weight as it is stored; None where that saves nothing, or where rows are
    not stored one by one."""
    kinds: dict[type[nn.Module], Any] = {
        nn.Linear: QuantisedLinear,
        nn.Embedding: QuantisedEmbedding,
    }
    kind = kinds.get(type(layer))
    if kind is None or not isinstance(value, Quantised):
        return None
    if value.kind in HALVES or not value.in_rows:
        return None
    # A copy: the file's own bytes are read again at every use.
    return kind(value.copy(), dtype)


def _plain(value: Tensor | Quantised, dtype: torch.dtype) -> Tensor:
    return value.dequantise(dtype) if isinstance(value, Quantised) else value.to(dtype)
