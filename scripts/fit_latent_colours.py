"""Fits the map from latents to colours that previews are made with.

python scripts/fit_latent_colours.py [--scenes 60] [--out ultragen/embedded]

The scenes are none of those that are held out for tests; of 20 that come after them it prints how
far the map is from the frames.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ultragen.dataset.encoders import Autoencoder, encode_clip, load_autoencoder  # noqa: E402
from ultragen.presets import EMBEDDED_MODEL  # noqa: E402
from ultragen.sampling.latent_colours import FILE  # noqa: E402
from ultragen.sampling.words import find_edition  # noqa: E402
from ultragen.world.renderer import render  # noqa: E402
from ultragen.world.scene import HELD_OUT_SEEDS, sample_scene  # noqa: E402

SIZE = (192, 320)  # rows and columns in pixels of the scenes
FRAMES = 5
SHOWN = (3,)  # frames in the middle of the latent frames after the first, which hold four each
CELLS = 4  # rows, and columns, of colours for one latent position
CHECKED = 20  # scenes that the map is measured on


def examples(vae: Autoencoder, seed: int, edition: int) -> tuple[Tensor, Tensor]:
    """Latent positions of a scene with a constant 1, n (c + 1), and their colours, n (y x 3)."""
    clip = render([sample_scene(seed, edition)], *SIZE, FRAMES)[0]
    latents = encode_clip(vae, [clip * 2 - 1])[:, 1:].float()
    positions = rearrange(latents, "c t h w -> (t h w) c")
    sides = tuple(CELLS * length for length in latents.shape[2:])
    frames = interpolate(clip[:, SHOWN].transpose(0, 1), sides, mode="area")
    colours = rearrange(frames, "t c (h y) (w x) -> (t h w) (y x c)", y=CELLS, x=CELLS)
    return torch.cat([positions, torch.ones(len(positions), 1)], dim=1), colours


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--out", type=Path, default=EMBEDDED_MODEL)
    asked = parser.parse_args(arguments)
    vae = load_autoencoder("embedded", EMBEDDED_MODEL, torch.device("cpu"))
    edition = find_edition(AutoTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer"))
    first = HELD_OUT_SEEDS.stop
    fitted = [examples(vae, seed, edition) for seed in range(first, first + asked.scenes)]
    inputs, colours = (torch.cat(parts) for parts in zip(*fitted, strict=True))
    matrix = torch.linalg.lstsq(inputs.double(), colours.double()).solution.float()
    np.save(asked.out / FILE, matrix.numpy())
    errors = []
    for seed in range(first + asked.scenes, first + asked.scenes + CHECKED):
        inputs, colours = examples(vae, seed, edition)
        errors.append(float((inputs @ matrix - colours).square().mean()))
    decibels = -10 * np.log10(np.mean(errors))
    print(f"Written to {asked.out / FILE}: {CHECKED} other scenes within {decibels:.1f} dB")


if __name__ == "__main__":
    main()
