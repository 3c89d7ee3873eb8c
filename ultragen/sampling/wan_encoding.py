"""Exact encoding by Wan's autoencoder, latent frame by latent frame and in strips of rows.

The result is that of `AutoencoderKLWan.encode`, up to rounding. Whatever comes before the third
halving of the rows is computed strip by strip, each with the rows beyond it that its convolutions
see; the rest, whose attention sees the whole frame, on what the strips end with.
`wan_encoding_strips` counts the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .wan_blocks import KEPT, LAST, Past, convolve, empty, gather, middle, residual
from .wan_encoding_strips import EncodedClip
from .wan_streaming import patiently, side_by_side, streams
from .wan_strips import Strips

Group = Sequence[Tensor]
"""Pictures that one latent frame is made of: the clip's first, or four, each b 3 1 h w."""

ALIGNED = 8  # channels: fast convolutions take them in multiples of 16 bytes


@apply_forward_hook  # moves an autoencoder that is offloaded to its device, as for `vae.encode`
@torch.no_grad()
def encode_wan(vae: AutoencoderKLWan, frames: Tensor | Iterable[Tensor]) -> Tensor:
    """Wan's encoding, exact where the autoencoder is not set to tiles.

    Args:
        vae: Wan's autoencoder. Another variant than Wan2.1's, one with `enable_tiling()`, and one
            whose weights come to the device layer by layer encode as diffusers has it, at once.
        frames: The pictures of a clip, b 3 t h w in [-1, 1], whole or as consecutive pieces of any
            lengths; 4n + 1 of them. They are kept where they are, and come to the autoencoder's
            device and type a few at a time.

    Returns:
        The mean of the posterior b z n+1 h/8 w/8, on the autoencoder's device: its own latents,
        which `model.autoencoder.normalize` brings to unit variance. As in diffusers, rows and
        columns beyond a multiple of 8 are left out.

    Raises:
        ValueError: The frames are no such pictures.
    """
    pieces = [frames] if isinstance(frames, Tensor) else list(frames)
    number = check_pieces(pieces)
    device, dtype = vae.device, vae.dtype
    if vae.use_tiling or not streams(vae, vae.encoder, device, dtype):
        whole = torch.cat(pieces, dim=2)
        # Weights that come when they are needed have no device of their own before.
        whole = whole if device.type == "meta" else whole.to(device, dtype)
        return vae.encode(whole).latent_dist.mode()
    groups = group_pictures(pieces)
    batch, _, _, height, width = pieces[0].shape
    clip = EncodedClip(height, width, (number + 3) // 4, dtype.itemsize, batch)
    latents = patiently(
        lambda strips: encode_in_strips(vae, groups, strips), clip, device, "Encoding"
    )
    return torch.cat(list(latents), dim=2)


def check_pieces(pieces: Sequence[Tensor]) -> int:
    """The number of frames; ValueError where they can't be encoded."""
    if not pieces:
        raise ValueError("There are no frames to encode: give 4n + 1 of them.")
    shapes = {(*piece.shape[:2], *piece.shape[3:]) for piece in pieces}
    if len(shapes) > 1 or pieces[0].ndim != 5 or pieces[0].shape[1] != 3:
        found = ", ".join(str(tuple(piece.shape)) for piece in pieces[:4])
        raise ValueError(f"Pieces of a clip must be b 3 t h w, alike but for t, not {found}.")
    if not all(piece.is_floating_point() for piece in pieces):
        raise ValueError(f"Pictures must be numbers in [-1, 1], not {pieces[0].dtype}.")
    number = sum(piece.shape[2] for piece in pieces)
    if number % 4 != 1:
        below = max(1, number - (number - 1) % 4)
        raise ValueError(
            f"The number of frames must be 4n + 1, not {number}: choose {below} or {below + 4}."
        )
    return number


def group_pictures(pieces: Sequence[Tensor]) -> Sequence[Group]:
    """Views of the pictures, b 3 1 h w each: the first alone, then four at a time."""
    singles = [piece[:, :, i : i + 1] for piece in pieces for i in range(piece.shape[2])]
    return [singles[:1]] + [singles[i : i + 4] for i in range(1, len(singles), 4)]


@torch.no_grad()
def encode_in_strips(
    vae: AutoencoderKLWan, groups: Sequence[Group], strips: Strips
) -> Iterator[Tensor]:
    """Encodes in given strips, latent frame by latent frame; see `encode_wan`."""
    encoder = vae.encoder
    rows = groups[0][0].shape[-2] >> len(levels(encoder)[:-2])
    parts = [fine_strip(encoder, groups, strip) for strip in strips.ranges(rows)]
    yield from means(vae, side_by_side(parts, strips.resident))


def levels(encoder: Any) -> list[list[Any]]:
    """The encoder's blocks by their size, the largest first: residual ones, and what makes the
    frame smaller for the next level."""
    found: list[list[Any]] = [[]]
    for block in encoder.down_blocks:
        found[-1].append(block)
        if isinstance(block, WanResample):
            found.append([])
    return found


def fine_strip(encoder: Any, groups: Sequence[Group], strip: range) -> Iterator[Tensor]:
    """All levels but the last two on some rows, for each latent frame.

    Every level takes its rows with those beyond them that all later convolutions see. Where these
    are not the frame's own end, zeros are padded that do not belong there; what they spoil is cut
    off before the frame is made smaller.

    Args:
        encoder: Wan's.
        groups: The clip's pictures.
        strip: Rows of the result.

    Yields:
        b c t (rows of the strip) w, 2 frames for four pictures.
    """
    past, fine, height = Past(), levels(encoder)[:-2], groups[0][0].shape[-2]
    taken, halved = rows_seen(fine, strip, height)
    pictures = widened(taken[0], 1, height)
    for group in groups:
        x = read(group, pictures, encoder.conv_in.weight)
        x = convolve_pictures(encoder.conv_in, gather(encoder.conv_in, x, past))
        x = cut(x, pictures, taken[0])
        for (*resnets, downsampling), rows, kept in zip(fine, taken, halved, strict=False):
            for resnet in resnets:
                x = residual(resnet, x, past)
            x = downsample(downsampling, cut(x, rows, kept), past)
        yield x


def rows_seen(
    fine: Sequence[Sequence[Any]], strip: range, height: int
) -> tuple[list[range], list[range]]:
    """Rows that a strip is made of.

    Args:
        fine: The levels that are computed in strips.
        strip: Rows of what they end with.
        height: Rows of the pictures.

    Returns:
        Of each level the rows that its residual blocks take, and after the last one's the strip
        itself; and of these rows those that are then made half as many.
    """
    taken, halved = [strip], list[range]()
    for i, blocks in reversed(list(enumerate(fine))):
        # Three rows for each of the result's, one of them shared with the next.
        kept = range(2 * taken[0].start, min(2 * taken[0].stop + 1, height >> i))
        halved.insert(0, kept)
        taken.insert(0, widened(kept, 2 * (len(blocks) - 1), height >> i))
    return taken, halved


def widened(rows: range, beyond: int, height: int) -> range:
    return range(max(0, rows.start - beyond), min(height, rows.stop + beyond))


def cut(x: Tensor, rows: range, kept: range) -> Tensor:
    """Of a strip's rows those that are to be kept."""
    return x[..., kept.start - rows.start : kept.stop - rows.start, :]


def read(group: Group, rows: range, like: Tensor) -> Tensor:
    """Some rows of the pictures, b 3 t h w, on the device and in the type of another tensor."""
    b, c, _, _, w = group[0].shape
    # From pinned memory the copy need not wait for what is being computed.
    pinned = like.is_cuda and group[0].device.type == "cpu"
    shape, device = (b, c, len(group), len(rows), w), group[0].device
    pictures = torch.empty(shape, dtype=like.dtype, device=device, pin_memory=pinned)
    for i, picture in enumerate(group):
        pictures[:, :, i : i + 1] = picture[..., rows.start : rows.stop, :]
    return pictures.to(like.device, non_blocking=pinned)


def means(vae: AutoencoderKLWan, features: Iterable[Tensor]) -> Iterator[Tensor]:
    """The last two levels and what follows on whole frames, for each latent frame: b z 1 h w."""
    encoder, past = vae.encoder, Past()
    [*resnets, downsampling], last = levels(encoder)[-2:]
    for x in features:
        for resnet in resnets:
            x = residual(resnet, x, past)
        x = downsample(downsampling, x, past)
        for resnet in last:
            x = residual(resnet, x, past)
        x = middle(encoder.mid_block, x, past)
        x = convolve(encoder.conv_out, gather(encoder.conv_out, x, past, encoder.norm_out))
        mean, _ = vae.quant_conv(x).chunk(2, dim=1)
        yield mean


# Blocks


def convolve_pictures(conv: nn.Conv3d, frames: Tensor) -> Tensor:
    """The first convolution, b 3 (2+t) h w → b c t h w: the three pictures that each frame sees as
    one of nine channels, and zeros up to a number that suits fast convolutions, which three
    channels do not."""
    b, _, t, _, _ = frames.shape
    seen = torch.stack([frames[:, :, i : i + t - KEPT] for i in range(KEPT + 1)], dim=1)
    seen = rearrange(seen, "b k c t h w -> (b t) (k c) h w")
    weight = rearrange(conv.weight, "d c k h w -> d (k c) h w")
    zeros = (0, 0, 0, 0, 0, -seen.shape[1] % ALIGNED)
    seen, weight = (
        F.pad(x, zeros).contiguous(memory_format=torch.channels_last) for x in (seen, weight)
    )
    return rearrange(F.conv2d(seen, weight, conv.bias, padding=1), "(b t) d h w -> b d t h w", b=b)


def downsample(resample: Any, x: Tensor, past: Past) -> Tensor:
    """Half the rows and columns, and where the time is halved one of two frames."""
    x = shrink(resample.resample[1], x)
    if resample.mode != "downsample3d":
        return x
    conv = resample.time_conv
    before, past[conv] = past.get(conv), x[:, :, -1:].clone(memory_format=LAST)
    if before is None:  # The clip's first frame stays one frame.
        return x
    return F.conv3d(torch.cat([before, x], dim=2), conv.weight, conv.bias, stride=conv.stride)


def shrink(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of every second row and column, a frame at a time. It sees one row and column
    beyond; where a strip does not hold them, the frame ends, and they are zeros."""
    b, _, t, h, w = x.shape
    out = empty((b, conv.out_channels, t, h // 2, w // 2), x)
    beyond = (0, 1 - w % 2, 0, 1 - h % 2)
    for i in range(t):
        out[:, :, i] = conv(F.pad(x[:, :, i], beyond))
    return out
