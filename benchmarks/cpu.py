"""What bfloat16 and fused operators save of the embedded model's forward pass on this CPU.

    python benchmarks/cpu.py
    python benchmarks/cpu.py --height 1088 --width 1920 --repeats 8

All ways run in turn, so that a machine that is busy for a while is so for each of them. Weights are
random. Errors are those of the output, relative to float64.
"""

from __future__ import annotations

import argparse
import platform
from contextlib import nullcontext
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from ultragen.hardware import fast_bfloat16, has_amx
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.ops.dispatch import use
from ultragen.training.build import EMBEDDED_SIZE, TINY_SIZE, build_pipeline
from ultragen.world.captions import vocabulary

WAYS = [(dtype, fused) for dtype in (torch.float32, torch.bfloat16) for fused in (False, True)]


def inputs(transformer: UltraGenTransformer3DModel, height: int, width: int) -> dict[str, Tensor]:
    """Random latents of five moments, and text."""
    config = transformer.config
    return {
        "hidden_states": torch.randn(1, config.in_channels, 5, height // 16, width // 16),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 64, config.text_dim),
    }


def run(
    transformer: UltraGenTransformer3DModel, given: dict[str, Tensor], fused: bool
) -> tuple[Tensor, float]:
    """The output and the seconds of a pass."""
    cast = {name: x.to(transformer.dtype) for name, x in given.items()}
    with nullcontext() if fused else use("plain"):
        began = perf_counter()
        out = transformer(**cast, windows="auto").sample
        return out, perf_counter() - began


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--height", type=int, default=544)
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="A toy model.")
    options = parser.parse_args()
    torch.manual_seed(0)
    size = TINY_SIZE if options.tiny else EMBEDDED_SIZE
    model = build_pipeline(size, vocabulary()).transformer.eval()
    for parameter in model.parameters():  # fresh weights leave much out
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    given = inputs(model, options.height, options.width)
    expected, _ = run(model.double(), given, fused=False)
    models = {dtype: type(model).from_config(model.config).eval() for dtype, _ in WAYS}
    for dtype, copy in models.items():
        copy.load_state_dict(model.state_dict())
        copy.to(dtype)
    seconds: dict[tuple[torch.dtype, bool], list[float]] = {way: [] for way in WAYS}
    errors = {}
    for _ in range(options.repeats + 1):
        for dtype, fused in WAYS:
            out, taken = run(models[dtype], given, fused)
            seconds[dtype, fused].append(taken)
            errors[dtype, fused] = ((out - expected).norm() / expected.norm()).item()
    print(
        f"{options.height}×{options.width}, 17 frames; {torch.get_num_threads()} threads of "
        f"{platform.processor() or platform.machine()}, AMX {'yes' if has_amx() else 'no'}, "
        f"fast in bfloat16 {'yes' if fast_bfloat16() else 'no'}, torch {torch.__version__}"
    )
    first = median(seconds[WAYS[0]][1:])
    for dtype, fused in WAYS:
        taken = median(seconds[dtype, fused][1:])
        print(
            f"{str(dtype).removeprefix('torch.'):9} {'fused' if fused else 'plain'}  "
            f"{taken:7.3f} s  {first / taken:5.2f}×  error {errors[dtype, fused]:.1e}"
        )


if __name__ == "__main__":
    main()
