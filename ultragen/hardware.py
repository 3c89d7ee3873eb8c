"""What this machine can hold: its GPU, that GPU's memory, and what the 1.3B model needs of it.

Sizes of weights and working memory are counted, the autoencoder's in `strips`. What is only counted
may be off: a run that still meets the memory's end says what to change.
"""

from __future__ import annotations

import os
import sys
from dataclasses import astuple, dataclass, replace
from platform import release
from typing import Any, Literal

from .presets import RESOLUTIONS, WAN
from .strips import GIB, Clip

Placement = Literal["whole", "in turn"]

AUTO_MEMORY = 20 * GIB  # a card of 24 GB, less what its driver keeps
ZERO_GPU_MEMORY = 48 * 10**9  # of `large`, whatever the card it is half of says
MARGIN = 2 * GIB
RESERVE = GIB  # of the libraries, and of what lies between tensors

# The widest point of a layer is its feed-forward network: its hidden state before and after the
# activation, beside the stream, its norm in float32 and the result. With the fused kernels it is
# less, 17,921 (measured, docs/hardware.md); what the allocator keeps beside it is a fifth more, and
# next to nothing where its segments can grow.
VALUES_PER_TOKEN = 2 * 8960 + 4 * 1536
GROWING_VALUES_PER_TOKEN = 18_200
GROWING, FIXED = "expandable_segments:True", "expandable_segments:False"


@dataclass(frozen=True)
class Hardware:
    """What computes.

    Attributes:
        device: `cuda` or `cpu`.
        name: For people.
        memory: Bytes that are free on the GPU.
        bfloat16: Whether to compute in it: GPUs before Ampere and most CPUs are slower then.
        zero_gpu: Whether the GPU is only lent for each run.
        growing: Whether the allocator's segments can grow, see `let_segments_grow`.
    """

    device: Literal["cuda", "cpu"]
    name: str = "this machine's CPU"
    memory: int = 0
    bfloat16: bool = False
    zero_gpu: bool = False
    growing: bool = False

    @property
    def dtype(self) -> str:
        """Type to compute in. Without bfloat16 it is float32: the weights were trained in
        bfloat16, and what they give may exceed float16's largest number."""
        return "bfloat16" if self.bfloat16 else "float32"

    @property
    def bytes_per_value(self) -> int:
        return 2 if self.bfloat16 else 4

    @property
    def values_per_token(self) -> int:
        """What a forward pass of the 1.3B model takes beside its weights; the fused kernels, which
        take less, compute in bfloat16 alone."""
        return GROWING_VALUES_PER_TOKEN if self.growing and self.bfloat16 else VALUES_PER_TOKEN


DTYPES = ("auto", "float32", "bfloat16")


def find_hardware() -> Hardware:
    """Looks at this machine's first GPU, or at its CPU.

    The environment variable ULTRAGEN_DTYPE, one of `DTYPES`, overrules what is found.

    Raises:
        ValueError: if the variable is none of them.
    """
    asked = os.environ.get("ULTRAGEN_DTYPE") or "auto"
    if asked not in DTYPES:
        raise ValueError(f"ULTRAGEN_DTYPE must be one of {', '.join(DTYPES)}, not {asked!r}.")
    found = _find_hardware()
    return found if asked == "auto" else replace(found, bfloat16=asked == "bfloat16")


def _find_hardware() -> Hardware:
    import torch

    if not torch.cuda.is_available():
        return Hardware("cpu", bfloat16=fast_bfloat16())
    zero_gpu = bool(os.environ.get("SPACES_ZERO_GPU"))
    growing = not zero_gpu and let_segments_grow()
    card = torch.cuda.get_device_properties(0)
    # There the GPU may not be touched before a run, which then has half of it.
    lent = min(card.total_memory, ZERO_GPU_MEMORY) if zero_gpu else None
    memory = lent or torch.cuda.mem_get_info(0)[0]
    return Hardware("cuda", card.name, memory, card.major >= 8, zero_gpu, growing)


def let_segments_grow() -> bool:
    """Lets torch's allocator grow its segments: it keeps less beside the tensors then, and longer
    clips fit (docs/hardware.md). What the environment says of the allocator holds.

    Returns:
        Whether they grow: not where CUDA is in use already, nor where its driver can't do it.
    """
    import torch

    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if name in os.environ:
            return GROWING in os.environ[name]
    # Drivers for Windows' Linux were known to fail at it later than at the first allocation.
    if torch.cuda.is_initialized() or sys.platform != "linux" or "microsoft" in release().lower():
        return False
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = GROWING
    try:
        torch.empty(2**21, device="cuda")
    except RuntimeError:  # virtual GPUs, small boards
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = FIXED
        _set_allocator(FIXED)
        return False
    return True


def _set_allocator(settings: str) -> None:
    """What the environment says comes too late once the allocator has been asked for memory."""
    import torch

    own = "_accelerator_setAllocatorSettings"  # of newer releases, which warn of the other one
    set_it = getattr(torch._C, own, None) or torch.cuda.memory._set_allocator_settings
    set_it(settings)


def has_amx() -> bool:
    """Whether this CPU has units that multiply matrices in bfloat16, Intel's AMX, ten times as fast
    as in float32."""
    return _cpu_has("_is_amx_tile_supported")


def fast_bfloat16() -> bool:
    """Whether this CPU is faster in bfloat16: with AMX, or with AVX-512's products of bfloat16,
    which take half the time of float32's. On other CPUs bfloat16 is the slower one."""
    return has_amx() or _cpu_has("_is_avx512_bf16_supported")


def _cpu_has(question: str) -> bool:
    import torch

    # Asked rather than timed: the same machine shall always make the same clip. The functions are
    # not public, and the public one is younger than the oldest torch that we run on.
    return getattr(torch.cpu, question, lambda: False)()


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


WAN_PARAMETERS = Weights(5_680_910_336, 1_696_002_112, 1_418_996_800, 126_892_531)


def weights_of(pipe: Any) -> Weights:
    """Bytes of a pipeline's parts."""

    def size(part: Any) -> int:
        return sum(p.numel() * p.element_size() for p in part.parameters()) if part else 0

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
        bytes_per_value: Of the type that is computed in.
        values_per_token: What a forward pass takes beside its weights.
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

    def check(self, placement: Placement, resolution: str, frames: int) -> None:
        """Checks that a clip fits.

        Raises:
            ValueError: if it does not, with smaller ones that do.
        """
        size = RESOLUTIONS[resolution]
        needed = self.peak(placement, size.height, size.width, frames)
        if needed <= self.free:
            return
        smaller = " or ".join(self.smaller(placement, resolution, frames)) or "the embedded model"
        raise ValueError(
            f"{resolution} with {frames} frames needs about {gib(needed)} of GPU memory, and "
            f"{gib(self.free)} are there: choose {smaller}."
        )

    def clearly_smaller(self, placement: Placement, resolution: str, frames: int) -> list[str]:
        """What to try after a clip that should have fitted did not: clips that take a fifth less of
        what is not weights."""
        size = RESOLUTIONS[resolution]
        peak = self.peak(placement, size.height, size.width, frames)
        least = self.peak(placement, 16, 16, 1)
        return replace(self, free=int(least + 0.8 * (peak - least))).smaller(
            placement, resolution, frames
        )

    def smaller(self, placement: Placement, resolution: str, frames: int) -> list[str]:
        """The longest clip of this size that fits, and the largest smaller one."""
        names = list(RESOLUTIONS)
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
                if self.peak(placement, RESOLUTIONS[name].height, RESOLUTIONS[name].width, count)
                <= self.free
            )
            found += [next(fits, "")]
        return [text for text in found if text]


def free_memory(device: Any) -> float:
    """Bytes that a torch device has left now; the CPU's are not counted."""
    import torch

    if device.type != "cuda":
        return float("inf")
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


NO_MEMORY = ("out of memory", "unable to find an engine")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. Not all of torch's tell by their class: a
    convolution whose work space does not fit says that it finds no engine."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB"
