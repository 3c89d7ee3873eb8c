"""How strips of rows go through time in Wan's autoencoder, and what follows where memory ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from ..hardware import RESERVE, free_memory, is_out_of_memory
from .wan_strips import Clip, Strips, choose_strips, shorter_strips


def streams(
    vae: AutoencoderKLWan, part: nn.Module, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether our order of the work knows the variant, and the part's weights lie ready for
    computing."""
    if vae.config.is_residual or vae.config.patch_size is not None:
        return False
    if device.type == "meta":  # where weights seem to be that come when they are needed
        return False
    return all(p.device == device and p.dtype == dtype for p in part.parameters())


def side_by_side(strips: Sequence[Iterator[Tensor]], resident: int) -> Iterator[Tensor]:
    """Whole frames from their strips, of which the last `resident` ones go through time together;
    those before are computed to the end of the clip first, one after the other."""
    strips = list(strips)
    for i in range(len(strips) - resident):
        strips[i] = iter(list(strips[i]))
    for parts in zip(*strips, strict=True):
        yield torch.cat(parts, dim=-2)


def patiently(
    compute: Callable[[Strips], Iterator[Tensor]], clip: Clip, device: torch.device, what: str
) -> Iterator[Tensor]:
    """Computes in strips that fit, and where the device runs out of memory begins again in shorter
    ones: what is counted leaves out the work space of convolutions, which depends on the card, and
    other programs may have taken some meanwhile. Each piece is given once.

    Args:
        compute: Gives the pieces, the same ones for all strips.
        clip: What is computed.
        device: Where.
        what: Its name, for the warning.

    Raises:
        RuntimeError: The shortest strips do not fit either; torch's own, see `is_out_of_memory`.
    """
    strips = choose_strips(clip, min(free_memory(device) - RESERVE, clip.usual_memory))
    given = 0
    while True:
        pieces = compute(strips)
        try:
            for piece in islice(pieces, given, None):
                yield piece
                given += 1
            return
        except RuntimeError as error:
            if not is_out_of_memory(error) or shorter_strips(clip, strips) == strips:
                raise
        # Here the traceback, which holds what was computed, is gone.
        del pieces
        strips = shorter_strips(clip, strips, free_memory(device) - RESERVE)
        warnings.warn(
            f"{what} ran out of memory: it begins again in {strips.number} strips.", stacklevel=2
        )
