"""This machine: its GPU or CPU, the precision that it computes in, its memory, and how torch's
allocator uses that. What models need of it stands in `estimates.memory`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from platform import release
from typing import Any, Literal

GIB = 2**30
RESERVE = GIB
"""Bytes of a GPU that are left to its driver and libraries, which take about half of it
(docs/hardware.md), and to what lies between tensors."""

AUTO_MEMORY = 20 * GIB  # a card of 24 GB, less what its driver keeps
ZERO_GPU_MEMORY = 48 * 10**9  # of `large`, whatever the card it is half of says

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
