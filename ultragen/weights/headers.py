"""Whether the weights of a pipeline's folder are those of its parts, told by headers alone.

Loaders fill what a file lacks with noise, or leave it empty until something stumbles over it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import SafetensorError, safe_open
from transformers import UMT5EncoderModel

from ..model.autoencoder import CompactAutoencoder
from ..model.strict_loading import differences
from ..model.text_encoder import ClauseTextEncoder
from ..model.transformer import UltraGenTransformer3DModel
from .fingerprint import check_shipped
from .folders import check_model_files, read_index
from .json_files import WAY_OUT, corrupt, read_object
from .keys import WORD_EMBEDDINGS

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        AutoencoderKLWan,
        ClauseTextEncoder,
        CompactAutoencoder,
        UltraGenTransformer3DModel,
        UMT5EncoderModel,
        WanTransformer3DModel,
    )
}
_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d{5}-of-\d{5})?\.safetensors")

Shapes = dict[str, tuple[int, ...]]
Value = TypeVar("Value")


def check_pipeline(folder: Path, without: Collection[str] = ()) -> dict[str, Any]:
    """Checks that a pipeline's folder has all of its parts, whole, and each with just the weights
    that its configuration asks for. Variants, quantised parts and other formats are not looked at.

    Args:
        folder: In diffusers' layout.
        without: Parts that are not taken from there.

    Returns:
        The parts that were looked at, by name, without weights.

    Raises:
        OSError: naming the first file that is missing, truncated or corrupt, or of the embedded
            model one that is not as it was shipped.
        ValueError: listing the weights of a part that are missing, unexpected or misshapen.
    """
    check_model_files(folder, without)
    check_shipped(folder)
    return {
        name: part
        for name, kind in read_index(folder).items()
        if name not in without and isinstance(kind, list) and kind[1] in _KINDS
        if (part := _check_part(_KINDS[kind[1]], folder / name)) is not None
    }


def _check_part(kind: Any, folder: Path) -> Any:
    found: Shapes = {}
    for path in folder.iterdir():
        if _WEIGHTS.fullmatch(path.name):
            found |= _shapes(path)
    config = read_object(folder / "config.json")
    if not found or config.get("quantization_config"):
        return None
    found = without_ignored(kind, found)
    model = empty_model(kind, folder)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    tied = set(WORD_EMBEDDINGS)
    if tied & found.keys():
        others = tied - found.keys()
        expected = {key: shape for key, shape in expected.items() if key not in others}
    if wrong := differences(expected, found):
        raise ValueError(f"{folder} does not fit its config.json: {wrong}.{WAY_OUT}")
    return model


def _shapes(path: Path) -> Shapes:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {key: tuple(file.get_slice(key).get_shape()) for key in names}
    except SafetensorError as error:
        raise OSError(f"The weights file {path} is corrupt: {error}.{WAY_OUT}") from error


def without_ignored(kind: Any, weights: dict[str, Value]) -> dict[str, Value]:
    """What is left by name of a file's weights without those that the class says it ignores."""
    ignored = getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()
    return {
        key: value
        for key, value in weights.items()
        if not any(re.search(pattern, key) for pattern in ignored)
    }


def empty_model(kind: Any, folder: Path) -> Any:
    """The model that a folder's configuration asks for, on the meta device.

    Args:
        kind: A class of diffusers or transformers.
        folder: Holds `config.json`.

    Raises:
        OSError: if no model can be made of the configuration.
    """
    try:
        with init_empty_weights():
            if hasattr(kind, "config_class"):  # transformers
                return kind(kind.config_class.from_pretrained(folder))
            return kind.from_config(kind.load_config(folder))
    except Exception as error:  # a constructor raises whatever its arithmetic leads to
        raise corrupt(folder / "config.json", error) from error
