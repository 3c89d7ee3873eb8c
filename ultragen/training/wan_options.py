"""Settings of `train wan`: layouts, presets, what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..model import wan_1_3b
from ..presets import (
    PROMPTS,
    RESOLUTIONS,
    SUGGESTED,
    WAN,
    WAN_SHIFT,
    check_aspect,
    check_guidance_scale,
    check_num_frames,
    check_shift,
)

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


def dense_layout(layers: int) -> dict[str, Any]:
    """All layers full, as dense Wan has them."""
    return {"full_attention_layers": tuple(range(layers))}


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


@dataclass(frozen=True, kw_only=True)
class WanTraining:
    """What all trainings of the 1.3B model can be asked for.

    Attributes:
        base: Dense Wan in diffusers' layout, a folder or a repository; None as in `from_wan`.
        start: UltraGen weights to start from: the released ones, or those of an earlier training.
        trained: All weights; those alone that UltraGen adds; or a low-rank adapter.
        lora: The adapter.
        batch_size: Clips of a batch in each process.
        recomputed: Blocks that are computed again in the backward pass: all, every second, none.
        on_host: Whether what these keep lies in the host's memory.
        sample_prompts: What sample sheets show.
    """

    base: str | None = None
    start: str | None = None
    trained: Trained = "all"
    lora: LoraOptions = LoraOptions()
    batch_size: int = 1
    recomputed: Recomputed = "all"
    on_host: bool = False
    sample_prompts: tuple[str, ...] = PROMPTS[:SUGGESTED]

    def check(self) -> None:
        """Checks that settings go together.

        Raises:
            ValueError: if they don't.
        """
        if self.on_host and self.recomputed == "none":
            raise ValueError(
                "Only what is computed again can be kept in the host's memory: leave out "
                "--keep-on-host, or recompute all or half of the blocks."
            )


@dataclass(frozen=True, kw_only=True)
class WanOptions(WanTraining):
    """What is trained, from what, on which clips. Without `start`, the dense model is converted.

    Attributes:
        data: Folder that `dataset` wrote.
        layout: One of `LAYOUTS` for a dense model that is converted; None takes the paper's.
        windows: K at the size that is trained, for a dense model that is converted.
        resolution: Takes only clips of as many pixels as this resolution has, of any shape.
        num_frames: Cuts longer clips to so many frames; None takes them whole.
        sample_steps: Denoising steps of the clips of sample sheets.
    """

    data: Path
    layout: str | None = None
    windows: int = 4
    resolution: str | None = None
    num_frames: int | None = None
    sample_steps: int = 20

    def check(self) -> None:
        super().check()
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"Unknown layout {self.layout!r}: choose from {', '.join(LAYOUTS)}.")


@dataclass(frozen=True, kw_only=True)
class WanDistillOptions(WanTraining):
    """What is distilled to how many steps. Without `start`, it is the dense model.

    Attributes:
        prompts: Text file with a prompt a line, which trajectories are made of.
        steps: In which the student samples; the teacher takes two for each.
        guidance_scale: Of the teacher; 1 for one that has no guidance.
        negative_prompt: What its guidance leads away from; None takes the model's.
        shift: Of the noise levels, the teacher's and the student's.
        resolution: Name of the clips' size; None takes the model's.
        aspect: Their shape, one of `ASPECTS`.
        num_frames: Of a clip; None takes the model's.
    """

    prompts: Path
    steps: int = 8
    guidance_scale: float = WAN.guidance_scale
    negative_prompt: str | None = None
    shift: float = WAN_SHIFT
    resolution: str | None = None
    aspect: str = "16:9"
    num_frames: int | None = None

    def check(self) -> None:
        super().check()
        if self.steps < 1:
            raise ValueError(f"A student samples in one step or more, not {self.steps}.")
        check_shift(self.shift)
        check_aspect(self.aspect)
        if check_guidance_scale(self.guidance_scale) < 1:
            raise ValueError(
                f"A teacher's guidance is 1, for none, or more, not {self.guidance_scale:g}."
            )
        if self.resolution is not None and self.resolution not in RESOLUTIONS:
            raise ValueError(
                f"resolution must be one of {', '.join(RESOLUTIONS)}: {self.resolution!r}."
            )
        if self.num_frames is not None:
            check_num_frames(self.num_frames)


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
