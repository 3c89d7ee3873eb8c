"""Which shape of the embedded autoencoder, and which loss, keeps most of the picture after the same
minutes: variants trained on the same scenes, one after the other, from nothing or grown from one.

    python benchmarks/autoencoder_shapes.py --minutes 2 --out shapes --variant shipped \\
        --variant "wide encoder_channels=96,192,384 encoder_blocks=2,3,4" \\
        --variant "more z_dim=96" --variant "plain stage.adversarial=0"

    python benchmarks/autoencoder_shapes.py --start ultragen/embedded --edition 2 --out shapes \\
        --variant "longer stage.anchor=0.01" \\
        --variant "more z_dim=64 decoder_blocks=4,4,4 stage.anchor=0.01 stage.adversarial=1.0"

A variant is a name and settings: those of `CompactAutoencoder` by their names, and with `stage.`
before them those of `AutoencoderStage`. With `--start FOLDER` variants are grown from a folder's
autoencoder, of which `z_dim` and the numbers of blocks can be larger. `--trained NAME=FOLDER` adds
a row of a folder's autoencoder as it is. For each, on held-out scenes of two sizes: the part of the
real clips' detail that copies keep above and below the middle (see `limits.py`), the PSNR, and the
Fréchet distance between copies and these very clips, all frames, as ImageNet's network sees them,
which `pip install -e '.[measure]'` brings. It depends on the number of scenes: rows of one table
can be compared. All of it for the clips, and for their last frames standing still; besides, the
operations of decoding a pixel, and copies at 1:1. `--minutes 0.05 --crop 64 --batch 2` shows on a
CPU that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from limits import Measurement, Model, detail
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ultragen.cli import console
from ultragen.evaluation.metrics import (
    PatchFeatures,
    TubeNetwork,
    fit_gaussian,
    frechet_distance,
)
from ultragen.evaluation.networks import imagenet_tubes
from ultragen.model.autoencoder import CompactAutoencoder
from ultragen.pictures import picture_grid, to_uint8
from ultragen.training.growth import BLOCKS, grown_autoencoder
from ultragen.training.loop import Trainer
from ultragen.training.stage import TrainingConfig
from ultragen.training.stage_order import edition_of
from ultragen.training.stages.autoencoder_stage import AutoencoderStage
from ultragen.training.stages.losses import psnr
from ultragen.world.heldout import HeldOutClip, held_out_clips
from ultragen.world.scene import EDITIONS

SIZES = ((544, 960), (1088, 1920))
FRAMES = 5
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """An autoencoder and how it is trained.

    Attributes:
        name: Of its row.
        model: Settings of `CompactAutoencoder`.
        stage: Settings of `AutoencoderStage`.
    """

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    stage: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Variant:
        """NAME [KEY=NUMBER[,NUMBER...] ...]"""
        name, *settings = text.split()
        found = cls(name)
        for setting in settings:
            key, _, value = setting.partition("=")
            try:
                numbers = [float(x) if "." in x else int(x) for x in value.split(",")]
            except ValueError as error:
                message = f"{setting!r} is not KEY=NUMBER[,NUMBER...]."
                raise argparse.ArgumentTypeError(message) from error
            where = found.stage if key.startswith("stage.") else found.model
            where[key.removeprefix("stage.")] = tuple(numbers) if len(numbers) > 1 else numbers[0]
        return found


def train(variant: Variant, options: argparse.Namespace) -> CompactAutoencoder:
    """A variant after its minutes, with averaged weights."""
    torch.manual_seed(0)
    settings = {
        "batch_size": options.batch, "crop": options.crop, "pool": options.pool,
        "edition": options.edition,
    }  # fmt: skip
    if options.start:
        if fixed := set(variant.model) - {"z_dim", *BLOCKS}:
            raise ValueError(
                f"{', '.join(sorted(fixed))} can't grow: leave {variant.name} out, or --start."
            )
        settings["origin"] = start = trained(options.start / "vae")
        vae = grown_autoencoder(start, **variant.model)
    else:
        vae = CompactAutoencoder(**variant.model)
    stage = AutoencoderStage(vae, **{**settings, **variant.stage, "statistics_clips": 1})
    out = options.out / variant.name
    never = 1e6
    config = TrainingConfig(
        out,
        options.minutes,
        learning_rate=options.learning_rate,
        checkpoint_minutes=never,
        sample_minutes=never,
        trackers=(),
    )
    Trainer(stage, config).train()
    return trained(out / "export" / "vae")


def trained(folder: Path) -> CompactAutoencoder:
    return CompactAutoencoder.from_pretrained(folder).float()


@torch.no_grad()
def measure(vae: CompactAutoencoder, cases: list[HeldOutClip], eyes: TubeNetwork, out: Path) -> Row:
    """What copies of held-out clips keep, at each size; and their pictures."""
    device = str(eyes.device)
    vae.to(device)
    row: Row = {"parameters": sum(p.numel() for p in vae.parameters())}
    row["decoding, kMAC a pixel"] = operations(vae) / 2e3
    for size in SIZES:
        to, pictures = Measurement(size, FRAMES, device), []
        moving, still = Copies(eyes), Copies(eyes)
        for case in cases:
            frames = torch.from_numpy(case.frames(*size, FRAMES, device)).to(device)
            video = frames.permute(3, 0, 1, 2)[None].float() / 255
            copy = moving.add(vae, video)
            still.add(vae, video[:, :, -1:].expand_as(video))
            pictures.append([*to.crop("real", video), *to.crop("copy", copy)])
        row[f"{size[0]}×{size[1]}"] = moving.kept() | {"still": still.kept()}
        picture_grid(pictures).save(out / f"{size[0]}.png")
    return row


class Copies:
    """What an autoencoder's copies of some clips keep.

    Args:
        eyes: What the distance is seen through.
    """

    def __init__(self, eyes: TubeNetwork) -> None:
        self.eyes = eyes
        self.seen: list[tuple[Tensor, Tensor]] = []  # features of copies and clips
        self.details: list[tuple[list[float], list[float]]] = []  # of copies and clips
        self.scores: list[float] = []

    def add(self, vae: CompactAutoencoder, video: Tensor) -> Tensor:
        """Copies a clip, 1 c t h w in [0, 1]."""
        copy = (vae(video * 2 - 1) / 2 + 0.5).clamp(0, 1)
        self.details.append((detail(copy), detail(video)))
        self.scores.append(psnr(copy - video).item())
        self.seen.append((self.features(copy), self.features(video)))
        return copy

    def features(self, video: Tensor) -> Tensor:
        """What is seen of a clip, 1 c t h w in [0, 1]."""
        patches = PatchFeatures(self.eyes)
        for frame in to_uint8(video[0]).permute(1, 2, 3, 0):
            for _ in range(self.eyes.num_frames):  # of which it would see one
                patches.update(frame)
        return patches.compute()

    def kept(self) -> Row:
        """The part of the clips' detail, above and below the middle, the mean PSNR in dB, and the
        distance."""
        copies, clips = (torch.tensor(each).sum(0) for each in zip(*self.details, strict=True))
        seen = (fit_gaussian(torch.cat(each)) for each in zip(*self.seen, strict=True))
        return {
            "detail": (copies / clips).tolist(),
            "PSNR": fmean(self.scores),
            "distance": frechet_distance(*seen),
        }


def operations(vae: CompactAutoencoder) -> float:
    """Operations of decoding a pixel of a long clip."""
    latents: Tensor = torch.zeros(1, vae.config.z_dim, 1, 8, 8, device=vae.device)
    with FlopCounterMode(display=False) as counter:
        vae.decode(latents)
    pixels = (8 * vae.config.scale_factor_spatial) ** 2 * vae.config.scale_factor_temporal
    return counter.get_total_flops() / pixels


def markdown(rows: dict[str, Row]) -> str:
    """A line for each variant."""
    sizes = [f"{height}×{width}" for height, width in SIZES]
    heads = []
    for size in sizes:
        heads += [f"{size}, detail above / below, PSNR, distance", "… standing still"]
    lines = [
        f"| | million parameters | decoding, kMAC a pixel | {' | '.join(heads)} |",
        f"| --- | ---: | ---: |{' --- |' * len(heads)}",
    ]
    for name, row in rows.items():
        cells = [f"{row['parameters'] / 1e6:.1f}", f"{row['decoding, kMAC a pixel']:.1f}"]
        for size in sizes:
            for kept in (row[size], row[size]["still"]):
                above, below = kept["detail"]
                cells.append(
                    f"{above:.2f} / {below:.2f}, {kept['PSNR']:.1f}, {kept['distance']:.1f}"
                )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trained", type=Model.read, action="append", default=[])
    parser.add_argument("--variant", type=Variant.read, action="append", default=[])
    parser.add_argument("--start", type=Path, help="Pipeline folder, variants grow from its `vae`.")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="Peak.")
    parser.add_argument("--minutes", type=float, default=2.0, help="Of each variant.")
    parser.add_argument("--clips", type=int, default=10, help="Held-out scenes.")
    parser.add_argument("--batch", type=int, default=48, help="Crops a step.")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--pool", type=int, default=6000)
    parser.add_argument(
        "--edition", type=int, choices=EDITIONS, help="Of the world, if not that of --start."
    )
    parser.add_argument("--out", type=Path, required=True, help="Folder; parts are replaced.")
    options = parser.parse_args(arguments)
    options.edition = options.edition or edition_of(options.out, options.start)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases, eyes = held_out_clips(options.clips, edition=options.edition), imagenet_tubes(device)
    rows: dict[str, Row] = {}
    for row in (*options.trained, *options.variant):
        vae = trained(row.folder / "vae") if isinstance(row, Model) else train(row, options)
        out = options.out / row.name
        out.mkdir(parents=True, exist_ok=True)
        rows[row.name] = measure(vae, cases, eyes, out)
        found = {"command": "python benchmarks/autoencoder_shapes.py " + " ".join(arguments)}
        found |= {"device": device, "rows": rows}
        path = options.out / "shapes.json"
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(markdown(rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(console.run(lambda: main(sys.argv[1:])))
