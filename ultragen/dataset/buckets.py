"""Buckets: the sizes that a model is trained on, and how clips are made to fit them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..presets import RESOLUTIONS, WAN, check_num_frames
from .frames import VideoInfo, frames_at_rate

KEPT = 0.5
"""Part of a frame that must remain when it is cropped to a bucket's shape."""
ABOUT = 0.05
"""Part of a frame by which one bucket may crop more than another and be as near in shape."""
ROUNDED_UP = max(size.height / size.rows for size in RESOLUTIONS.values())
"""How much larger than its source a clip may be without being told to: so much are the sizes of the
models larger than the usual ones, such as 1088 rows than 1080, because tokens must fill them."""
SLOWER = 0.98
"""Part of a model's frame rate that a source must have: 14.985 counts as 15."""

Clips = Literal["head", "all"]
"""Which clips are cut from a source: the first, or as many as follow one another."""


@dataclass(frozen=True)
class Bucket:
    """Size and length of clips that are trained on together.

    Attributes:
        height: Rows, a multiple of Wan's token size.
        width: Columns, likewise.
        num_frames: Frames, 4n + 1.

    Raises:
        ValueError: For other numbers, with the nearest that can be used.
    """

    height: int
    width: int
    num_frames: int

    def __post_init__(self) -> None:
        self.check_grid(WAN.pixels_per_token)
        check_num_frames(self.num_frames)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_frames}"

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Reads what `str` writes, such as `1088x1920x81`.

        Raises:
            ValueError: It is no bucket.
        """
        match = re.fullmatch(r"(\d+)[x×](\d+)[x×](\d+)", text.strip().lower())
        if match is None:
            raise ValueError(
                f"a bucket is HEIGHTxWIDTHxFRAMES, for example 1088x1920x81, not {text!r:.60}"
            )
        return cls(*map(int, match.groups()))

    def check_grid(self, pixels_per_token: int) -> None:
        """Checks that a model's tokens fill the frames.

        Args:
            pixels_per_token: Rows, and columns, of pixels that a token covers.

        Raises:
            ValueError: They don't, with the nearest sizes that they fill.
        """
        if self.height % pixels_per_token or self.width % pixels_per_token:
            nearest = [
                max(1, round(size / pixels_per_token)) * pixels_per_token
                for size in (self.height, self.width)
            ]
            raise ValueError(
                f"bucket {self}: height and width must be multiples of {pixels_per_token};"
                f" the nearest is {nearest[0]}x{nearest[1]}x{self.num_frames}"
            )
        if min(self.height, self.width) < pixels_per_token:
            raise ValueError(f"bucket {self} holds no pixels")


def choose_bucket(
    info: VideoInfo, buckets: Sequence[Bucket], frame_rate: float, enlarge: bool = False
) -> Bucket | str:
    """Chooses the bucket that a clip fits best, or says in a few words why none does.

    Of the buckets that a clip is long and large enough for, the one nearest in shape is taken, and
    of several that are about as near the largest, then the longest. Stills fit buckets of one
    frame, and videos only if there are no others. A source slower than `frame_rate` would stand
    still every few frames, which models would learn.

    Args:
        info: The clip.
        buckets: At least one.
        frame_rate: Frames a second that the clip is read with.
        enlarge: Also takes clips that are smaller than the bucket by more than `ROUNDED_UP`.
    """
    if not info.is_still and (info.frame_rate or frame_rate) < SLOWER * frame_rate:
        return f"slower than {frame_rate:g} frames a second"
    some = [b for b in buckets if (b.num_frames == 1) == info.is_still]
    if not some and info.is_still:
        return "a still, and no bucket of one frame"
    long = [b for b in some or buckets if b.num_frames <= _length(info, frame_rate)]
    if not long:
        return "too short for any bucket"
    large = [b for b in long if enlarge or _scale(info, b) <= ROUNDED_UP]
    if not large:
        return "too small for any bucket"
    whole = [b for b in large if _kept(info, b) >= KEPT]
    if not whole:
        return "too far from any bucket's shape"
    return max(
        whole, key=lambda b: (round(_kept(info, b) / ABOUT), b.height * b.width, b.num_frames)
    )


def _length(info: VideoInfo, frame_rate: float) -> float:
    """Frames that a clip has at a rate; endless, if it does not tell."""
    if info.is_still:
        return 1
    return math.inf if info.seconds is None else frames_at_rate(info.seconds, frame_rate)


def _scale(info: VideoInfo, bucket: Bucket) -> float:
    """By how much frames grow until they cover the bucket."""
    return max(bucket.height / info.height, bucket.width / info.width)


def _kept(info: VideoInfo, bucket: Bucket) -> float:
    """The part of a frame that remains."""
    ratio = bucket.height / info.height * info.width / bucket.width
    return min(ratio, 1 / ratio)


def fit(frames: np.ndarray | Tensor, bucket: Bucket) -> Tensor:
    """Scales frames until they just cover a bucket, and keeps their middle.

    Scaling is bicubic with antialiasing, on the codes as they are stored and not on linear light:
    so the common tools scale, and with them most of what models have seen; and in linear light the
    filter's overshoot would draw dark rings in the shadows.

    Args:
        frames: t h w 3, uint8, on any device.
        bucket: Its size counts, not its length.

    Returns:
        t 3 H W in [0, 1], float32, on the same device.
    """
    pictures = torch.as_tensor(frames).movedim(-1, 1)
    height, width = pictures.shape[-2:]
    scale = max(bucket.height / height, bucket.width / width)
    size = [max(bucket.height, round(height * scale)), max(bucket.width, round(width * scale))]
    top, left = (size[0] - bucket.height) // 2, (size[1] - bucket.width) // 2
    fitted = torch.empty(len(pictures), 3, bucket.height, bucket.width, device=pictures.device)
    for picture, target in zip(pictures, fitted, strict=True):
        if size != [height, width]:
            # On a CPU bytes are ten times as fast as floats; GPUs have a kernel for floats alone.
            picture = picture[None] if picture.is_cpu else picture[None].float()
            picture = functional.interpolate(picture, size, mode="bicubic", antialias=True)[0]
        target.copy_(picture[:, top : top + bucket.height, left : left + bucket.width])
    return fitted.div_(255).clamp_(0, 1)
