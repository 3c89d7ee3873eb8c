"""Seconds of a training step of the transformers, without rendering: where the minutes go.

    python benchmarks/training.py --stage base ultragen --steps 8

Latents are random: cost does not depend on their values. On a CPU, only `--tiny` is quick.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from ultragen.benchmark.bench import free_memory
from ultragen.training.build import build_base_transformer, build_pipeline
from ultragen.training.clip_sizes import ClipSize
from ultragen.training.data import Pool
from ultragen.training.loop import Trainer
from ultragen.training.stage import TrainingConfig
from ultragen.training.stage_options import StageOptions
from ultragen.training.stages.flow_matching import FlowMatchingStage
from ultragen.training.tiny import TINY
from ultragen.world.captions import vocabulary


class RandomClips(FlowMatchingStage):
    """The stage of one size, on latents that nobody rendered."""

    def setup(self, device: torch.device, rank: int, world: int) -> None:
        self.device, self.renderers = device, None
        [size] = self.sizes
        config = self.pipeline.vae.config
        shape = (
            (size.num_frames + 3) // 4,
            size.height // config.scale_factor_spatial,
            size.width // config.scale_factor_spatial,
        )
        latents = torch.randn(size.batch_size, config.z_dim, *shape, device=device)
        length = self.pipeline.tokenizer.model_max_length
        self.empty = torch.zeros(length, dtype=torch.long, device=device)
        ids = torch.randint(5, 200, (size.batch_size, 2, length), device=device)
        pool = Pool(None, size.batch_size, 0.0, 0)
        pool.put((latents, ids))
        self.pools = [pool]


def measure(
    name: str, size: ClipSize, options: StageOptions, arguments: argparse.Namespace
) -> None:
    """Prints the seconds of the first and of a later step."""
    pipeline = build_pipeline(options.size, vocabulary())
    if name == "base":
        pipeline.register_modules(transformer=build_base_transformer(options.size))
    stage = RandomClips(pipeline, (size,), train_text=name == "base")
    stage.recordable = not arguments.eager
    if arguments.uncompiled and name == "ultragen":
        for block in pipeline.transformer.blocks:
            for compiled in ("enter", "leave"):  # on a CPU there are none
                vars(block).pop(compiled, None)
    with TemporaryDirectory() as folder:
        trainer = Trainer(stage, TrainingConfig(out=Path(folder), log_steps=10**9))
        stage.setup(trainer.accelerator.device, 0, 1)
        times = []
        for _ in range(arguments.steps + 1):
            began = time.perf_counter()
            trainer.train_step(0.0)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        grid = pipeline.vae.config.scale_factor_spatial * 2
        tokens = (size.num_frames + 3) // 4 * (size.height // grid) * (size.width // grid)
        seconds = median(times[1:])
        print(
            f"{name:8} {size.height:4}×{size.width:4}×{size.num_frames:2} K {size.windows or '-'} "
            f"batch {size.batch_size:3}: first {times[0]:6.1f} s, then {seconds:6.3f} s, "
            f"{size.batch_size * tokens / seconds / 1e3:7.0f} thousand tokens a second",
            flush=True,
        )
        if arguments.profile:
            trainer.profile(0.0, 2)
    # A trainer keeps the memory of its recorded steps.
    del trainer, stage
    free_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--stage", nargs="+", choices=["base", "ultragen"], default=["base", "ultragen"]
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--eager", action="store_true", help="Nothing is recorded.")
    parser.add_argument("--uncompiled", action="store_true", help="UltraGen's blocks as they are.")
    parser.add_argument("--sizes", type=int, nargs="*", help="Numbers of the stage's sizes.")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    options = TINY if arguments.tiny else StageOptions()
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", torch.__version__)
    sizes = {"base": options.base_sizes, "ultragen": options.ultragen_sizes}
    for name in arguments.stage:
        for number, size in enumerate(sizes[name]):
            if arguments.sizes and number not in arguments.sizes:
                continue
            for windows in sorted(set(size.windows)) or [None]:
                one = replace(size, windows=() if windows is None else (windows,))
                measure(name, one, options, arguments)


if __name__ == "__main__":
    main()
