"""What clips are made of and compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch


class Case(Protocol):
    """A scene: its number, the version of its world, its caption and what that names, and its real
    clip."""

    @property
    def seed(self) -> int: ...

    @property
    def world(self) -> int | str: ...

    @property
    def caption(self) -> str: ...

    @property
    def named(self) -> Mapping[str, str]: ...

    def frames(
        self, height: int, width: int, num_frames: int, device: torch.device | str
    ) -> np.ndarray:
        """The real clip: uint8, t h w 3."""
        ...
