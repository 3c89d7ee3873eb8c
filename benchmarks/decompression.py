"""Which way of computing the depthwise 3 × 3 × 3 convolution is fastest, forward and backward.

The convolution that ends a compressed branch is small arithmetic on much memory, and libraries
differ by an order of magnitude in how they lay it out. Every variant takes and gives b t h w d and
is checked against the first one before it is timed.

    python benchmarks/decompression.py --batch 32 --frames 5 --height 17 --width 30 --dim 320
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

Variant = Callable[[Tensor, Tensor], Tensor]


def channels_last(x: Tensor, weight: Tensor) -> Tensor:
    """conv3d on the view that the token order gives."""
    volume = rearrange(x, "b t h w d -> b d t h w")
    out = F.conv3d(volume, weight, padding=1, groups=x.shape[-1])
    return rearrange(out, "b d t h w -> b t h w d")


def channels_first(x: Tensor, weight: Tensor) -> Tensor:
    """conv3d on a copy in channels-first order."""
    volume = rearrange(x, "b t h w d -> b d t h w").contiguous()
    out = F.conv3d(volume, weight, padding=1, groups=x.shape[-1])
    return rearrange(out, "b d t h w -> b t h w d").contiguous()


def three_planes(x: Tensor, weight: Tensor) -> Tensor:
    """Three depthwise conv2d on frames, one for each moment, added with a shift in time."""
    frames = rearrange(x, "b t h w d -> (b t) d h w")
    earlier, now, later = (
        rearrange(
            F.conv2d(frames, weight[:, :, i], padding=1, groups=x.shape[-1]),
            "(b t) d h w -> b t h w d",
            t=x.shape[1],
        )
        for i in range(3)
    )
    none = (0, 0) * 3
    return now + F.pad(earlier[:, :-1], (*none, 1, 0)) + F.pad(later[:, 1:], (*none, 0, 1))


def shifts(x: Tensor, weight: Tensor) -> Tensor:
    """The sum of 27 shifted products, in token order throughout."""
    t, h, w = x.shape[1:4]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1, 1, 1))
    taps = weight[:, 0].permute(1, 2, 3, 0)
    out = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            for k in range(3):
                out = out + padded[:, i : i + t, j : j + h, k : k + w] * taps[i, j, k]
    return out


def variants(device: str) -> dict[str, Variant]:
    found: dict[str, Variant] = {
        "conv3d channels-last": channels_last,
        "conv3d channels-first": channels_first,
        "three conv2d": three_planes,
        "27 shifts": shifts,
    }
    if device == "cuda":
        from ultragen.ops.triton_depthwise import depthwise_conv3d

        found["Triton"] = depthwise_conv3d
        found["27 shifts, compiled"] = torch.compile(shifts, dynamic=False)
        found["three conv2d, compiled"] = torch.compile(three_planes, dynamic=False)
    return found


def seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Median seconds of a call, warmed up."""
    times = []
    for _ in range(repeats + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        start = perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("batch", 1), ("frames", 5), ("height", 17), ("width", 30), ("dim", 320)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    sizes = [getattr(arguments, name) for name in ("batch", "frames", "height", "width", "dim")]
    x = torch.randn(sizes, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(sizes[-1], 1, 3, 3, 3, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn(sizes, device=device, dtype=dtype)
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(f"{card}, torch {torch.__version__}, {sizes}, {dtype}")
    expected = channels_last(x.float(), weight.float())
    for name, call in variants(device).items():

        def both(call: Variant = call) -> None:
            torch.autograd.grad(call(x, weight), (x, weight), gradient)

        start = perf_counter()
        error = (call(x, weight).float() - expected).abs().max() / expected.abs().max()
        both()
        first = perf_counter() - start
        with torch.no_grad():
            forward = seconds(lambda call=call: call(x, weight), device, arguments.repeats)
        whole = seconds(both, device, arguments.repeats)
        print(
            f"{name:24} forward {1e3 * forward:8.2f} ms   with backward {1e3 * whole:8.2f} ms   "
            f"first call {first:5.1f} s   error {error:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
