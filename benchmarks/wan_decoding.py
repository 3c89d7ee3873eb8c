"""How fast Wan's autoencoder decodes, in how much memory, and what its convolutions cost.

    python benchmarks/wan_decoding.py --json wan_decoding.json

Random weights and latents: cost does not depend on their values. First single causal convolutions
in three layouts at the sizes of the last blocks, then whole decodings by diffusers and by
`sampling.wan_decoding`, then how far these differ. `--only` runs one part. On a CPU, only `--tiny`
is quick.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional as F

from ultragen.ops.rms_silu import rms_silu
from ultragen.sampling.wan_decoding import decode_in_strips, decode_wan
from ultragen.sampling.wan_strips import Clip, Strips

Row = dict[str, Any]
CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
# Channels, rows and columns of the last three blocks at 1088×1920.
CONVOLUTIONS = ((96, 1088, 1920), (192, 544, 960), (384, 272, 480))
CLIPS = (Clip(1088, 1920, 21), Clip(2176, 3840, 8))
COMPARED = Clip(1088, 1920, 5)
TINY_CONVOLUTIONS = ((8, 16, 24), (16, 8, 12))
TINY_CLIPS = (Clip(128, 64, 3),)


# Convolutions of 2 + 4 frames


def conv3d(x: Tensor, weight: Tensor) -> Tensor:
    """With the channels first as diffusers calls it, with the channels last as we do."""
    return F.conv3d(x, weight, padding=(0, 1, 1))


def three_planes(x: Tensor, weight: Tensor) -> Tensor:
    """One conv2d for each of the three moments, on frames with their channels last, added."""
    out = None
    for i in range(3):
        frames = x[:, :, i : x.shape[2] - 2 + i].transpose(1, 2).flatten(0, 1)
        part = F.conv2d(frames, weight[:, :, i], padding=1)
        out = part if out is None else out.add_(part)
    return out.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


VARIANTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], torch.memory_format]] = {
    "conv3d, channels first": (conv3d, torch.contiguous_format),
    "conv3d, channels last": (conv3d, torch.channels_last_3d),
    "three conv2d, channels last": (three_planes, torch.channels_last_3d),
}


def finish() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, warmed up."""
    times = []
    for _ in range(repeats + 2):
        finish()
        start = perf_counter()
        call()
        finish()
        times.append(perf_counter() - start)
    return median(times[2:])


def peak_of(call: Callable[[], object]) -> int:
    """Bytes that a call takes at most beside what is there."""
    if not CUDA:
        call()
        return 0
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    finish()
    return torch.cuda.max_memory_allocated() - before


def measure_convolutions(arguments: argparse.Namespace) -> Iterator[Row]:
    for channels, height, width in TINY_CONVOLUTIONS if arguments.tiny else CONVOLUTIONS:
        x = torch.randn(1, channels, 6, height, width, device=DEVICE, dtype=DTYPE)
        weight = torch.randn(channels, channels, 3, 3, 3, device=DEVICE, dtype=DTYPE)
        weight /= (27 * channels) ** 0.5
        operations = 2 * 27 * channels**2 * 4 * height * width
        expected = None
        for name, (convolve, layout) in VARIANTS.items():
            x, weight = (value.contiguous(memory_format=layout) for value in (x, weight))
            out = convolve(x, weight)
            expected = out if expected is None else expected
            error = (out - expected).abs().max().item()
            del out
            peak = peak_of(lambda x=x, weight=weight, call=convolve: call(x, weight))
            time = seconds(
                lambda x=x, weight=weight, call=convolve: call(x, weight), arguments.repeats
            )
            yield {
                "what": f"{channels} channels, {height}×{width}, {name}",
                "seconds": time,
                "teraflops": operations / time / 1e12,
                "peak_gib": peak / 2**30,
                "difference": error,
            }
        yield measure_activation(x, arguments.repeats)


def measure_activation(x: Tensor, repeats: int) -> Row:
    """The normalisation before a convolution: four of six frames are read and written."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

    norm = WanRMS_norm(x.shape[1], images=False).to(DEVICE, DTYPE).requires_grad_(False)
    out = torch.empty_like(x)
    time = seconds(lambda: rms_silu(norm, x[:, :, 2:], out[:, :, 2:]), repeats)
    size = x[:, :, 2:].numel() * x.element_size()
    what = f"{x.shape[1]} channels, {x.shape[3]}×{x.shape[4]}, normalisation and SiLU"
    return {"what": what, "seconds": time, "gigabytes_per_second": 2 * size / time / 1e9}


# Whole decodings


def build(tiny: bool) -> AutoencoderKLWan:
    """Wan2.1's autoencoder, or a toy, with random weights."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return AutoencoderKLWan(base_dim=8 if tiny else 96).to(DTYPE).eval()


def latents(clip: Clip) -> Tensor:
    shape = (1, 16, clip.latent_frames, clip.height // 8, clip.width // 8)
    return torch.randn(shape, device=DEVICE, dtype=DTYPE)


def consume(pieces: Iterator[Tensor], started: float) -> tuple[float, int]:
    """Decodes all; seconds until the first piece, and the number of pieces."""
    first, number = 0.0, 0
    for piece in pieces:
        del piece
        if not number:
            finish()
            first = perf_counter() - started
        number += 1
    return first, number


def measure_clips(arguments: argparse.Namespace) -> Iterator[Row]:
    vae = build(arguments.tiny)
    # Libraries and kernels come first, and are not part of any row.
    warm = latents(Clip(64, 64, 2))
    vae.decode(warm)
    consume(decode_wan(vae, warm), 0.0)
    for clip in TINY_CLIPS if arguments.tiny else CLIPS:
        z = latents(clip)
        for name in ("ours", "plain"):
            what = f"{clip.height}×{clip.width}×{4 * clip.latent_frames - 3}, {name}"
            try:
                yield {"what": what, **measure_clip(vae, z, name)}
            except torch.OutOfMemoryError:
                yield {"what": what, "out_of_memory": True}


def measure_clip(vae: AutoencoderKLWan, z: Tensor, name: str) -> Row:
    """One decoding, without warm-up at its own size."""
    row: Row = {}
    start = perf_counter()

    def decode() -> None:
        nonlocal start
        start = perf_counter()
        if name == "plain":
            vae.decode(z, return_dict=False)
        else:
            row["seconds_to_first"], row["pieces"] = consume(decode_wan(vae, z), start)

    peak = peak_of(decode)
    return {"seconds": perf_counter() - start, "peak_gib": peak / 2**30, **row}


def measure_difference(arguments: argparse.Namespace) -> Iterator[Row]:
    """Ours against diffusers', and for comparison each against diffusers' in float32."""
    vae = build(arguments.tiny)
    clip = TINY_CLIPS[0] if arguments.tiny else COMPARED
    z = latents(clip)
    plain = vae.decode(z, return_dict=False)[0]
    for strips in (Strips(), Strips(4, 1)):
        ours = torch.cat(list(decode_in_strips(vae, z, strips)), dim=2)
        what = f"in {strips.number} strips against diffusers', spread {plain.std().item():.3f}"
        yield {"what": what, **differences(ours, plain)}
    small = z[..., : max(8, z.shape[-2] // 4), : max(8, z.shape[-1] // 4)].contiguous()
    found = {
        "ours": torch.cat(list(decode_in_strips(vae, small, Strips(2))), dim=2),
        "diffusers'": vae.decode(small, return_dict=False)[0],
    }
    exact = vae.float().decode(small.float(), return_dict=False)[0]
    for name, clip_of in found.items():
        yield {
            "what": f"a corner, {name} against float32",
            **differences(clip_of, exact),
        }
    ours = torch.cat(list(decode_in_strips(vae, small.float(), Strips(2))), dim=2)
    yield {"what": "a corner, both in float32", **differences(ours, exact)}


def differences(one: Tensor, other: Tensor) -> Row:
    apart = (one.float() - other.float()).abs()
    return {"difference": apart.max().item(), "mean_difference": apart.mean().item()}


PARTS = {
    "convolutions": measure_convolutions,
    "clips": measure_clips,
    "difference": measure_difference,
}


@torch.no_grad()
def run(parts: dict[str, Callable[[argparse.Namespace], Iterator[Row]]], what: str) -> None:
    """Runs the parts that the command line names, and prints their rows."""
    parser = argparse.ArgumentParser(description=what.split("\n")[0])
    parser.add_argument("--only", choices=list(parts))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="File that gets all rows.")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    card = torch.cuda.get_device_name() if CUDA else "cpu"
    print(f"{card}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {DTYPE}")
    rows: list[Row] = []
    for name in [arguments.only] if arguments.only else parts:
        for row in parts[name](arguments):
            rows.append(row)
            values = (
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row.items()
                if key != "what"
            )
            print(f"{row['what']}: {', '.join(values)}", flush=True)
            if arguments.json:
                content = {"card": card, "torch": torch.__version__, "rows": rows}
                arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    run(PARTS, __doc__)
