"""Makes the 1.3B model's files with random weights, in the published layout and under its names.

    python scripts/make_random_wan.py OUT [--size true|short-text|tiny] [--seed 0] [--jobs 1]

What a machine needs to run the true model, how long it takes and how much memory, does not depend
on the values of the weights: so all of it can be tried without the published files.

    OUT/wan/                 model_index.json, scheduler, tokenizer, text_encoder, transformer, vae
    OUT/ultragen_1080p.ckpt  the released UltraGen layout

Each job holds one part in memory, twice while it writes it: the text encoder takes 23 GB, and four
jobs together 36 GB. With `--size short-text` it has one layer and 128 words, in the true width, and
all takes 7 GB. `--base-only` leaves out the second file, which a training does not need.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import starmap
from multiprocessing import Pool
from pathlib import Path
from time import perf_counter

from diffusers import UniPCMultistepScheduler

from ultragen.cli.console import check_free, quiet_libraries, run, whole_results
from ultragen.weights.random import SIZES, Noise, builders, make_tokenizer
from ultragen.weights.released import save_released

NAMES = ("wan", "ultragen_1080p.ckpt")
PARTS = ("text_encoder", "transformer", "base_transformer", "vae")  # the largest first


def make(out: Path, size: str, seed: int, jobs: int, base_only: bool) -> None:
    """Writes the files below an existing folder."""
    tasks = [
        (part, out, size, seed + place)
        for place, part in enumerate(PARTS)
        if not (base_only and part == "transformer")
    ]
    if jobs == 1:
        kinds = dict(starmap(write_part, tasks))
    else:  # the largest part comes first
        with Pool(jobs) as pool:
            kinds = dict(pool.starmap(write_part, tasks, chunksize=1))
    wan = out / "wan"
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.save_pretrained(wan / "scheduler")
    make_tokenizer().save_pretrained(wan / "tokenizer")
    index = {"_class_name": "WanPipeline", "_diffusers_version": "0.33.0.dev0"} | {
        "text_encoder": ["transformers", kinds["text_encoder"]],
        "transformer": ["diffusers", kinds["base_transformer"]],
        "vae": ["diffusers", kinds["vae"]],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
    }
    (wan / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_part(part: str, out: Path, size: str, seed: int) -> tuple[str, str]:
    """Writes one part where it belongs; returns its name and class."""
    quiet_libraries()
    model = Noise(seed).weigh(builders(SIZES[size])[part])
    if part == "transformer":
        save_released(model, out / NAMES[1])
        return part, type(model).__name__
    folder = out / NAMES[0] / ("transformer" if part == "base_transformer" else part)
    model.save_pretrained(folder, max_shard_size="5GB")
    if part == "text_encoder":
        # As published; transformers itself writes another value, which changes how weights are
        # tied.
        config = folder / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) | {"tie_word_embeddings": False}
        config.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return part, type(model).__name__


def main(arguments: list[str]) -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make random files of the 1.3B model's layout.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="true", help="tiny: for the tests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, choices=range(1, 5), help="processes")
    parser.add_argument("--base-only", action="store_true", help="only Wan's folder")
    options = parser.parse_args(arguments)
    names = NAMES[:1] if options.base_only else NAMES

    def write() -> None:
        check_free(options.out, names, overwrite=False)
        quiet_libraries()
        began = perf_counter()
        with whole_results(options.out) as folder:
            make(folder, options.size, options.seed, options.jobs, options.base_only)
        written = ", ".join(str(options.out / name) for name in names)
        print(f"Written: {written} in {perf_counter() - began:.0f} s")

    return run(write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
