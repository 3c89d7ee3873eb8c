"""Whether the weights of a pipeline's folder are those of its parts, told by headers alone.

Loaders fill what a file lacks with noise, or leave it empty until something stumbles over it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import safe_open
from transformers import UMT5EncoderModel

from .autoencoder import CompactAutoencoder
from .clauses import ClauseTextEncoder
from .json_files import WAY_OUT, corrupt, read_object
from .model_files import check_model_files, read_index
from .strict_loading import listed, misshapen, wrong_keys
from .transformer import UltraGenTransformer3DModel

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
_TIED = {"shared.weight", "encoder.embed_tokens.weight"}  # the same, of which files hold either

Shapes = dict[str, tuple[int, ...]]


def check_pipeline(folder: Path, without: Collection[str] = ()) -> None:
    """Checks that a pipeline's folder has all of its parts, whole, and each with just the weights
    that its configuration asks for. Variants, quantised parts and other formats are not looked at.

    Args:
        folder: In diffusers' layout.
        without: Parts that are not taken from there.

    Raises:
        OSError: naming the first file that is missing, truncated or corrupt.
        ValueError: listing the weights of a part that are missing, unexpected or misshapen.
    """
    check_model_files(folder, without)
    for name, kind in read_index(folder).items():
        if name not in without and isinstance(kind, list) and kind[1] in _KINDS:
            _check_part(_KINDS[kind[1]], folder / name)


def _check_part(kind: Any, folder: Path) -> None:
    found: Shapes = {}
    for path in folder.iterdir():
        if _WEIGHTS.fullmatch(path.name):
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                found |= {key: tuple(file.get_slice(key).get_shape()) for key in names}
    config = read_object(folder / "config.json")
    if not found or config.get("quantization_config"):
        return
    expected = _expected(kind, folder)
    if _TIED & found.keys():
        others = _TIED - found.keys()
        expected = {key: shape for key, shape in expected.items() if key not in others}
    other = [
        misshapen(key, found[key], shape)
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    wrong = "; ".join(filter(None, (wrong_keys(expected, found), listed(misshapen=other))))
    if wrong:
        raise ValueError(f"{folder} does not fit its config.json: {wrong}.{WAY_OUT}")


def _expected(kind: Any, folder: Path) -> Shapes:
    """Names and shapes of a part's weights, by its configuration."""
    try:
        with init_empty_weights():
            if hasattr(kind, "config_class"):  # of transformers
                model = kind(kind.config_class.from_pretrained(folder))
            else:
                model = kind.from_config(kind.load_config(folder))
    except Exception as error:  # a constructor raises whatever its arithmetic leads to
        raise corrupt(folder / "config.json", error) from error
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}
