"""Makes the finished examples that the page shows: docs/examples/NAME/{native,...}.mp4.

    python scripts/make_examples.py [--out DIR] [--resolution 544p] [--seed 0]

One folder for each prompt that the page suggests, small enough for the repository. Existing
examples of the same name are replaced. The first one, which the page opens with, is larger: the
more there is to see at 1:1. `docs/examples/opening.json` says where; look whether it still holds.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ultragen.presets import PROMPTS, SUGGESTED
from ultragen.runs.compare import compare
from ultragen.runs.loading import load_models
from ultragen.runs.request import Request

ROOT = Path(__file__).parent.parent
OPENING = "1080p"


def name_of(number: int, prompt: str) -> str:
    """A folder's name: `1-a-calm-lake-under`."""
    words = re.findall(r"[a-z]+", prompt.lower())
    return f"{number}-{'-'.join(words[:4])}"


def make(out: Path, resolution: str, seed: int) -> None:
    """Makes an example of every suggested prompt."""
    models = load_models()
    for number, prompt in enumerate(PROMPTS[:SUGGESTED], 1):
        target = out / name_of(number, prompt)
        with TemporaryDirectory() as folder:
            size = OPENING if number == 1 else resolution
            result = compare(Request(prompt, size, seed=seed), models, folder)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(result.native.parent, target)
        megabytes = sum(path.stat().st_size for path in target.iterdir()) / 1e6
        print(
            f"{target}: {megabytes:.1f} MB, {result.metadata['seconds']['total']:.0f} s", flush=True
        )


def main(arguments: list[str]) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Make the finished examples of the page.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "examples")
    parser.add_argument("--resolution", default="544p")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    make(options.out, options.resolution, options.seed)


if __name__ == "__main__":
    main(sys.argv[1:])
