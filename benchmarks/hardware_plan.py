"""What `hardware.py` measures: sizes of clips, cards and models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultragen.hardware import GIB
from ultragen.presets import PROMPTS, RESOLUTIONS, ULTRAGEN_SOURCE, WAN, WAN_SOURCE
from ultragen.weights.random import SIZES, Sizes

PROMPT = PROMPTS[0]
PIECES = 3  # of a clip, after which decoding takes no more memory: its caches are full


@dataclass(frozen=True)
class Clip:
    """A size.

    Attributes:
        resolution: As users type it.
        height: Rows in pixels.
        width: Columns in pixels.
        frames: Frames, 4n + 1.
    """

    resolution: str
    height: int
    width: int
    frames: int

    @property
    def name(self) -> str:
        return f"{self.height}×{self.width}×{self.frames}"

    @property
    def tokens(self) -> int:
        return (self.frames + 3) // 4 * (self.height // 16) * (self.width // 16)


def sized(resolution: str, frames: int) -> Clip:
    size = RESOLUTIONS[resolution]
    return Clip(resolution, size.height, size.width, frames)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        weights: Widths and depths of the models.
        clips: By the name that `--clip` takes.
        tokens: Clips of the part `tokens`, the smallest first.
        cards: Name and bytes for tensors: less than the card has, because the driver, the
            libraries and, on some cards, the error correction keep some.
        limits: Clips, by resolution, of the part `frames`, each with the most frames to try.
        runs: Clips of the parts `runs` and `dense`, as those of `clips`.
        measured: Runs of the part `coefficients`; None for each model's own.
        steps: Denoising steps of a run.
        dense_steps: Steps of the dense model that are timed, after a first one.
    """

    weights: Sizes
    clips: dict[str, Clip]
    tokens: tuple[Clip, ...]
    cards: dict[str, int]
    limits: tuple[Clip, ...]
    runs: dict[str, Clip]
    measured: tuple[dict[str, Any], ...] | None
    steps: int = WAN.num_inference_steps
    dense_steps: int = 2


CLIPS = {"1080p": sized("1080p", 81), "4k": sized("4k", 29)}
TRUE = Plan(
    SIZES["true"],
    CLIPS,
    (
        sized("544p", 17),
        sized("544p", 81),
        sized("1080p", 33),
        sized("1080p", 81),
        sized("2k", 81),
        sized("4k", 29),
        sized("4k", 49),
    ),
    {"24 GB": 22 * GIB, "48 GB": 44 * GIB, "80 GB": 78 * GIB},
    tuple(sized(name, WAN.max_frames) for name in ("544p", "1080p", "2k", "4k")),
    CLIPS,
    None,
)
SHORT = {"resolution": "544p", "num_frames": 1, "num_inference_steps": 1, "upscaler": "lanczos"}
TINY = Plan(
    SIZES["tiny"],
    {"1080p": Clip("1080p", 64, 96, 5), "4k": Clip("4k", 64, 128, 5)},
    (Clip("544p", 64, 96, 5), Clip("1080p", 64, 128, 9)),
    TRUE.cards,
    (Clip("544p", 64, 96, 5),),
    {"1080p": sized("544p", 1)},
    (SHORT, SHORT),
    steps=1,
    dense_steps=1,
)


@dataclass(frozen=True)
class Files:
    """Weights on this machine.

    Attributes:
        wan: The base model's folder.
        ultragen: The released UltraGen weights, or a file of that layout.
    """

    wan: Path
    ultragen: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make all commands take them."""
        return {
            WAN_SOURCE.variable: str(self.wan.resolve()),
            ULTRAGEN_SOURCE.variable: str(self.ultragen.resolve()),
            "HF_HUB_OFFLINE": "1",
        }
