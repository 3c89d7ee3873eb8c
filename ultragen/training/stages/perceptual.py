"""A perceptual loss: how far two pictures are apart as a network sees them that was trained on
photographs."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ...model.autoencoder import FRAMES_PER_LATENT
from ...weights.efficientnet import SEEN_AFTER, Variant, features, load_efficientnet

VARIANT: Variant = 2  # not the one that HD-FVD looks through


class PerceptualLoss:
    """The distance of LPIPS (arXiv 1801.03924) without learned weights: features of unit length at
    each place, their squared differences summed over sizes. The networks that LPIPS was made with
    are in no package.

    Of the frames of a latent one is seen, which is drawn anew at each call: an autoencoder would
    sharpen those alone that are always looked at, and HD-FVD looks at every fourth one.

    Raises:
        OSError: The network's packages are missing.
    """

    def __init__(self) -> None:
        try:
            self.network, _ = load_efficientnet(VARIANT, "perceptual", "leave out --perceptual")
        except ImportError as error:
            raise OSError(str(error)) from error

    def to(self, device: torch.device) -> None:
        """Moves the network."""
        self.network.to(device, memory_format=torch.channels_last)

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """A scalar for clips b 3 (4n+1) h w in [-1, 1]."""
        frames = drawn_frames(prediction.shape[2])
        with torch.no_grad():
            theirs = self.seen(target, frames)
        pairs = zip(self.seen(prediction, frames), theirs, strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).sum()

    def seen(self, video: Tensor, frames: list[int]) -> list[Tensor]:
        """Features of some frames, n c h w each, of unit length along c."""
        pictures = rearrange(video[:, :, frames], "b c t h w -> (b t) c h w") / 2 + 0.5
        found = features(self.network, pictures, SEEN_AFTER[VARIANT])
        return [F.normalize(x.float(), dim=1) for x in found]


def drawn_frames(number: int) -> list[int]:
    """The first frame of a clip, and one by lot of each four that share a latent frame."""
    last = range(FRAMES_PER_LATENT, number, FRAMES_PER_LATENT)
    earlier = torch.randint(FRAMES_PER_LATENT, (len(last),)).tolist()
    return [0, *(end - back for end, back in zip(last, earlier, strict=True))]
