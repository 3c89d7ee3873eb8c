"""Tiny files of the 1.3B model's layout, made by the script that users run for large ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import make_random_wan
from safetensors.torch import load_file, save_file

from ultragen.presets import T3_SOURCE
from ultragen.weights.keys import model_keys


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


def make_t3(files: WanFiles, folder: Path, name: str = T3_SOURCE.files[0]) -> Path:
    """A file as T3-Video's: the base model's weights under the original names."""
    [path] = (files.base / "transformer").glob("*.safetensors")
    weights = load_file(path)
    layers = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    original = {theirs: weights[ours] for theirs, ours in model_keys(layers, ()).items()}
    assert len(original) == len(weights)
    save_file(original, folder / name)
    return folder / name
