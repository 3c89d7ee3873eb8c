"""Draws docs/images/world.jpg: some scenes of the procedural world with their captions.

python scripts/make_world.py [--out docs/images]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ultragen.pictures import contact_sheet, to_frames  # noqa: E402
from ultragen.world.captions import caption  # noqa: E402
from ultragen.world.renderer import render  # noqa: E402
from ultragen.world.scene import sample_scene  # noqa: E402

SEEDS = (4, 2, 7, 9, 10, 15, 16, 22, 23, 8, 14, 1)
SIZE = (400, 225)  # of a picture, which is drawn at twice the size
FRAMES, MIDDLE = 17, 8


def picture(seed: int) -> Image.Image:
    """The middle frame of a scene."""
    size = (2 * SIZE[1], 2 * SIZE[0])
    [frame] = render([sample_scene(seed)], *size, FRAMES, chosen=(MIDDLE,))
    return Image.fromarray(to_frames(frame)[0]).resize(SIZE, Image.Resampling.LANCZOS)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    captions = [caption(sample_scene(seed), seed=seed) for seed in SEEDS]
    contact_sheet([picture(seed) for seed in SEEDS], 3, captions).save(
        out / "world.jpg", quality=75
    )


if __name__ == "__main__":
    main()
