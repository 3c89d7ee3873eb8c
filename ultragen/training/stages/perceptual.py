"""A perceptual loss: how far two pictures are apart as a network sees them that was trained on
photographs."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ...model.efficientnet import SEEN_AFTER, Variant, features, load_efficientnet

VARIANT: Variant = 2  # not the one that HD-FVD looks through
EVERY = 4  # frames: neighbours hold much the same


class PerceptualLoss:
    """The distance of LPIPS (arXiv 1801.03924) without learned weights: features of unit length at
    each place, their squared differences summed over sizes. The networks that LPIPS was made with
    are in no package.

    Raises:
        ImportError: The network's packages are missing.
    """

    def __init__(self) -> None:
        self.network, _ = load_efficientnet(VARIANT, "train")

    def to(self, device: torch.device) -> None:
        self.network.to(device, memory_format=torch.channels_last)

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """A scalar for clips b 3 t h w in [-1, 1]."""
        with torch.no_grad():
            theirs = self.seen(target)
        pairs = zip(self.seen(prediction), theirs, strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).sum()

    def seen(self, video: Tensor) -> list[Tensor]:
        pictures = rearrange(video[:, :, ::EVERY], "b c t h w -> (b t) c h w") / 2 + 0.5
        found = features(self.network, pictures, SEEN_AFTER[VARIANT])
        return [F.normalize(x.float(), dim=1) for x in found]
