"""Exact decoding by Wan's autoencoder, latent frame by latent frame and in strips of rows.

The result is that of `AutoencoderKLWan.decode`, up to rounding. Its modules give the weights; the
order of the work is ours: nothing is joined in time, and whatever follows the first upsampling is
computed strip by strip, each with the rows beyond it that its convolutions see. `wan_strips` counts
the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import tee
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.exchange import Member
from ..ops.exchange import gather as gather_rows
from .wan_blocks import Past, convolve, empty, gather, middle, residual
from .wan_streaming import patiently, side_by_side, streams
from .wan_strips import Clip, Strips


@apply_forward_hook  # moves an autoencoder that is offloaded to its device, as for `vae.decode`
def decode_wan(
    vae: AutoencoderKLWan, z: Tensor, group: dist.ProcessGroup | None = None
) -> Iterator[Tensor]:
    """Wan's decoding, exact where the autoencoder is not set to tiles.

    Args:
        vae: Wan's autoencoder. Another variant than Wan2.1's, one with `enable_tiling()`, and one
            whose weights come to the device layer by layer decode as diffusers has it, at once.
        z: Its own latents b z t h w.
        group: Processes that each decode some rows of the clip; all get the pieces.

    Returns:
        Pieces of the clip in the order of time, b 3 t 8h 8w in [-1, 1]: 1 frame, then 4 each.
    """
    if vae.use_tiling or not streams(vae, vae.decoder, z.device, z.dtype):
        return iter(vae.decode(z, return_dict=False))
    scale = vae.config.scale_factor_spatial
    batch, _, frames, height, width = z.shape
    clip = Clip(height * scale, width * scale, frames, z.element_size(), batch)
    if group is None:
        compute = partial(decode_in_strips, vae, z)
    else:
        compute = partial(decode_together, vae, z, group)
    return patiently(compute, clip, z.device, "Decoding")


def decode_together(
    vae: AutoencoderKLWan, z: Tensor, group: dist.ProcessGroup, strips: Strips
) -> Iterator[Tensor]:
    """Decodes some of the strips in each process; see `decode_wan`. All compute what comes before
    the first upsampling, where each place sees the whole frame."""
    member = Member.of(group)
    shares = Strips(member.processes).ranges(2 * z.shape[-2])
    sizes = [4 * len(share) for share in shares]
    number = -(-strips.number // member.processes)
    own = Strips(number, min(number, strips.resident))
    pieces = decode_in_strips(vae, z, own, shares[member.rank])
    return (gather_rows(piece, sizes, -2, member) for piece in pieces)


@torch.no_grad()
def decode_in_strips(
    vae: AutoencoderKLWan, z: Tensor, strips: Strips, rows: range | None = None
) -> Iterator[Tensor]:
    """Decodes in given strips all rows, or some, counted where the first upsampling has left them;
    see `decode_wan`."""
    rows = rows or range(2 * z.shape[-2])
    ranges = [rows[strip.start : strip.stop] for strip in strips.ranges(len(rows))]
    # What one strip has read is held until the last one has.
    features = tee(coarse_features(vae, z), len(ranges))
    parts = [
        fine_strip(vae.decoder, source, strip)
        for source, strip in zip(features, ranges, strict=True)
    ]
    del features
    yield from side_by_side(parts, strips.resident)


def coarse_features(vae: AutoencoderKLWan, z: Tensor) -> Iterator[Tensor]:
    """The whole frame up to the first upsampling, for each latent frame: b c t 2h 2w."""
    decoder, past = vae.decoder, Past()
    for i in range(z.shape[2]):
        x = vae.post_quant_conv(z[:, :, i : i + 1])
        x = convolve(decoder.conv_in, gather(decoder.conv_in, x, past))
        x = middle(decoder.mid_block, x, past)
        [block, *_] = decoder.up_blocks
        for resnet in block.resnets:
            x = residual(resnet, x, past)
        yield upsample(block.upsamplers[0], x, past, first=i == 0)


def fine_strip(decoder: Any, features: Iterable[Tensor], strip: range) -> Iterator[Tensor]:
    """The rest of the decoder on some rows, for each latent frame.

    Every block takes its rows with those beyond them that all later convolutions see. Where these
    are not the frame's own end, zeros are padded that do not belong there; what they spoil is cut
    off before the next block.

    Args:
        decoder: Wan's.
        features: The whole frame, b c t h w.
        strip: Rows of the features.

    Yields:
        b 3 t (4 × rows of the strip) 4w in [-1, 1].
    """
    past, blocks = Past(), list(zip(decoder.up_blocks[1:], halos(decoder), strict=True))
    for number, x in enumerate(features):
        top, bottom, height, start = strip.start, strip.stop, x.shape[-2], 0
        for block, halo in blocks:
            first_row, last_row = max(0, top - halo), min(height, bottom + halo)
            x = x[..., first_row - start : last_row - start, :]
            start = first_row
            for resnet in block.resnets:
                x = residual(resnet, x, past)
            if block.upsamplers is not None:
                x = upsample(block.upsamplers[0], x, past, first=number == 0)
                top, bottom, height, start = 2 * top, 2 * bottom, 2 * height, 2 * start
        x = gather(decoder.conv_out, x, past, decoder.norm_out)
        x = convolve(decoder.conv_out, x)
        yield x[..., top - start : bottom - start, :].clamp(-1, 1)


def halos(decoder: Any) -> list[int]:
    """Rows beyond a strip that the blocks behind the first one take, in rows of their inputs."""
    rows, found = 1, []  # the last convolution's
    for block in reversed(decoder.up_blocks[1:]):
        if block.upsamplers is not None:
            rows = (rows + 1 + 1) // 2  # the convolution behind the upsampling; half, rounded up
        rows += 2 * len(block.resnets)
        found.append(rows)
    return found[::-1]


# Blocks


def upsample(resample: Any, x: Tensor, past: Past, first: bool) -> Tensor:
    """Twice the rows and columns, and of most frames two."""
    # The clip's first frame stays one frame, and the convolution in time never sees it.
    if resample.mode == "upsample3d" and not first:
        x = convolve(resample.time_conv, gather(resample.time_conv, x, past))
        x = rearrange(x, "b (j c) t h w -> b (t j) h w c", j=2)
        x = rearrange(x, "b t h w c -> b c t h w")
    return enlarge(resample.resample[1], x)


def enlarge(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Twice the rows and columns and a convolution, a frame at a time: between the two the frame
    has twice the channels of the result."""
    b, _, t, h, w = x.shape
    out = empty((b, conv.out_channels, t, 2 * h, 2 * w), x)
    for i in range(t):
        out[:, :, i] = conv(F.interpolate(x[:, :, i], scale_factor=2, mode="nearest-exact"))
    return out
