"""Training on MP4 files beside training on the renderer: the same small model, steps and seed, once
on scenes as they are rendered, once on clips that were written as MP4 files and read again. Runs on
a CPU.

    python benchmarks/training_from_files.py --clips 200 --steps 300

Prints the loss of both on held-out scenes, with the same noise, and how far they are apart.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ultragen.dataset.shards import LatentDataset
from ultragen.model.autoencoder import CompactAutoencoder
from ultragen.presets import EMBEDDED_MODEL
from ultragen.training.assemble import put_together
from ultragen.training.build import EMBEDDED_SIZE, ModelSize, build_base_transformer
from ultragen.training.clip_sizes import ClipSize
from ultragen.training.data import ClipMaker, SceneStream
from ultragen.training.loop import Trainer
from ultragen.training.stage import TrainingConfig
from ultragen.training.stages.flow_matching import FlowMatchingStage
from ultragen.training.vocabulary import build_text_encoder, build_tokenizer
from ultragen.world.captions import vocabulary

SIZE = ClipSize(128, 192, num_frames=5, batch_size=8, pool=200, first=200, chunk=8)
MODEL = replace(EMBEDDED_SIZE, heads=2, layers=4, ffn_dim=384, text_dim=64)
HELD_OUT, DRAWS = 64, 8  # scenes, and times that noise is drawn for them


def main(arguments: list[str]) -> float:
    """Trains both; returns the loss from files over the loss from the renderer."""
    parser = argparse.ArgumentParser(description="Training on files beside the renderer.")
    parser.add_argument("--clips", type=int, default=SIZE.pool, help="in the files")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        work = Path(name)
        dataset = make_dataset(work, options.clips)
        rendered, stored = (
            train(work / kind, data, options.steps, options.seed)
            for kind, data in (("rendered", None), ("stored", dataset))
        )
    ratio = stored / rendered
    print(f"| from | held-out loss after {options.steps} steps |\n|---|---|")
    print(f"| the renderer | {rendered:.4f} |\n| {options.clips} MP4 files | {stored:.4f} |")
    print(f"Ratio {ratio:.4f}, torch {torch.__version__}")
    return ratio


def make_dataset(work: Path, clips: int) -> LatentDataset:
    """Renders scenes into MP4 files with captions, and encodes what is read from these."""
    files, data = str(work / "clips"), str(work / "data")
    size = f"{SIZE.width}x{SIZE.height}", str(SIZE.num_frames)
    bucket = f"{SIZE.height}x{SIZE.width}x{SIZE.num_frames}"
    for words in (
        ("scenes", "--count", str(clips), "--resolution", size[0], "--frames", size[1], "--out",
         files),
        ("dataset", files, "--out", data, "--model", "embedded", "--bucket", bucket),
    ):  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "ultragen", *words], check=True, stdout=subprocess.DEVNULL
        )
    return LatentDataset(data)


def build_stage(size: ModelSize, dataset: LatentDataset | None, seed: int) -> FlowMatchingStage:
    """A fresh dense model with the shipped autoencoder."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(vocabulary(), size.text_length)
    pipeline = put_together(
        size,
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(len(tokenizer), size.text_dim),
        vae=CompactAutoencoder.from_pretrained(EMBEDDED_MODEL / "vae").float(),
        transformer=build_base_transformer(size),
    )
    return FlowMatchingStage(pipeline, (SIZE,), train_text=True, seed=seed, dataset=dataset)


def train(out: Path, dataset: LatentDataset | None, steps: int, seed: int) -> float:
    """Trains a model; returns its loss on held-out scenes."""
    stage = build_stage(MODEL, dataset, seed)
    config = TrainingConfig(
        out=out, max_steps=steps, learning_rate=1e-3, sample_minutes=1e9, log_steps=50, seed=seed
    )
    trainer = Trainer(stage, config)
    trainer.write_samples = lambda: None  # type: ignore[method-assign]
    trainer.train()
    return trainer.with_average(lambda: held_out_loss(stage))


def held_out_loss(stage: FlowMatchingStage) -> float:
    """Mean loss on scenes that neither saw."""
    stream = SceneStream(63, start=0)  # another process's
    make = ClipMaker(
        stream, stage.pipeline.vae, stage.pipeline.tokenizer, SIZE.height, SIZE.width,
        SIZE.num_frames, HELD_OUT,
    )  # fmt: skip
    latents, ids = make()
    torch.manual_seed(0)
    losses = [
        stage.loss(stage.model, (SIZE, None, latents.float(), ids[:, 0]))["loss"]
        for _ in range(DRAWS)
    ]
    return torch.stack(losses).mean().item()


if __name__ == "__main__":
    main(sys.argv[1:])
