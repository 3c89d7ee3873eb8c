"""How fast Wan's autoencoder encodes, and in how much memory.

    python benchmarks/wan_encoding.py --json wan_encoding.json

Random weights and pictures: cost does not depend on their values. First the convolution that takes
the pictures, in three forms; then whole clips, by diffusers at once, by `sampling.wan_encoding` and
by diffusers in tiles; then how far a corner's latents lie from those in float32. Peaks are with the
weights; ours reads the pictures from the host, diffusers has them on the device. `--only` runs one
part. On a CPU, only `--tiny` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from time import perf_counter

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional as F
from wan_decoding import DEVICE, DTYPE, Row, build, differences, finish, peak_of, run, seconds

from ultragen.files import first_line
from ultragen.sampling.wan_blocks import convolve
from ultragen.sampling.wan_encoding import (
    convolve_pictures,
    encode_in_strips,
    encode_wan,
    group_pictures,
)
from ultragen.sampling.wan_encoding_strips import EncodedClip
from ultragen.sampling.wan_strips import Strips

CLIPS = (EncodedClip(1088, 1920, 21), EncodedClip(2176, 3840, 8))
TINY_CLIPS = (EncodedClip(128, 64, 3),)
CORNER = EncodedClip(272, 480, 5)
WHOLE, OURS, TILED = "diffusers', whole", "ours", "diffusers', in tiles"
PIECE = 16  # frames that a reader may give at once


def pictures(clip: EncodedClip) -> list[Tensor]:
    """The frames of a clip on the host, in pieces."""
    frames = range(0, 4 * clip.latent_frames - 3, PIECE)
    lengths = [min(PIECE, frames.stop - start) for start in frames]
    shape = (1, 3, clip.height, clip.width)
    return [
        (2 * torch.rand(*shape[:2], n, *shape[2:], device=DEVICE, dtype=DTYPE) - 1).cpu()
        for n in lengths
    ]


def measure_convolution(arguments: argparse.Namespace) -> Iterator[Row]:
    """Of three channels, for the four pictures of a latent frame and the two before them."""
    clip = TINY_CLIPS[0] if arguments.tiny else CLIPS[0]
    conv = build(arguments.tiny).encoder.conv_in
    frames = torch.randn(1, 3, 6, clip.height, clip.width, device=DEVICE, dtype=DTYPE)
    last = frames.contiguous(memory_format=torch.channels_last_3d)
    calls = {
        "conv3d, channels first": lambda: F.conv3d(
            frames, conv.weight, conv.bias, padding=(0, 1, 1)
        ),
        "conv3d, channels last": lambda: convolve(conv, last),
        "conv2d of three pictures, channels last": lambda: convolve_pictures(conv, last),
    }
    expected = calls["conv3d, channels first"]()
    for name, call in calls.items():
        row = differences(call(), expected)
        peak = peak_of(call) / 2**30
        yield {"what": name, "seconds": seconds(call, arguments.repeats), "peak_gib": peak, **row}


def measure_clips(arguments: argparse.Namespace) -> Iterator[Row]:
    vae = build(arguments.tiny)
    for clip in TINY_CLIPS if arguments.tiny else CLIPS:
        pieces, whole, taken = pictures(clip), None, 0.0
        for name in (WHOLE, OURS, TILED):
            row: Row = {"what": f"{clip.height}×{clip.width}×{4 * clip.latent_frames - 3}, {name}"}
            try:
                # Libraries and kernels come first, and are not part of any row.
                encode(vae, [pieces[0][:, :, :5]], name)
                latents, row["seconds"], row["peak_gib"] = encode(vae, pieces, name)
            except RuntimeError as error:  # of memory, or tensors too large to be indexed
                yield {**row, "failed": first_line(error)}
                continue
            if name == WHOLE:
                whole, taken = latents, row["seconds"]
                row["spread"] = latents.float().std().item()
            elif whole is not None:
                row["of_the_whole's_seconds"] = row["seconds"] / taken
                row |= differences(latents, whole)
            yield row


def encode(vae: AutoencoderKLWan, pieces: list[Tensor], name: str) -> tuple[Tensor, float, float]:
    """Latents on the host, the seconds of encoding, and its peak in GiB with the weights."""
    start, latents = 0.0, torch.empty(0)

    def call() -> None:
        nonlocal start, latents
        whole = None if name == OURS else torch.cat(pieces, dim=2).to(DEVICE)
        finish()
        start = perf_counter()
        latents = encode_wan(vae, pieces) if whole is None else vae.encode(whole).latent_dist.mode()

    vae.use_tiling = name == TILED
    peak = peak_of(call)
    taken = perf_counter() - start
    vae.use_tiling = False
    weights = sum(p.numel() * p.element_size() for p in vae.parameters())
    return latents.cpu(), taken, (peak + weights) / 2**30


def measure_difference(arguments: argparse.Namespace) -> Iterator[Row]:
    """Ours and diffusers' against diffusers' in float32, and ours in strips against ours whole."""
    vae = build(arguments.tiny)
    pieces = pictures(TINY_CLIPS[0] if arguments.tiny else CORNER)
    groups = group_pictures(pieces)
    strips = torch.cat(list(encode_in_strips(vae, groups, Strips(4, 0))), dim=2)
    x = torch.cat(pieces, dim=2).to(DEVICE)
    found = {"ours": encode_wan(vae, pieces), "diffusers'": vae.encode(x).latent_dist.mode()}
    yield {"what": "a corner, ours in 4 strips and in one", **differences(strips, found["ours"])}
    exact = vae.float().encode(x.float()).latent_dist.mode()
    for name, latents in found.items():
        yield {"what": f"a corner, {name} against float32", **differences(latents, exact)}
    ours = encode_wan(vae, x.float())
    yield {"what": "a corner, both in float32", **differences(ours, exact)}


PARTS = {
    "convolution": measure_convolution,
    "clips": measure_clips,
    "difference": measure_difference,
}


if __name__ == "__main__":
    run(PARTS, __doc__)
