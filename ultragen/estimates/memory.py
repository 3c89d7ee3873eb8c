"""What the 1.3B model needs of a GPU's memory, and which clips fit.

Sizes of weights and working memory are counted, the autoencoder's in `sampling.wan_strips`. What is
only counted may be off: a run that still meets the memory's end says what to change.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

from ..hardware import GIB, RESERVE, Hardware, gib
from ..model import wan_1_3b
from ..presets import RESOLUTIONS, WAN
from ..sampling.wan_strips import Clip

Placement = Literal["whole", "in turn"]

MARGIN = 2 * GIB  # free beside the model's own clip, for longer ones: chosen, not measured

# The widest point of a layer is its feed-forward network: its hidden state before and after the
# activation, beside the stream, its norm in float32 and the result. With the fused kernels it is
# less, 17,921 (measured, docs/hardware.md); what the allocator keeps beside it is a fifth more, and
# next to nothing where its segments can grow. The attention of T3-Video's layers is no wider: with
# the stream, its norm, queries, keys and values, as they are and in windows, and two results, ten
# widths are alive, 15,360 values.
VALUES_PER_TOKEN = 2 * wan_1_3b.TRANSFORMER["ffn_dim"] + 4 * wan_1_3b.WIDTH
GROWING_VALUES_PER_TOKEN = 18_200


def values_per_token(hardware: Hardware) -> int:
    """What a forward pass of the 1.3B model takes beside its weights; the fused kernels, which
    take less, compute in bfloat16 alone."""
    growing = hardware.growing and hardware.bfloat16
    return GROWING_VALUES_PER_TOKEN if growing else VALUES_PER_TOKEN


@dataclass(frozen=True)
class Weights:
    """Sizes of a pipeline's parts, in parameters or bytes."""

    text_encoder: int
    transformer: int
    base_transformer: int
    vae: int

    @property
    def together(self) -> int:
        return sum(astuple(self))

    def scaled(self, factor: int) -> Weights:
        return Weights(*(factor * size for size in astuple(self)))


WAN_PARAMETERS = Weights(**wan_1_3b.PARAMETERS)


def weights_of(pipe: Any) -> Weights:
    """Bytes of a pipeline's parts."""

    def size(part: Any) -> int:
        # What is quantised lies in buffers.
        tensors = (*part.parameters(), *part.buffers()) if part else ()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    return Weights(
        size(pipe.text_encoder),
        size(pipe.transformer),
        size(pipe.base_transformer),
        size(pipe.vae),
    )


@dataclass(frozen=True)
class Memory:
    """A GPU's memory with the 1.3B model in it.

    Attributes:
        free: Bytes without the model.
        weights: Bytes of its parts.
        bytes_per_value: Bytes of a value in the type that is computed in.
        values_per_token: Values that a forward pass takes for each token beside its weights.
    """

    free: int
    weights: Weights
    bytes_per_value: int = 2
    values_per_token: int = VALUES_PER_TOKEN

    def peak(self, placement: Placement, height: int, width: int, frames: int) -> int:
        """Bytes that a clip can't be made without; decoding takes more where more are free."""
        tokens = (frames + 3) // 4 * (height // 16) * (width // 16)
        layers = tokens * self.values_per_token * self.bytes_per_value
        decoding = Clip(height, width, (frames + 3) // 4, self.bytes_per_value).least_memory
        sizes = self.weights
        if placement == "whole":
            return RESERVE + sizes.together + max(layers, decoding)
        transformer = max(sizes.transformer, sizes.base_transformer)
        return RESERVE + max(sizes.text_encoder, transformer + layers, sizes.vae + decoding)

    @property
    def smallest(self) -> int:
        """Bytes without which not even the smallest clip can be made."""
        size = RESOLUTIONS["544p"]
        return self.peak("in turn", size.height, size.width, 5)

    def place(self) -> Placement:
        """All parts on the GPU where the model's own clip fits beside them, else one at a time,
        in the order in which they are needed.

        Raises:
            ValueError: if not even that is enough.
        """
        size = RESOLUTIONS[WAN.resolution]
        needed = self.peak("whole", size.height, size.width, WAN.num_frames)
        if needed + MARGIN <= self.free:  # a card that it just fits would end longer clips
            return "whole"
        if self.smallest <= self.free:
            return "in turn"
        raise ValueError(
            f"The model needs {gib(self.smallest)} of GPU memory at least, and {gib(self.free)} "
            "are free: take a larger GPU, or the embedded model, ULTRAGEN_MODEL=embedded."
        )

    def check(
        self, placement: Placement, resolution: str, frames: int, aspect: str = "16:9"
    ) -> None:
        """Checks that a clip fits.

        Raises:
            ValueError: if it does not, with smaller ones that do.
        """
        size = RESOLUTIONS[resolution].shaped(aspect)
        needed = self.peak(placement, size.height, size.width, frames)
        if needed <= self.free:
            return
        smaller = " or ".join(self.smaller(placement, resolution, frames, aspect))
        smaller = smaller or "the embedded model"
        raise ValueError(
            f"{resolution} with {frames} frames needs about {gib(needed)} of GPU memory, and "
            f"{gib(self.free)} are there: choose {smaller}."
        )

    def clearly_smaller(
        self, placement: Placement, resolution: str, frames: int, aspect: str = "16:9"
    ) -> list[str]:
        """What to try after a clip that should have fitted did not: clips that take a fifth less of
        what is not weights."""
        size = RESOLUTIONS[resolution].shaped(aspect)
        peak = self.peak(placement, size.height, size.width, frames)
        least = self.peak(placement, 16, 16, 1)
        return replace(self, free=int(least + 0.8 * (peak - least))).smaller(
            placement, resolution, frames, aspect
        )

    def smaller(
        self, placement: Placement, resolution: str, frames: int, aspect: str = "16:9"
    ) -> list[str]:
        """The longest clip of this size that fits, and the largest smaller one."""
        names = list(RESOLUTIONS)
        sizes = {name: size.shaped(aspect) for name, size in RESOLUTIONS.items()}
        below = [name for name in reversed(names) if names.index(name) < names.index(resolution)]
        fewer = range(frames - 4, 4, -4)
        found = []
        for options in (
            [(resolution, count) for count in fewer],
            [(name, count) for name in below for count in (frames, *fewer)],
        ):
            fits = (
                f"{name} with {count} frames"
                for name, count in options
                if self.peak(placement, sizes[name].height, sizes[name].width, count) <= self.free
            )
            found += [next(fits, "")]
        return [text for text in found if text]
