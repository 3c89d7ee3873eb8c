"""The attribute classifier: what a clip of the embedded model's world shows."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .strict_loading import StrictLoading

GRID = (3, 4)  # rows and columns of the coarse picture that keeps where things are


class SpaceTimeBlock(nn.Module):
    """A convolution in space and one in time beside a shortcut.

    Only the branch is normalised: the shortcut keeps the brightness that tells noon from dusk.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.space = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, hidden: Tensor) -> Tensor:
        branch = self.space(functional.silu(self.norm(hidden)))
        return hidden + self.time(functional.silu(branch))


class AttributeClassifier(StrictLoading, ConfigMixin):
    """Tells the attributes of a clip, each by a head of its own.

    Its features, which the heads read, are the mean and the maximum of every stage's channels and
    a coarse picture of the last stage: fine texture and composition are both in them.

    Args:
        attributes: Name of each attribute → its values, in the order of its head's outputs.
        channels: Channels of the stages, each at half the rows and columns of the one before.
        blocks: Number of `SpaceTimeBlock`s of each stage.
        grid_features: Features of the coarse picture.
        height: Rows that frames are reduced to.
        width: Columns that frames are reduced to.
        num_frames: Frames of a clip that are looked at, evenly spread.
    """

    way_out = "Run `train classifier`, or name the folder of a trained one."

    @register_to_config
    def __init__(
        self,
        attributes: dict[str, list[str]],
        channels: tuple[int, ...] = (24, 48, 96, 128),
        blocks: tuple[int, ...] = (1, 1, 1, 2),
        grid_features: int = 128,
        height: int = 144,
        width: int = 256,
        num_frames: int = 5,
    ) -> None:
        super().__init__()
        # Colours and the two coordinates.
        widths = (5, *channels)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(before, after, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
                *(SpaceTimeBlock(after) for _ in range(number)),
            )
            for before, after, number in zip(widths[:-1], channels, blocks, strict=True)
        )
        self.grid = nn.Linear(channels[-1] * GRID[0] * GRID[1], grid_features)
        features = 2 * sum(channels) + grid_features
        self.heads = nn.ModuleDict(
            {name: nn.Linear(features, len(values)) for name, values in attributes.items()}
        )

    def embed(self, video: Tensor) -> Tensor:
        """Clips `b 3 t h w` in [0, 1] → features `b d`."""
        hidden = torch.cat([2 * video - 1, coordinates(video)], dim=1)  # b 5 t h w
        pooled = []
        for stage in self.stages:
            hidden = stage(hidden)  # b d t h/2ⁿ w/2ⁿ
            pooled += [hidden.mean((2, 3, 4)), hidden.amax((2, 3, 4))]
        coarse = functional.adaptive_avg_pool2d(hidden.mean(2), GRID)
        return torch.cat([*pooled, self.grid(rearrange(coarse, "b d h w -> b (d h w)"))], dim=1)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Clips `b 3 t h w` in [0, 1], reduced already → logits `b values` of each attribute."""
        features = self.embed(video)
        return {name: head(features) for name, head in self.heads.items()}

    def reduce(self, frames: Tensor) -> Tensor:
        """Frames `t 3 h w` in [0, 1] of any size → `t 3 h w` of the classifier's size."""
        size = (self.config.height, self.config.width)
        return functional.interpolate(frames, size, mode="bilinear", antialias=True)

    def choose(self, video: Tensor) -> Tensor:
        """The frames that are looked at, evenly spread from the first to the last: `b 3 t h w`."""
        return video[:, :, spread(video.shape[2], self.config.num_frames)]

    @torch.inference_mode()
    def classify(self, frames: Tensor) -> dict[str, str]:
        """The attributes of a clip, from its reduced frames `t 3 h w` in [0, 1]."""
        video = self.choose(rearrange(frames, "t c h w -> 1 c t h w")).to(self.device, self.dtype)
        values = self.config.attributes
        return {name: values[name][logits.argmax().item()] for name, logits in self(video).items()}


def coordinates(video: Tensor) -> Tensor:
    """Row and column of every pixel, each from -1 to 1: `b 2 t h w`."""
    b, _, t, h, w = video.shape
    y = torch.linspace(-1, 1, h, device=video.device, dtype=video.dtype)
    x = torch.linspace(-1, 1, w, device=video.device, dtype=video.dtype)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))[None, :, None].expand(b, 2, t, h, w)


def spread(length: int, number: int) -> list[int]:
    """Indices of `number` frames of `length`, or of all where there are fewer, evenly spread."""
    return torch.linspace(0, length - 1, min(length, number)).round().long().tolist()


def load_classifier(folder: Path, device: torch.device | str = "cpu") -> AttributeClassifier:
    """Loads a trained classifier in float32.

    Raises:
        ValueError: if the folder is none of a classifier, or its weights don't fit.
        OSError: if a file of it is missing or damaged.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"There is no attribute classifier in {folder}: run `train classifier`, or name the "
            "folder of one."
        )
    network = AttributeClassifier.from_pretrained(
        folder, torch_dtype=torch.float32, local_files_only=True
    )
    return network.to(device)
