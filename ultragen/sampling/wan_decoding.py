"""Exact decoding by Wan's autoencoder, latent frame by latent frame and in strips of rows.

The result is that of `AutoencoderKLWan.decode`, up to rounding. Its modules give the weights; the
order of the work is ours: nothing is joined in time, and whatever follows the first upsampling is
computed strip by strip, each with the rows beyond it that its convolutions see. `strips` counts the
memory.

Frames are kept with their channels last, as the fast convolutions of GPUs take them, and each
causal convolution finds its input and the two frames before it in one tensor: what is normalised
is written there, and nothing is padded or copied.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice, tee
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..hardware import RESERVE, free_memory, is_out_of_memory
from ..ops.rms_silu import rms_silu
from .wan_strips import Clip, Strips, choose_strips, shorter_strips

LAST = torch.channels_last_3d
KEPT = 2  # frames that a causal convolution sees before each one

Past = dict[nn.Module, Tensor]
"""The last frames of each convolution's input, b c 2 h w."""


@apply_forward_hook  # moves an autoencoder that is offloaded to its device, as for `vae.decode`
def decode_wan(vae: AutoencoderKLWan, z: Tensor) -> Iterator[Tensor]:
    """Wan's decoding, exact where the autoencoder is not set to tiles.

    Args:
        vae: Wan's autoencoder. Another variant than Wan2.1's, one with `enable_tiling()`, and one
            whose weights come to the device layer by layer decode as diffusers has it, at once.
        z: Its own latents b z t h w.

    Returns:
        Pieces of the clip in the order of time, b 3 t 8h 8w in [-1, 1]: 1 frame, then 4 each.
    """
    if vae.use_tiling or not streams(vae, z):
        return iter(vae.decode(z, return_dict=False))
    scale = vae.config.scale_factor_spatial
    batch, _, frames, height, width = z.shape
    clip = Clip(height * scale, width * scale, frames, z.element_size(), batch)
    memory = min(free_memory(z.device) - RESERVE, clip.usual_memory)
    return decode_patiently(vae, z, clip, choose_strips(clip, memory))


def decode_patiently(
    vae: AutoencoderKLWan, z: Tensor, clip: Clip, strips: Strips
) -> Iterator[Tensor]:
    """Decodes, and where the device runs out of memory begins again in shorter strips: what is
    counted leaves out the work space of convolutions, which depends on the card, and other programs
    may have taken some meanwhile. Each piece is given once.

    Raises:
        RuntimeError: The shortest strips do not fit either; torch's own, see `is_out_of_memory`.
    """
    given = 0
    while True:
        pieces = decode_in_strips(vae, z, strips)
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
        strips = shorter_strips(clip, strips, free_memory(z.device) - RESERVE)
        warnings.warn(
            f"Decoding ran out of memory: it begins again in {strips.number} strips.", stacklevel=2
        )


def streams(vae: AutoencoderKLWan, z: Tensor) -> bool:
    """Whether this module knows the variant, and the weights lie ready for computing."""
    if vae.config.is_residual or vae.config.patch_size is not None:
        return False
    return all(p.device == z.device and p.dtype == z.dtype for p in vae.decoder.parameters())


@torch.no_grad()
def decode_in_strips(vae: AutoencoderKLWan, z: Tensor, strips: Strips) -> Iterator[Tensor]:
    """Decodes in given strips; see `decode_wan`."""
    ranges = strips.ranges(2 * z.shape[-2])
    # What one strip has read is held until the last one has.
    features = tee(coarse_features(vae, z), len(ranges))
    streams = [
        fine_strip(vae.decoder, source, strip)
        for source, strip in zip(features, ranges, strict=True)
    ]
    del features
    for i in range(len(streams) - strips.resident):
        streams[i] = iter(list(streams[i]))
    for parts in zip(*streams, strict=True):
        yield torch.cat(parts, dim=-2)


def coarse_features(vae: AutoencoderKLWan, z: Tensor) -> Iterator[Tensor]:
    """The whole frame up to the first upsampling, for each latent frame: b c t 2h 2w."""
    decoder, past = vae.decoder, Past()
    for i in range(z.shape[2]):
        x = vae.post_quant_conv(z[:, :, i : i + 1])
        x = convolve(decoder.conv_in, gather(decoder.conv_in, x, past))
        middle = decoder.mid_block
        x = residual(middle.resnets[0], x, past)
        for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
            if attention is not None:
                x = attention(x)
            x = residual(block, x, past)
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


def residual(block: Any, x: Tensor, past: Past) -> Tensor:
    """Two causal convolutions around the identity."""
    h = gather(block.conv1, x, past, block.norm1)
    h = convolve(block.conv1, h)
    h = gather(block.conv2, h, past, block.norm2)
    h = convolve(block.conv2, h)
    return h.add_(block.conv_shortcut(x))


def gather(conv: Any, x: Tensor, past: Past, norm: Any = None) -> Tensor:
    """The frames that a causal convolution sees: the last two and the new ones, b c (2+t) h w,
    normalised and activated where there is a norm."""
    b, c, t, h, w = x.shape
    frames = empty((b, c, KEPT + t, h, w), x)
    frames[:, :, :KEPT] = past.pop(conv, 0)  # zeros come before the clip
    if norm is None:
        frames[:, :, KEPT:] = x
    else:
        rms_silu(norm, x, frames[:, :, KEPT:])
    past[conv] = frames[:, :, -KEPT:].clone(memory_format=LAST)
    return frames


def convolve(conv: nn.Conv3d, frames: Tensor) -> Tensor:
    """A causal convolution of gathered frames, b c (2+t) h w → b c t h w."""
    _, rows, columns = conv.kernel_size
    padding = (0, rows // 2, columns // 2)
    return F.conv3d(frames, conv.weight, conv.bias, padding=padding)


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAST)
