"""Stills, which are clips of one frame."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .unreadable import UnreadableVideo

STILL_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"))


def is_still(path: Path) -> bool:
    """Whether a file is a still by its name."""
    return path.suffix.lower() in STILL_SUFFIXES


def still_size(path: Path) -> tuple[int, int]:
    """Rows and columns of a still that stands upright; its pixels are not decoded.

    Raises:
        UnreadableVideo: It is not a picture.
    """
    with _opened(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations that lie on a side
        return image.size if turned else image.size[::-1]


def read_still(path: Path) -> np.ndarray:
    """Reads a still: upright by its EXIF orientation, its colour profile turned into sRGB, without
    alpha; of an animation the first picture. uint8, h w 3.

    Raises:
        UnreadableVideo: It is not a picture, or damaged.
    """
    with _opened(path) as image:
        image.load()
        profile = image.info.get("icc_profile")
        picture = _eight_bits(ImageOps.exif_transpose(image))
    return np.array(_to_srgb(picture, profile).convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UnreadableVideo("not a picture") from error
    except Exception as error:  # the readers of damaged pictures raise whatever they like
        raise UnreadableVideo("damaged picture") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits, which Pillow's own conversion cuts off at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours by an embedded profile; one that is damaged, or of another kind, is passed over."""
    if not profile:
        return image
    if image.mode in ("RGBA", "P"):
        image = image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError):
        return image
