"""The attribute classifier's stage: what a rendered clip shows, from whole frames and crops."""

from __future__ import annotations

import json
import random
from functools import cache, cached_property
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ...model.classifier import AttributeClassifier, spread
from ...pictures import picture_grid, to_image, to_uint8
from ...world.renderer import render
from ...world.scene import Scene, allowed_values, sample_scene
from ..data import Pool, SceneStream
from ..stage import Stage

# Rows and columns that scenes are rendered at, and how often: large frames are dear, and once
# reduced they differ little.
FRAME_SIZES = ((288, 512), (544, 960), (1088, 1920))
FRAME_WEIGHTS = (14, 5, 1)
# Crops at full resolution teach the features what patches look like: HD-FVD shows them nothing
# else. Only these attributes can be told from a part of a frame.
CROP_SHARE = 0.25
TOLD_BY_CROPS = ("time_of_day", "weather", "mood")
IGNORED = -100  # what cross-entropy leaves out
# What becomes what in a mirrored clip.
MIRRORED = {
    "celestial_side": {"left": "right", "right": "left"},
    "camera": {"pan left": "pan right", "pan right": "pan left"},
}
HELD_OUT_START = 500_000  # away from the scenes that previews and evaluations begin with


def labels(scene: Scene, names: tuple[str, ...] | None = None) -> list[int]:
    """Numbers of a scene's values, in the order of `allowed_values`; `IGNORED` for those not in
    `names`, if these are given, and for the place of a sun or moon that is not there."""
    numbers = []
    for name, values in allowed_values(scene.edition).items():
        hidden = name.startswith("celestial_") and scene.attributes.celestial == "none"
        value = getattr(scene.attributes, name)
        told = (names is None or name in names) and not hidden
        numbers.append(values.index(value) if told else IGNORED)
    return numbers


def ordered(logits: dict[str, Tensor], edition: int = 1) -> list[Tensor]:
    """Logits in the order of `allowed_values`, which is that of `labels`: a network that was saved
    has its heads in the order of the alphabet."""
    return [logits[name] for name in allowed_values(edition)]


@cache
def mirror_tables(device: torch.device, edition: int) -> Tensor:
    """What each value of each attribute becomes in a mirrored clip, attributes × values."""
    known = allowed_values(edition)
    most = max(map(len, known.values()))
    rows = []
    for name, values in known.items():
        becomes = MIRRORED.get(name, {})
        row = [values.index(becomes.get(value, value)) for value in values]
        rows.append([*row, *range(len(row), most)])
    return torch.tensor(rows, device=device)


def mirrored(numbers: Tensor, edition: int = 1) -> Tensor:
    """The labels of mirrored clips, b attributes."""
    table = mirror_tables(numbers.device, edition)
    swapped = table.gather(1, numbers.clamp(min=0).t()).t()
    return torch.where(numbers == IGNORED, numbers, swapped)


class ClassifierStage(Stage):
    """Cross-entropy of every attribute that can be seen.

    Args:
        network: What is trained.
        frame_sizes: Rows and columns of the rendered frames.
        num_frames: Frames of a rendered clip.
        batch_size: Clips a step in each process.
        pool: Clips kept on the device, reduced.
        chunk: Clips rendered at once.
        held_out: Scenes that the accuracy is measured on, never trained on.
        seed: What scenes and their order follow; another one for each resumption.
        edition: Of the world that scenes belong to, see `world.scene`.

    Raises:
        ValueError: for a network of other attributes than the world's.
    """

    def __init__(
        self,
        network: AttributeClassifier,
        frame_sizes: tuple[tuple[int, int], ...] = FRAME_SIZES,
        num_frames: int = 17,
        batch_size: int = 64,
        pool: int = 20_000,
        chunk: int = 16,
        held_out: int = 512,
        seed: int = 0,
        edition: int = 1,
    ) -> None:
        known = {name: list(values) for name, values in network.config.attributes.items()}
        if known != {name: list(values) for name, values in allowed_values(edition).items()}:
            raise ValueError(
                "The classifier to start from tells other attributes than the world has now, in "
                f"edition {edition}: start afresh, without --start-from."
            )
        self.edition = edition
        self.model = self.network = network
        self.frame_sizes, self.num_frames = frame_sizes, num_frames
        self.batch_size, self.capacity, self.chunk = batch_size, pool, chunk
        self.number, self.seed = held_out, seed

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        self.device = device
        stream = SceneStream(rank, self.seed, self.edition)
        rng = random.Random(self.seed * 64 + rank)
        weights = FRAME_WEIGHTS[: len(self.frame_sizes)]

        def make() -> tuple[Tensor, Tensor]:
            [size] = rng.choices(self.frame_sizes, weights)
            scenes = stream.take(self.chunk)
            if rng.random() < CROP_SHARE:
                return self.crops(scenes, size, rng)
            return self.views(scenes, size), torch.tensor([*map(labels, scenes)], device=device)

        first = min(self.capacity, 8 * self.batch_size)
        self.pool = Pool(make, self.capacity, share=0.6, first=first)

    @torch.no_grad()
    def views(self, scenes: list[Scene], size: tuple[int, int]) -> Tensor:
        """Whole clips as the classifier sees them: uint8, `b 3 t h w`."""
        chosen = spread(self.num_frames, self.network.config.num_frames)
        video = render(scenes, *size, self.num_frames, chosen=chosen, device=self.device)
        frames = self.network.reduce(rearrange(video, "b c t h w -> (b t) c h w"))
        return rearrange(to_uint8(frames), "(b t) c h w -> b c t h w", b=len(scenes))

    @torch.no_grad()
    def crops(
        self, scenes: list[Scene], size: tuple[int, int], rng: random.Random
    ) -> tuple[Tensor, Tensor]:
        """Parts of clips at full resolution, uint8 `b 3 t h w`, and the labels that they tell."""
        rows, columns = self.network.config.height, self.network.config.width
        region = (rng.randint(0, size[0] - rows), rng.randint(0, size[1] - columns), rows, columns)
        chosen = spread(self.num_frames, self.network.config.num_frames)
        video = render(
            scenes, *size, self.num_frames, region=region, chosen=chosen, device=self.device
        )
        told = [labels(scene, TOLD_BY_CROPS) for scene in scenes]
        return to_uint8(video), torch.tensor(told, device=self.device)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        self.pool.refresh()
        video, numbers = self.pool.sample(self.batch_size)
        flip = torch.rand(len(video), device=video.device) < 0.5
        video = torch.where(flip.view(-1, 1, 1, 1, 1), video.flip(-1), video)
        return video.float() / 255, torch.where(
            flip[:, None], mirrored(numbers, self.edition), numbers
        )

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        video, numbers = batch
        losses, right, told = [], [], []
        for logits, target in zip(
            ordered(model(video), self.edition), numbers.unbind(1), strict=True
        ):
            visible = target != IGNORED
            errors = functional.cross_entropy(
                logits.float(), target, ignore_index=IGNORED, reduction="sum"
            )
            losses.append(errors / visible.sum().clamp(min=1))
            right.append((logits.argmax(1) == target).sum())
            told.append(visible.sum())
        accuracy = torch.stack(right).sum() / torch.stack(told).sum().clamp(min=1)
        return {"loss": torch.stack(losses).mean(), "accuracy": accuracy}

    # Held-out scenes

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Whole clips of scenes that are never trained on, an equal part at each size."""
        views: list[Tensor] = []
        scenes: list[Scene] = []
        for i in range(0, self.number, self.chunk):
            last = min(i + self.chunk, self.number)
            chunk = [sample_scene(HELD_OUT_START + j, self.edition) for j in range(i, last)]
            views.append(self.views(chunk, self.frame_sizes[len(views) % len(self.frame_sizes)]))
            scenes += chunk
        return torch.cat(views), torch.tensor([*map(labels, scenes)], device=self.device)

    @torch.no_grad()
    def predictions(self) -> Tensor:
        """Numbers of the values that the network sees in the held-out clips, `b attributes`."""
        views, _ = self.held_out
        outputs = [
            ordered(self.network(part.float() / 255), self.edition)
            for part in views.split(self.batch_size)
        ]
        return torch.cat([torch.stack([x.argmax(1) for x in out], dim=1) for out in outputs])

    def accuracy(self) -> dict[str, float | None]:
        """Part of the held-out clips that is right, by attribute; None where no clip shows it."""
        numbers = self.held_out[1]
        visible = numbers != IGNORED
        right = ((self.predictions() == numbers) & visible).sum(0).tolist()
        told = visible.sum(0).tolist()
        names = allowed_values(self.edition)
        return {name: a / b if b else None for name, a, b in zip(names, right, told, strict=True)}

    def sample_sheet(self) -> Image.Image:
        """Middle frames of held-out clips, those with the most errors first."""
        shown = {k: None if v is None else round(v, 4) for k, v in self.accuracy().items()}
        print(f"held-out accuracy of {self.number} clips: {shown}", flush=True)
        views, numbers = self.held_out
        wrong = ((self.predictions() != numbers) & (numbers != IGNORED)).sum(1)
        worst = wrong.argsort(descending=True, stable=True)[:16].tolist()
        middle = views.shape[2] // 2
        pictures = [to_image(views[i, :, middle] / 255) for i in worst]
        columns = 4 if len(pictures) % 4 == 0 else len(pictures)
        return picture_grid([pictures[i : i + columns] for i in range(0, len(pictures), columns)])

    def export(self, folder: Path) -> None:
        """Saves the network, and its accuracy beside it."""
        self.network.save_pretrained(folder / "classifier")
        report = {"held_out_clips": self.number, "accuracy": self.accuracy()}
        text = json.dumps(report, indent=2)
        (folder / "classifier" / "accuracy.json").write_text(text + "\n", encoding="utf-8")
