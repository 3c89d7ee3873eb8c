"""Which objective, scale of latents and optimiser learn fastest: a small transformer on rendered
frames, the same data, noise and order for every variant. Runs on a CPU.

    python benchmarks/objectives.py --frames 1600 --steps 150

Prints the mean squared error of the velocity on held-out frames at five noise levels. Rows of one
scale of the latents can be compared with each other; two scales are two different tasks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from ultragen.model.autoencoder import CompactAutoencoder
from ultragen.presets import EMBEDDED_MODEL
from ultragen.sampling import flow
from ultragen.training.data import SceneStream, caption_variants, tokenize
from ultragen.training.muon import RATE, MuonAdamW, hidden_matrices
from ultragen.training.stages.transformer_stage import TextToLatents
from ultragen.training.vocabulary import build_text_encoder
from ultragen.world.renderer import render

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)
HELD_OUT = 48
BATCH = 16
SHIFT = 3.0


@torch.no_grad()
def rendered(number: int) -> tuple[Tensor, Tensor]:
    """The autoencoder's own latents of frames, n c 1 h w, and token ids n wordings length."""
    vae = CompactAutoencoder.from_pretrained(EMBEDDED_MODEL / "vae").float()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer")
    stream, latents, ids = SceneStream(0, 0), [], []
    for _ in range(0, number, 8):
        scenes = stream.take(8)
        video = render(scenes, 288, 512, 1) * 2 - 1
        latents.append(vae.encode(video).latent_dist.mode())
        ids += [tokenize(tokenizer, caption_variants(scene, 3)) for scene in scenes]
    return torch.cat(latents), torch.stack(ids)


def scaled(latents: Tensor, scale: str) -> Tensor:
    """Latents of mean 0: each channel with deviation 1, or all with one deviation."""
    axes = (0, 2, 3, 4)
    latents = latents - latents.mean(axes, keepdim=True)
    return latents / (latents.std(axes, keepdim=True) if scale == "channel" else latents.std())


def power(latents: Tensor) -> str:
    """How the latents' power is spread over frequencies in space, in cycles a latent position."""
    rows, columns = latents.shape[-2:]
    spectrum = torch.fft.fft2(latents[:, :, 0], norm="ortho").abs().square().mean((0, 1))
    waves = torch.maximum(
        torch.fft.fftfreq(rows).abs()[:, None], torch.fft.fftfreq(columns).abs()[None]
    )
    slow, fast = (
        spectrum[chosen].sum() / spectrum.sum() for chosen in (waves < 0.07, waves >= 0.25)
    )
    return f"{slow:.0%} of the power below 0.07 cycles, {fast:.0%} from 0.25 on"


def build(channels: int) -> TextToLatents:
    """A transformer of 3.5 million parameters with its text encoder."""
    transformer = WanTransformer3DModel(
        num_attention_heads=3, attention_head_dim=64, in_channels=channels, out_channels=channels,
        text_dim=256, ffn_dim=640, num_layers=6, rope_max_seq_len=512,
    )  # fmt: skip
    return TextToLatents(build_text_encoder(400, 256), transformer)


def error(
    model: nn.Module, clean: Tensor, noise: Tensor, sigma: Tensor, ids: Tensor,
    meaning: tuple[flow.Prediction, float],
) -> Tensor:  # fmt: skip
    """Mean squared error of the velocity."""
    weight = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - weight) * clean + weight * noise
    velocity = flow.to_velocity(model(noisy, sigma * 1000, ids), noisy, sigma, *meaning)
    return F.mse_loss(velocity, noise - clean)


def batches(latents: Tensor, ids: Tensor, chance: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    """Clean latents, noise, noise levels and token ids, the same for every variant."""
    while True:
        index = torch.randint(len(latents), (BATCH,), generator=chance)
        wording = torch.randint(ids.shape[1], (BATCH,), generator=chance)
        sigma = flow.shifted(torch.randn(BATCH, generator=chance).sigmoid(), SHIFT)
        clean = latents[index]
        yield clean, torch.randn(clean.shape, generator=chance), sigma, ids[index, wording]


def train(
    latents: Tensor,
    ids: Tensor,
    meaning: tuple[flow.Prediction, float],
    optimizer: Callable,
    rate: float,
    steps: int,
) -> list[float]:
    """Errors at `LEVELS` after training with warm-up and a linear fall."""
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(1)
    model = build(latents.shape[1])
    update = optimizer(model, rate)
    held, held_ids = latents[-HELD_OUT:], ids[-HELD_OUT:, 0]
    noise = torch.randn(held.shape, generator=chance)
    for step, batch in zip(
        range(steps), batches(latents[:-HELD_OUT], ids[:-HELD_OUT], chance), strict=False
    ):
        for group in update.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 30) * min(1, (steps - step) / (0.3 * steps))
        error(model, *batch, meaning).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        update.zero_grad()
    with torch.no_grad():
        return [
            error(model, held, noise, torch.full((HELD_OUT,), level), held_ids, meaning).item()
            for level in LEVELS
        ]


def adamw(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)


def muon(model: nn.Module, rate: float, factor: float = RATE) -> torch.optim.Optimizer:
    hidden = hidden_matrices(model)
    inside = set(map(id, hidden))
    others = [p for p in model.parameters() if id(p) not in inside]
    return MuonAdamW(hidden, others, lr=rate, factor=factor, betas=(0.9, 0.99), weight_decay=0.01)


def slow_muon(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return muon(model, rate, 1.5)


# Scale of the latents, what the output means, standard deviation in it, optimiser.
VARIANTS: tuple[tuple[str, flow.Prediction, float, Callable], ...] = (
    ("channel", "velocity", 1.0, adamw),
    ("channel", "preconditioned", 0.5, adamw),
    ("all", "velocity", 1.0, adamw),
    ("all", "preconditioned", 1.0, adamw),
    ("all", "preconditioned", 0.5, adamw),
    ("all", "preconditioned", 0.25, adamw),
    ("all", "preconditioned", 0.5, slow_muon),
    ("all", "preconditioned", 0.5, muon),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=1600)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    raw, ids = rendered(max(arguments.frames, HELD_OUT + BATCH))
    print(f"torch {torch.__version__}, {len(raw)} frames, {arguments.steps} steps", flush=True)
    deviations = sorted(raw.std((0, 2, 3, 4)).tolist())
    print("deviations of the channels:", " ".join(f"{x:.1f}" for x in deviations))
    for scale in ("channel", "all"):
        print(f"scale {scale}: {power(scaled(raw, scale))}")
    print("| scale | output | data std | optimiser | " + " | ".join(map(str, LEVELS)) + " | mean |")
    print("|---" * (len(LEVELS) + 5) + "|")
    for scale, kind, data_std, optimizer in VARIANTS:
        began = time.perf_counter()
        errors = train(
            scaled(raw, scale), ids, (kind, data_std), optimizer, arguments.rate, arguments.steps
        )
        cells = [*(f"{x:.3f}" for x in errors), f"{sum(errors) / len(errors):.3f}"]
        print(
            f"| {scale} | {kind} | {data_std} | {optimizer.__name__} | " + " | ".join(cells) + " |",
            f" {time.perf_counter() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
