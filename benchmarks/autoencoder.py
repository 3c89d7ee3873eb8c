"""How well the embedded autoencoder keeps held-out scenes, and real photographs: PSNR of what it
gives back.

    python benchmarks/autoencoder.py --count 8 --height 1088 --width 1920
    python benchmarks/autoencoder.py --count 0 --photos /usr/share/backgrounds

Photographs are cut to the frame's shape from their middle and reduced to its size; a clip is the
same picture in every frame.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ultragen.model.autoencoder import CompactAutoencoder
from ultragen.presets import EMBEDDED_MODEL
from ultragen.training.stages.losses import psnr
from ultragen.world.renderer import render
from ultragen.world.scene import sample_scene

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def scenes(arguments: argparse.Namespace, device: str) -> Iterator[tuple[str, Tensor]]:
    """Held-out scenes, 1 3 t h w in [0, 1]."""
    for seed in range(arguments.count):
        scene = sample_scene(seed)
        size = (arguments.height, arguments.width, arguments.frames)
        yield f"seed {seed}, {scene.attributes.weather}", render([scene], *size, device=device)


def photographs(arguments: argparse.Namespace, device: str) -> Iterator[tuple[str, Tensor]]:
    """Pictures of a folder that are at least as large as the frame, 1 3 1 h w in [0, 1]."""
    size = (arguments.width, arguments.height)
    paths = sorted(arguments.photos.rglob("*")) if arguments.photos else []
    for path in paths:
        if path.suffix.lower() not in SUFFIXES or path.is_symlink():
            continue
        with Image.open(path) as picture:
            if picture.width < size[0] or picture.height < size[1]:
                continue
            picture = ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(picture)).to(device).float() / 255
        yield path.name, pixels.permute(2, 0, 1)[None, :, None]


def main() -> None:
    parser = argparse.ArgumentParser(description="How well the autoencoder keeps pictures.")
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL)
    for name, value in (("count", 8), ("height", 544), ("width", 960), ("frames", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--photos", type=Path, help="A folder of photographs.")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = CompactAutoencoder.from_pretrained(arguments.model / "vae").float().to(device)
    for kind, source in (("scenes", scenes), ("photographs", photographs)):
        scores = []
        with torch.no_grad():
            for name, picture in source(arguments, device):
                video = picture * 2 - 1
                scores.append(psnr((vae(video).clamp(-1, 1) - video) / 2).item())
                print(f"{name}: {scores[-1]:.2f} dB", flush=True)
        if scores:
            print(
                f"mean of {len(scores)} {kind} at {arguments.height}×{arguments.width}: "
                f"{sum(scores) / len(scores):.2f} dB, lowest {min(scores):.2f} dB, {device}"
            )


if __name__ == "__main__":
    main()
