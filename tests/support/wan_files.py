"""Tiny files of the 1.3B model's layout, made by the script that users run for large ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import make_random_wan


@dataclass(frozen=True)
class WanFiles:
    base: Path
    ultragen: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes the commands and the page run them."""
        return {
            "ULTRAGEN_MODEL": "wan",
            "ULTRAGEN_WAN": str(self.base),
            "ULTRAGEN_WEIGHTS": str(self.ultragen),
        }


def make_wan(folder: Path) -> WanFiles:
    assert make_random_wan.main([str(folder), "--size", "tiny"]) == 0
    return WanFiles(folder / "wan", folder / "ultragen_1080p.ckpt")
