"""What is measured: true shapes and layouts, with random weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from ..model import wan_1_3b
from ..model.transformer import UltraGenTransformer3DModel
from ..presets import EMBEDDED_MODEL
from ..weights.released import cast_weights

DENSE = "dense"
PLAIN, TILED, OURS = VAE_VARIANTS = ("plain", "tiled", "ours")
"""Wan's VAE as diffusers decodes it, the same in tiles, and through our pipeline."""
Family = Literal["wan", "embedded", "tiny"]
Kind = Literal["forward", "train", "vae", "run"]

WIDTHS: dict[Family, dict[str, Any]] = {
    "wan": wan_1_3b.TRANSFORMER,
    "tiny": {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 96,
        "num_layers": 4,
        "lora_rank": 8,
        "gate_dim": 16,
        "window_size": (4.0, 6.0),
    },
}
TEXT_TOKENS: dict[Family, int] = {"wan": wan_1_3b.TEXT_TOKENS, "embedded": 64, "tiny": 8}
LATENT_SCALE: dict[Family, int] = {"wan": wan_1_3b.PIXELS_PER_LATENT, "embedded": 16, "tiny": 8}
"""Rows, and columns, of pixels that one latent covers."""


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to attend.

    Attributes:
        name: As the tables and `--skip` call it.
        windows: K or `auto`, which layers with windows of their own take; None for the dense model.
        config: What the model's configuration has beside the widths.
    """

    name: str
    windows: int | Literal["auto"] | None
    config: Mapping[str, Any] = field(default_factory=dict)


def released(full_attention_layers: tuple[int, ...]) -> Variant:
    """The layout of the published checkpoint, whose first and last layers are dense."""
    layout = {name: wan_1_3b.RELEASED[name] for name in ("uneven", "global_keys_from")}
    config = {"full_attention_layers": full_attention_layers, **layout}
    return Variant("released", 4, config)


PAPER = Variant("paper", 4)
AUTO = Variant("auto", "auto")
T3_VIDEO = Variant("t3", "auto", wan_1_3b.T3)
DENSE_VARIANT = Variant(DENSE, None)
# The dense model comes last: where time runs out, it is the one to go without.
VARIANTS: dict[Family, tuple[Variant, ...]] = {
    "wan": (PAPER, AUTO, T3_VIDEO, released(wan_1_3b.FULL_ATTENTION_LAYERS), DENSE_VARIANT),
    "embedded": (PAPER, AUTO, DENSE_VARIANT),
    "tiny": (PAPER, AUTO, T3_VIDEO, released((0, 3)), DENSE_VARIANT),
}


@dataclass(frozen=True)
class Case:
    """One size of clip.

    Attributes:
        name: As `--case` calls it.
        kind: `forward` passes of the transformers, `train` steps of theirs, `vae` decoding, or a
            whole `run`.
        family: Whose widths.
        height: Rows in pixels.
        width: Columns in pixels.
        frames: Frames in pixels, 4n + 1.
        needs_cuda: Whether a CPU would take hours.
    """

    name: str
    kind: Kind
    family: Family
    height: int
    width: int
    frames: int
    needs_cuda: bool = True

    @property
    def latents(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the latents."""
        scale = LATENT_SCALE[self.family]
        return (self.frames - 1) // 4 + 1, self.height // scale, self.width // scale

    @property
    def tokens(self) -> int:
        """Tokens of the transformer, whose patches are 1 × 2 × 2."""
        t, h, w = self.latents
        return t * h * w // 4


CASES = {
    case.name: case
    for case in (
        Case("1088x1920x81", "forward", "wan", 1088, 1920, 81),
        Case("2176x3840x29", "forward", "wan", 2176, 3840, 29),
        Case("2176x3840x81", "forward", "wan", 2176, 3840, 81),
        Case("embedded-544p", "forward", "embedded", 544, 960, 17, needs_cuda=False),
        Case("embedded-1080p", "forward", "embedded", 1088, 1920, 17, needs_cuda=False),
        Case("tiny", "forward", "tiny", 256, 384, 9, needs_cuda=False),
        Case("train-1088x1920x81", "train", "wan", 1088, 1920, 81),
        Case("train-2176x3840x29", "train", "wan", 2176, 3840, 29),
        Case("train-tiny", "train", "tiny", 256, 384, 9, needs_cuda=False),
        Case("vae-1088x1920x81", "vae", "wan", 1088, 1920, 81),
        Case("vae-2176x3840x29", "vae", "wan", 2176, 3840, 29),
        Case("vae-embedded", "vae", "embedded", 544, 960, 17, needs_cuda=False),
        Case("vae-tiny", "vae", "tiny", 64, 96, 9, needs_cuda=False),
        Case("run-1088x1920x81", "run", "wan", 1088, 1920, 81),
        Case("run-2176x3840x29", "run", "wan", 2176, 3840, 29),
        Case("run-embedded", "run", "embedded", 544, 960, 17, needs_cuda=False),
        Case("run-tiny", "run", "tiny", 96, 128, 5, needs_cuda=False),
    )
}
TINY = tuple(name for name, case in CASES.items() if case.family == "tiny")
GROUPS = {
    "forward": tuple(n for n, c in CASES.items() if c.kind == "forward" and n not in TINY),
    "embedded": tuple(n for n, c in CASES.items() if c.family == "embedded"),
    "train": tuple(n for n, c in CASES.items() if c.kind == "train" and n not in TINY),
    "vae": tuple(n for n, c in CASES.items() if c.kind == "vae" and n not in TINY),
    "run": tuple(n for n, c in CASES.items() if c.kind == "run" and n not in TINY),
    "all": tuple(n for n in CASES if n not in TINY),
}
"""Names that stand for several cases."""


def choose_cases(names: Iterable[str], device: str) -> list[Case]:
    """The cases of these names, each once, in the order of `CASES`.

    Args:
        names: Cases or groups; none takes all that the device can do.
        device: Kind of device, `cpu` or `cuda`.

    Raises:
        ValueError: for an unknown name.
    """
    asked = list(names)
    if unknown := [name for name in asked if name not in {*CASES, *GROUPS}]:
        raise ValueError(
            f"There is no case {', '.join(unknown)}: choose from {', '.join([*GROUPS, *CASES])}."
        )
    if not asked:
        if device == "cuda":
            return choose_cases(["all"], device)
        return [case for case in CASES.values() if case.kind == "forward" and not case.needs_cuda]
    chosen = {case for name in asked for case in GROUPS.get(name, (name,))}
    return [case for name, case in CASES.items() if name in chosen]


def widths(family: Family) -> dict[str, Any]:
    """Configuration of a family's models; the embedded one's comes with its weights."""
    if family != "embedded":
        return WIDTHS[family]
    path = EMBEDDED_MODEL / "transformer" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in config.items() if not name.startswith("_")}


def build(family: Family, variant: Variant, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A transformer with random weights on a device."""
    cls = WanTransformer3DModel if variant.windows is None else UltraGenTransformer3DModel
    known = inspect.signature(cls.__init__).parameters
    config = {**widths(family), **variant.config}
    with torch.device(device):
        model = cls(**{name: value for name, value in config.items() if name in known})
    return cast_weights(model, dtype).eval()


def arguments(case: Case, variant: Variant, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Random arguments of one forward pass, one clip."""
    config = widths(case.family)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device, dtype=dtype)

    found = {
        "hidden_states": random(1, config["in_channels"], *case.latents),
        "timestep": torch.full((1,), 500.0, device=device),  # any costs the same
        "encoder_hidden_states": random(1, TEXT_TOKENS[case.family], config["text_dim"]),
        "return_dict": False,
    }
    return found if variant.windows is None else {**found, "windows": variant.windows}
