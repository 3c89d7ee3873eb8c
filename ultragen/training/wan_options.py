"""Settings of `train wan`: layouts, presets, what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..model import wan_1_3b
from ..presets import PROMPTS, SUGGESTED

Trained = Literal["all", "new", "lora"]
Recomputed = Literal["all", "half", "none"]


def paper_layout(layers: int) -> dict[str, Any]:
    """No full layer; windows of two sizes where K does not divide a grid (our decision)."""
    return {"full_attention_layers": (), "lora_rank": wan_1_3b.LORA_RANK}


def released_layout(layers: int) -> dict[str, Any]:
    """The layout of the released weights with all of its quirks: what is trained in it is written
    as the authors' own file. Of 30 layers, three at either end stay full."""
    edge = max(1, round(layers * len(wan_1_3b.FULL_ATTENTION_LAYERS) / 2 / WAN_LAYERS))
    full = (*range(edge), *range(layers - edge, layers))
    own = {"full_attention_layers": full, "lora_rank": wan_1_3b.LORA_RANK}
    told_by_base = {"attention_head_dim"}
    return {k: v for k, v in wan_1_3b.RELEASED.items() if k not in told_by_base} | own


def t3_layout(layers: int) -> dict[str, Any]:
    """T3-Video's: windows in space and time, which add no weights."""
    return dict(wan_1_3b.T3)


WAN_LAYERS = wan_1_3b.TRANSFORMER["num_layers"]
LAYOUTS = {"paper": paper_layout, "released": released_layout, "t3": t3_layout}
"""Name → settings of the attention for a dense model of so many layers."""

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
"""The linear layers of Wan's blocks: both attentions and the feed-forward network."""


@dataclass(frozen=True)
class LoraOptions:
    """A low-rank adapter beside weights that stay.

    Attributes:
        rank: Of the update of each layer.
        alpha: The update is multiplied by alpha / rank; None takes the rank.
        targets: Ends of the names of the linear layers that get one.
    """

    rank: int = 32
    alpha: int | None = None
    targets: tuple[str, ...] = LORA_TARGETS


@dataclass(frozen=True)
class WanOptions:
    """What is trained, from what, on which clips.

    Attributes:
        data: Folder that `dataset` wrote.
        base: Dense Wan in diffusers' layout, a folder or a repository; None as in `from_wan`.
        start: UltraGen weights to start from: the released ones, or those of an earlier training;
            None converts the dense model.
        layout: One of `LAYOUTS` for a dense model that is converted; None takes the paper's.
        windows: K at the size that is trained, for a dense model that is converted.
        resolution: Takes only clips of as many pixels as this resolution has, of any shape.
        num_frames: Cuts longer clips to so many frames; None takes them whole.
        trained: All weights; those alone that UltraGen adds; or a low-rank adapter.
        lora: The adapter.
        batch_size: Clips of a batch in each process.
        recomputed: Blocks that are computed again in the backward pass: all, every second, none.
        on_host: Whether what these keep lies in the host's memory.
        sample_prompts: What sample sheets show.
        sample_steps: Denoising steps of their clips.
    """

    data: Path
    base: str | None = None
    start: str | None = None
    layout: str | None = None
    windows: int = 4
    resolution: str | None = None
    num_frames: int | None = None
    trained: Trained = "all"
    lora: LoraOptions = LoraOptions()
    batch_size: int = 1
    recomputed: Recomputed = "all"
    on_host: bool = False
    sample_prompts: tuple[str, ...] = PROMPTS[:SUGGESTED]
    sample_steps: int = 20


@dataclass(frozen=True)
class WanPreset:
    """The paper's settings for one size (appendix C).

    Attributes:
        resolution: Name of the size.
        num_frames: Frames of a clip.
        batch: Clips of a step, over all processes.
        learning_rate: Of AdamW, for all weights.
        epochs: Passes over the clips.
    """

    resolution: str
    num_frames: int
    batch: int = 32
    learning_rate: float = 1e-4
    epochs: float = 50


PRESETS: Mapping[str, WanPreset] = {
    "wan-1080p": WanPreset("1080p", 81),
    "wan-4k": WanPreset("4k", 29),
}
