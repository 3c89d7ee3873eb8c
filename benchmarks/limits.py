"""What limits the embedded model's picture: how much of real clips' detail its autoencoder keeps,
and how much the model itself draws, above and below the middle of the frame.

    python benchmarks/limits.py --clips 10 --json limits.json --pictures limits
    python benchmarks/limits.py --clips 4 --also teacher=FOLDER:20:3 --also "4 steps=FOLDER:4:1"

*Detail* is the mean absolute Laplacian of the grey picture in units of 1/255. *Bands* are shares of
the power of real clips' latents, below 0.07, from there to 0.25, and above 0.25 cycles a position.
The rows are real clips of held-out scenes; the autoencoder's copies of them; the model's own clips
of the same captions, and those of other folders, steps and guidances: the undistilled model, whose
loss is also measured by noise level on the copies' latents. Pictures are cut at 1:1 from the middle
of the ground and of the horizon.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ultragen.cli import console
from ultragen.model.autoencoder import denormalize, normalize
from ultragen.model.coordinates import with_coordinates
from ultragen.pictures import label_frame, picture_grid
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED_MODEL, RESOLUTIONS
from ultragen.sampling.flow import noised, to_velocity
from ultragen.training.stages.losses import psnr
from ultragen.world.heldout import HeldOutClip, held_out_clips
from ultragen.world.scene import EDITIONS

HALVES = ("above", "below")
EDGES = (0.07, 0.25)  # cycles a position, between the bands
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of noise, at which the loss is measured
CROP = (272, 480)  # rows and columns of a picture at 1:1
Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A model that makes clips.

    Attributes:
        name: Of its row.
        folder: Of its pipeline.
        steps: Of denoising; None takes the model's.
        guidance: None takes the model's.
    """

    name: str
    folder: Path = EMBEDDED_MODEL
    steps: int | None = None
    guidance: float | None = None

    @classmethod
    def read(cls, text: str) -> Model:
        """NAME=FOLDER[:STEPS[:GUIDANCE]]"""
        name, _, rest = text.partition("=")
        folder, *numbers = rest.split(":")
        if not folder or len(numbers) > 2:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER[:STEPS[:GUIDANCE]].")
        steps, guidance = (*map(float, numbers), *[None] * (2 - len(numbers)))
        return cls(name, Path(folder), None if steps is None else int(steps), guidance)


def detail(video: Tensor) -> list[float]:
    """Mean absolute Laplacian above and below the middle: b 3 t h w in [0, 1]."""
    grey = video.float().mean(1).flatten(0, 1)[:, None] * 255
    kernel = grey.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    found = F.conv2d(grey, kernel).abs()
    return [half.mean().item() for half in found.chunk(2, dim=2)]


def bands(latents: Tensor) -> Tensor:
    """Power of latents b c t h w above and below the middle in three bands of frequency: 2 × 3."""
    found = []
    for half in latents.double().chunk(2, dim=3):
        rows, columns = half.shape[-2:]
        window = torch.outer(*(torch.hann_window(n, dtype=torch.double) for n in (rows, columns)))
        power = torch.fft.fft2(half * window.to(half.device), norm="ortho").abs().square()
        power = power.mean((0, 1, 2))
        frequency = torch.hypot(
            torch.fft.fftfreq(rows, dtype=torch.double)[:, None],
            torch.fft.fftfreq(columns, dtype=torch.double)[None],
        ).to(power.device)
        low, high = EDGES
        masks = (frequency < low, (frequency >= low) & (frequency < high), frequency >= high)
        found.append(torch.stack([power[mask].sum() for mask in masks]))
    return torch.stack(found)


class Measurement:
    """Collects what is measured of each row, and pictures of some of them."""

    def __init__(self, size: tuple[int, int], num_frames: int, device: str) -> None:
        self.size, self.num_frames, self.device = size, num_frames, device
        self.values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.power: dict[str, Tensor] = {}
        self.crops: list[list[Image.Image]] = []

    def add(self, row: str, video: Tensor, latents: Tensor) -> None:
        """A clip b 3 t h w in [0, 1], and its latents with unit variance, b c t h w."""
        for half, value in zip(HALVES, detail(video), strict=True):
            self.values[row][f"detail {half}"].append(value)
        self.power[row] = self.power.get(row, 0) + bands(latents).cpu()

    def note(self, row: str, name: str, value: float) -> None:
        """One more number of a row."""
        self.values[row][name].append(value)

    def crop(self, row: str, video: Tensor) -> list[Image.Image]:
        """The middle frame of a clip, b 3 t h w, at 1:1: around the horizon, and the ground."""
        frame = (video[0, :, video.shape[2] // 2].clamp(0, 1) * 255).round().byte()
        frame = frame.permute(1, 2, 0).cpu().numpy()
        height, width = (min(n, m) for n, m in zip(CROP, self.size, strict=True))
        left = (self.size[1] - width) // 2
        tops = ((self.size[0] - height) // 2, self.size[0] - height)
        return [
            Image.fromarray(
                label_frame(np.ascontiguousarray(frame[top : top + height, left : left + width]),
                            row)
            )
            for top in tops
        ]  # fmt: skip

    def rows(self) -> dict[str, Row]:
        """Means, details and bands beside those of the real clips as parts of them."""
        found: dict[str, Row] = {}
        real = {name: fmean(values) for name, values in self.values["real"].items()}
        for row, values in self.values.items():
            found[row] = {name: fmean(each) for name, each in values.items()}
            for half in HALVES:
                name = f"detail {half}"
                if name in found[row]:
                    found[row][f"{name} of real"] = found[row][name] / real[name]
            if row in self.power:
                shares = self.power[row] / self.power["real"]
                found[row]["bands above"], found[row]["bands below"] = shares.tolist()
        return found


def decoded(pipe: UltraGenPipeline, latents: Tensor) -> Tensor:
    """Latents with unit variance, b c t h w → pixels in [0, 1], b 3 t h w."""
    pixels = pipe.vae.decode(denormalize(pipe.vae, latents)).sample.float()
    return (pixels / 2 + 0.5).clamp(0, 1)


def copies(
    pipe: UltraGenPipeline, cases: Sequence[HeldOutClip], to: Measurement
) -> Iterator[tuple[list[list[Image.Image]], Tensor]]:
    """Real clips and the autoencoder's copies; yields their crops and their latents."""
    for case in cases:
        frames = torch.from_numpy(case.frames(*to.size, to.num_frames, to.device))
        video = frames.to(to.device).permute(3, 0, 1, 2)[None].float() / 255
        raw = pipe.vae.encode((video * 2 - 1).to(pipe.vae.dtype)).latent_dist.mode()
        latents = normalize(pipe.vae, raw)
        copy = (pipe.vae.decode(denormalize(pipe.vae, latents)).sample.float() / 2 + 0.5).clamp(
            0, 1
        )
        to.add("real", video, latents)
        to.add("copies", copy, latents)
        to.note("copies", "PSNR", psnr(copy - video).item())
        for half, x, y in zip(HALVES, video.chunk(2, 3), copy.chunk(2, 3), strict=True):
            to.note("copies", f"PSNR {half}", psnr(y - x).item())
        yield [to.crop("real", video), to.crop("copy", copy)], latents


def clip_of(pipe: UltraGenPipeline, model: Model, case: HeldOutClip, to: Measurement) -> Tensor:
    """The model's clip of a caption, as latents with unit variance, b c t h w."""
    return pipe(
        case.caption,
        height=to.size[0],
        width=to.size[1],
        num_frames=to.num_frames,
        num_inference_steps=model.steps,
        guidance_scale=model.guidance,
        generator=torch.Generator().manual_seed(case.seed),
        output_type="latent",
    ).frames


def losses(pipe: UltraGenPipeline, case: HeldOutClip, clean: Tensor) -> dict[str, float]:
    """The velocity's mean squared error by noise level, above and below the middle."""
    embeds, _ = pipe.encode_prompt(case.caption, do_classifier_free_guidance=False)
    found = {}
    for level in LEVELS:
        sigma = torch.tensor([level], device=clean.device)
        noise = torch.randn(
            clean.shape, generator=torch.Generator().manual_seed(case.seed)
        ).to(clean)  # fmt: skip
        noisy = noised(clean, noise, sigma)
        given = with_coordinates(noisy, pipe.transformer.config.in_channels)
        time = sigma * pipe.scheduler.config.num_train_timesteps
        output = pipe.transformer(given.to(embeds.dtype), time, embeds, return_dict=False)[0]
        config = pipe.config
        velocity = to_velocity(output, noisy, sigma, config.prediction, config.data_std)
        error = (velocity - (noise - clean)).square()
        for half, part in zip(HALVES, error.chunk(2, dim=3), strict=True):
            found[f"loss at {level} {half}"] = part.mean().item()
    return found


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rows."""
    size = RESOLUTIONS[options.resolution]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    to = Measurement((size.height, size.width), options.frames, device)
    cases: list[HeldOutClip] = []
    shown: list[list[list[Image.Image]]] = []
    real: list[Tensor] = []
    for number, model in enumerate([Model("model"), *options.also]):
        pipe = UltraGenPipeline.from_pretrained(model.folder, torch_dtype=torch.float32)
        pipe.to(device)
        pipe.set_progress_bar_config(disable=True)
        if not number:
            cases = held_out_clips(options.clips, edition=options.edition or pipe.edition)
            for crops, latents in copies(pipe, cases, to):
                shown.append(crops)
                real.append(latents)
        for case, crops, latents in zip(cases, shown, real, strict=True):
            made = clip_of(pipe, model, case, to)
            video = decoded(pipe, made)
            to.add(model.name, video, made)
            crops.append(to.crop(model.name, video))
            if not pipe.config.distilled_steps:
                for name, value in losses(pipe, case, latents).items():
                    to.note(model.name, name, value)
            print(f"{model.name}: {case.caption}", file=sys.stderr, flush=True)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for case, crops in zip(cases, shown, strict=True):
            columns = [list(part) for part in zip(*crops, strict=True)]
            picture_grid(columns).save(options.pictures / f"{case.seed}.png")
    return {
        "command": "python benchmarks/limits.py " + " ".join(options.given),
        "device": device,
        "size": [*to.size, options.frames],
        "captions": [case.caption for case in cases],
        "rows": to.rows(),
    }


def markdown(rows: dict[str, Row]) -> str:
    """A line for each row."""
    lines = [
        "| | detail above / below | of real | PSNR above / below | bands above | below |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        cells = [
            halves(row, "detail {}", 2),
            halves(row, "detail {} of real", 2),
            halves(row, "PSNR {}", 1),
            *(", ".join(f"{share:.2f}" for share in row[f"bands {half}"]) for half in HALVES),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def halves(row: Row, name: str, digits: int) -> str:
    """A number above and below the middle, a dash where it was not measured."""
    values = [row.get(name.format(half)) for half in HALVES]
    return " / ".join("–" if value is None else f"{value:.{digits}f}" for value in values)


def main(arguments: list[str]) -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--resolution", choices=RESOLUTIONS, default="544p")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument(
        "--edition", type=int, choices=EDITIONS, help="Of the world; without it the model's."
    )
    parser.add_argument(
        "--also", type=Model.read, action="append", default=[],
        help="NAME=FOLDER[:STEPS[:GUIDANCE]]",
    )  # fmt: skip
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, help="Folder of a picture for each scene.")
    options = parser.parse_args(arguments)
    options.given = arguments
    found = measure(options)
    print(markdown(found["rows"]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(console.run(lambda: main(sys.argv[1:])))
