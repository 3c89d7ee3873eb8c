"""Frames that are quick to make and tell where they come from."""

from __future__ import annotations

import numpy as np


def waves(num_frames: int = 5, height: int = 64, width: int = 96) -> np.ndarray:
    """Smooth waves that move, so that frames can't be mistaken for each other: t h w 3, uint8."""
    t, y, x = np.mgrid[:num_frames, :height, :width].astype(np.float32)
    phase = np.stack([x / 17 + t, y / 13 - t, (x + y) / 19], axis=-1)
    return (127 + 110 * np.sin(phase)).astype(np.uint8)
