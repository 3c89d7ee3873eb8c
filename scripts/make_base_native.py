"""Makes docs/images/base_native.jpg: the base model run at 1080p itself, beside UltraGen.

    python scripts/make_base_native.py [--out FILE]

The last frames of two clips of five frames, of the page's first prompt and seed 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from ultragen.pictures import contact_sheet
from ultragen.presets import PROMPTS
from ultragen.runs.compare import compare
from ultragen.runs.loading import load_models
from ultragen.runs.request import Request
from ultragen.video import read_video

ROOT = Path(__file__).parent.parent
WIDTH = 720
FRAMES = 5


def last_frame(path: Path) -> Image.Image:
    """The last frame of a clip, reduced."""
    picture = Image.fromarray(read_video(path)[-1])
    return picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)))


def main(arguments: list[str]) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="The base model at 1080p, beside UltraGen.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "base_native.jpg")
    options = parser.parse_args(arguments)
    request = Request(PROMPTS[0], "1080p", num_frames=FRAMES, seed=0, base_native="on")
    with TemporaryDirectory() as folder:
        result = compare(request, load_models("embedded"), folder)
        assert result.base_native is not None  # asked for
        pictures = [last_frame(path) for path in (result.base_native, result.native)]
    labels = ["base model, run at 1920 × 1080", "UltraGen, at 1920 × 1080"]
    contact_sheet(pictures, 2, labels).save(options.out, quality=85)
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
