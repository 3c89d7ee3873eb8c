"""How well the embedded autoencoder keeps held-out scenes: PSNR of what it gives back.

python benchmarks/autoencoder.py --count 8 --height 544 --width 960
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ultragen.autoencoder import CompactAutoencoder
from ultragen.presets import EMBEDDED_MODEL
from ultragen.training.losses import psnr
from ultragen.training.scenes import render, sample_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL)
    for name, value in (("count", 8), ("height", 544), ("width", 960), ("frames", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = CompactAutoencoder.from_pretrained(arguments.model / "vae").float().to(device)
    scores = []
    with torch.no_grad():
        for seed in range(arguments.count):
            scene = sample_scene(seed)
            size = (arguments.height, arguments.width, arguments.frames)
            video = render([scene], *size, device=device) * 2 - 1
            score = psnr((vae(video).clamp(-1, 1) - video) / 2).item()
            scores.append(score)
            print(f"seed {seed}: {score:.2f} dB, {scene.attributes.weather}", flush=True)
    print(f"mean of {len(scores)} clips: {sum(scores) / len(scores):.2f} dB, {device}")


if __name__ == "__main__":
    main()
