"""One seed, one scene: how alike clips of one prompt and seed are at other sizes and lengths, with
noise from one spectrum beside noise that each size draws anew.

    python benchmarks/one_scene.py --prompts 16 --json one_scene.json --pictures one_scene
    python benchmarks/one_scene.py --prompts 8 --against base 33-frames 1080p 4k --keep scenes.jsonl

The native clip, 544p with 17 frames, is compared with each of the others: the correlation of their
frames as grey pictures of 18 × 32 pixels, the mean over the first, middle and last frame. What the
native clips show of their captions, how steady they are and how far they are from their own
blurred copies, is measured as `evaluate` does. Captions and seeds are the same in both rows. What a
prompt gave is appended to the file of `--keep`; the same command goes on from there. `--shard 2/4`
makes every fourth prompt, from the second on, and no table: several processes share a file, and the
command without it draws the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image

from ultragen.cli import console
from ultragen.evaluation.instruments import Instruments, load_instruments, measure
from ultragen.evaluation.scores import ClipScores, average, score_row
from ultragen.evaluation.shard import Shard
from ultragen.model.classifier import spread
from ultragen.pictures import label_frame, picture_grid
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED, EMBEDDED_MODEL, RESOLUTIONS
from ultragen.runs.request import NOISES
from ultragen.world.heldout import HeldOutClip, held_out_clips

SMALL = (32, 18)  # columns and rows of the pictures that are compared
COMPARED = 3  # frames of a clip
PICTURE = (480, 272)


@dataclass(frozen=True)
class Variant:
    """A size and a length.

    Attributes:
        size: Rows and columns in pixels.
        num_frames: Frames, 4n + 1.
        base: Whether the base model makes it.
        composed: Whether a clip of the native size composes it, as the page has it at 4K.
    """

    size: tuple[int, int]
    num_frames: int
    base: bool = False
    composed: bool = False


def native(resolution: str, num_frames: int = EMBEDDED.num_frames) -> Variant:
    """A size as UltraGen generates it."""
    size = RESOLUTIONS[resolution]
    return Variant((size.height, size.width), num_frames)


NATIVE = native("544p")
VARIANTS = {
    "base": Variant((EMBEDDED.base_height, EMBEDDED.base_width), EMBEDDED.num_frames, base=True),
    "9-frames": native("544p", 9),
    "33-frames": native("544p", 33),
    "1080p": native("1080p"),
    "4k": replace(native("4k"), composed=True),
}


class Clips:
    """Makes the clips of a caption.

    Args:
        steps: Of denoising; None takes the model's.
    """

    def __init__(self, steps: int | None) -> None:
        self.native = UltraGenPipeline.from_pretrained(EMBEDDED_MODEL)
        self.native.to("cuda" if torch.cuda.is_available() else "cpu")
        self.native.set_progress_bar_config(disable=True)
        self.base = self.native.base_pipeline()
        self.base.set_progress_bar_config(disable=True)
        self.steps = steps

    def make(self, variant: Variant, caption: str, seed: int, noise: str) -> np.ndarray:
        """A clip's frames: uint8, t h w 3."""
        pipe = self.base if variant.base else self.native

        def made(size: tuple[int, int], output_type: str, **more: Any) -> Any:
            return pipe(
                caption,
                height=size[0],
                width=size[1],
                num_frames=variant.num_frames,
                num_inference_steps=self.steps,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type=output_type,
                noise=noise,
                **more,
            ).frames

        small = made(NATIVE.size, "latent") if variant.composed else None
        return made(variant.size, "uint8", composition=small)[0]


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two clips as small grey pictures, uint8, t h w 3 of any sizes and lengths."""
    pairs = zip(chosen(one), chosen(other), strict=True)
    return fmean(
        float(np.corrcoef(grey(frame).ravel(), grey(partner).ravel())[0, 1])
        for frame, partner in pairs
    )


def chosen(frames: np.ndarray) -> np.ndarray:
    """The frames that are compared, at the same parts of clips of any length."""
    return frames[spread(len(frames), COMPARED)]


def grey(frame: np.ndarray) -> np.ndarray:
    """A frame, uint8, h w 3, as a small grey picture: means over its parts."""
    picture = Image.fromarray(frame).convert("L").resize(SMALL, Image.Resampling.BOX)
    return np.asarray(picture, np.float64)


def draw(shown: Mapping[str, Mapping[str, np.ndarray]]) -> Image.Image:
    """A caption's middle frames: a row for each noise, the native clip first."""
    rows = []
    for noise, clips in shown.items():
        pictures = []
        for name, frames in clips.items():
            picture = Image.fromarray(frames[len(frames) // 2]).resize(PICTURE)
            pictures.append(Image.fromarray(label_frame(np.asarray(picture), f"{name}, {noise}")))
        rows.append(pictures)
    return picture_grid(rows)


def compare(options: argparse.Namespace) -> dict[str, Any] | None:
    """Both rows, with what they were made of; None for a part of the prompts."""
    makes = Clips(options.steps)
    instruments = replace(load_instruments(EMBEDDED_MODEL, device=makes.native.device), tubes=())
    found = kept(options)
    for number, case in enumerate(held_out_clips(options.prompts, edition=makes.native.edition)):
        if number in found or number not in options.shard:
            continue
        shown = {noise: clips_of(makes, case, number, noise, options.against) for noise in NOISES}
        found[number] = {noise: told(clips, case, instruments) for noise, clips in shown.items()}
        if options.keep:
            line = {**made_with(options), "number": number, "rows": found[number]}
            with options.keep.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            draw(shown).save(options.pictures / f"{number:03}.png")
        print(f"{number + 1} of {options.prompts}: {case.caption}", file=sys.stderr, flush=True)
    if options.shard.count > 1:
        return None
    each_found = [found[number] for number in range(options.prompts)]
    alike = {
        noise: {
            name: [each[noise]["alike"][name] for each in each_found] for name in options.against
        }
        for noise in NOISES
    }
    scores = {
        noise: [ClipScores(**each[noise]["scores"]) for each in each_found] for noise in NOISES
    }
    return {
        "command": "python benchmarks/one_scene.py " + " ".join(options.given),
        "rows": {noise: summary(noise, alike[noise], scores[noise]) for noise in NOISES},
        "correlations": alike,
    }


def made_with(options: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for prompts to stand in one table."""
    return {"against": options.against, "steps": options.steps}


def kept(options: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """What prompts gave by their numbers, each noise's, when the command ran before.

    Raises:
        ValueError: They were made with other settings.
    """
    if not (options.keep and options.keep.exists()):
        return {}
    lines = [json.loads(line) for line in options.keep.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        before = {name: line[name] for name in made_with(options)}
        if before != made_with(options):
            raise ValueError(
                f"{options.keep} was made with {before}, not with {made_with(options)}: choose "
                "another file for --keep."
            )
    # Older files have the prompts in their order.
    return {line.get("number", place): line["rows"] for place, line in enumerate(lines)}


def told(
    clips: Mapping[str, np.ndarray], case: HeldOutClip, instruments: Instruments
) -> dict[str, Any]:
    """What a prompt's clips of one noise gave, as plain values."""
    native, *others = clips.items()
    scores = asdict(measure(native[1], case, instruments))
    del scores["features"]  # of HD-FVD, which is not measured
    return {"alike": {name: likeness(native[1], clip) for name, clip in others}, "scores": scores}


def clips_of(
    makes: Clips, case: HeldOutClip, seed: int, noise: str, against: list[str]
) -> dict[str, np.ndarray]:
    """The native clip and those that it is compared with."""
    variants = {"native": NATIVE, **{name: VARIANTS[name] for name in against}}
    return {
        name: makes.make(variant, case.caption, seed, noise) for name, variant in variants.items()
    }


def summary(
    noise: str, alike: Mapping[str, list[float]], scores: list[ClipScores]
) -> dict[str, dict[str, float]]:
    """A row's numbers, each with its interval."""
    row = score_row(noise, noise, scores, {})
    found = {name: average(values) for name, values in alike.items()}
    found |= {"following": row.following, "temporal": row.temporal, "hd_mse": row.hd_mse}
    return {name: vars(value) for name, value in found.items() if value is not None}


def markdown(found: Mapping[str, Any]) -> str:
    """The table: a row for each noise, intervals in brackets."""
    names = list(found["rows"][NOISES[0]])
    lines = [f"| noise | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for noise, row in found["rows"].items():
        cells = ["{value:.4g} [{low:.4g}, {high:.4g}]".format(**row[name]) for name in names]
        lines.append(f"| {noise} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--against", nargs="+", choices=VARIANTS, default=["base", "9-frames"])
    parser.add_argument("--steps", type=int, help="Of denoising; the model's own by default.")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N",
        help="Every N-th prompt from the I-th on, and no table; needs --keep.",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, help="File of what each prompt gave, to go on from.")
    parser.add_argument("--pictures", type=Path, help="Folder of a picture for each prompt.")
    options = parser.parse_args(arguments)
    options.given = arguments
    options.shard = Shard.parse(options.shard)
    if options.shard.count > 1 and not options.keep:
        raise ValueError("A part of the prompts is of use where it is kept: add --keep FILE.")
    if options.shard.count > 1 and options.json:
        raise ValueError("A part of the prompts has no table: leave --json to the run without it.")
    found = compare(options)
    if found is None:
        return 0
    print(markdown(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(console.run(lambda: main(sys.argv[1:])))
