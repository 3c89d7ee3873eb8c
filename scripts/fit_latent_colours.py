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
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ultragen.dataset.encoders import load_autoencoder  # noqa: E402
from ultragen.presets import EMBEDDED_MODEL  # noqa: E402
from ultragen.runs.fitted_colours import FRAMES, examples, least_squares  # noqa: E402
from ultragen.sampling.latent_colours import FILE  # noqa: E402
from ultragen.sampling.words import find_edition  # noqa: E402
from ultragen.world.renderer import render  # noqa: E402
from ultragen.world.scene import HELD_OUT_SEEDS, sample_scene  # noqa: E402

SIZE = (192, 320)  # rows and columns in pixels of the scenes
CHECKED = 20  # scenes that the map is measured on


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--out", type=Path, default=EMBEDDED_MODEL)
    asked = parser.parse_args(arguments)
    vae = load_autoencoder("embedded", EMBEDDED_MODEL, torch.device("cpu"))
    edition = find_edition(AutoTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer"))

    def scenes(seeds: range) -> list[tuple[torch.Tensor, torch.Tensor]]:
        clips = (render([sample_scene(seed, edition)], *SIZE, FRAMES)[0] for seed in seeds)
        return [examples(vae, clip) for clip in clips]

    first, last = HELD_OUT_SEEDS.stop, HELD_OUT_SEEDS.stop + asked.scenes
    matrix = least_squares(scenes(range(first, last)))
    np.save(asked.out / FILE, matrix.numpy())
    checked = scenes(range(last, last + CHECKED))
    errors = [float((inputs @ matrix - colours).square().mean()) for inputs, colours in checked]
    decibels = -10 * np.log10(np.mean(errors))
    print(f"Written to {asked.out / FILE}: {CHECKED} other scenes within {decibels:.1f} dB")


if __name__ == "__main__":
    main()
