"""Makes the 1.3B model's files with random weights, in the published layout and under its names.

    python scripts/make_random_wan.py OUT [--size true|tiny] [--seed 0]

What a machine needs to run the true model, how long it takes and how much memory, does not depend
on the values of the weights: so all of it can be tried without the published files.

    OUT/wan/                 model_index.json, scheduler, tokenizer, text_encoder, transformer, vae
    OUT/ultragen_1080p.ckpt  the released UltraGen layout
"""

from __future__ import annotations

import argparse
import json
import string
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from ultragen.benchmark.cases import WIDTHS
from ultragen.benchmark.clips import TEXT_CONFIGS, VAE_CONFIGS
from ultragen.checkpoint import save_released
from ultragen.checkpoint_keys import RELEASED
from ultragen.console import check_free, quiet_libraries, run, whole_results
from ultragen.transformer import UltraGenTransformer3DModel

NAMES = ("wan", "ultragen_1080p.ckpt")


@dataclass(frozen=True)
class Sizes:
    """Widths and depths.

    Attributes:
        transformer: Settings of both transformers.
        full: Layers of UltraGen that keep full attention.
        lora_rank: Of UltraGen's compressed branches.
        text: Settings of the text encoder.
        vae: Settings of the autoencoder.
    """

    transformer: dict[str, Any]
    full: tuple[int, ...]
    lora_rank: int
    text: dict[str, Any]
    vae: dict[str, Any]


SIZES = {
    "true": Sizes(
        WIDTHS["wan"],
        (0, 1, 2, 27, 28, 29),
        64,
        TEXT_CONFIGS["wan"],
        VAE_CONFIGS["wan"],
    ),
    "tiny": Sizes(
        {
            **WIDTHS["wan"],
            "num_attention_heads": 1,
            "text_dim": 16,
            "ffn_dim": 32,
            "num_layers": 3,
        },
        (0,),
        2,
        {"vocab_size": 128, "d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2},
        {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    ),
}


def randomise(build: Callable[[], nn.Module], generator: torch.Generator) -> Any:
    """A model in bfloat16 whose signals keep their strength from layer to layer."""
    with init_empty_weights():
        model = build()
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    if isinstance(model, UMT5EncoderModel):
        model.set_input_embeddings(model.shared)
    for name, parameter in model.named_parameters():
        fan_in = max(parameter[0].numel(), 1)
        if "norm" in name and not name.endswith("bias"):
            parameter.data.fill_(1.0)
        elif parameter.ndim == 1:
            parameter.data.normal_(0.0, 0.02, generator=generator)
        else:
            parameter.data.normal_(0.0, fan_in**-0.5, generator=generator)
    return model


def make_tokenizer() -> T5Tokenizer:
    """A tokenizer of the true kind, whose pieces are single characters."""
    characters = string.ascii_letters + string.digits + string.punctuation
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    pieces = [(character, -2.0) for character in "▁" + characters]
    return T5Tokenizer(vocab=special + pieces, extra_ids=0, model_max_length=512)


def make(out: Path, size: Sizes, seed: int) -> None:
    """Writes all files below an existing folder."""
    wan, generator = out / "wan", torch.Generator().manual_seed(seed)
    text = UMT5Config(**size.text)
    parts: dict[str, tuple[str, Callable[[], nn.Module]]] = {
        "text_encoder": ("transformers", lambda: UMT5EncoderModel(text)),
        "transformer": ("diffusers", lambda: WanTransformer3DModel(**size.transformer)),
        "vae": ("diffusers", lambda: AutoencoderKLWan(**size.vae)),
    }
    index: dict[str, Any] = {"_class_name": "WanPipeline", "_diffusers_version": "0.33.0.dev0"}
    for name, (library, build) in parts.items():
        model = randomise(build, generator)
        model.save_pretrained(wan / name, max_shard_size="5GB")
        index[name] = [library, type(model).__name__]
    # As published; transformers itself writes another value, which changes how weights are tied.
    config = wan / "text_encoder" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"tie_word_embeddings": False}
    config.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.save_pretrained(wan / "scheduler")
    make_tokenizer().save_pretrained(wan / "tokenizer")
    index |= {
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
    }
    (wan / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    released = {**RELEASED, **size.transformer, "full_attention_layers": size.full}
    released["lora_rank"] = size.lora_rank
    ultragen = randomise(lambda: UltraGenTransformer3DModel(**released), generator)
    save_released(ultragen, out / NAMES[1])


def main(arguments: list[str]) -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make random files of the 1.3B model's layout.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="true", help="tiny: for the tests")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    def write() -> None:
        check_free(options.out, NAMES, overwrite=False)
        quiet_libraries()
        with whole_results(options.out) as folder:
            make(folder, SIZES[options.size], options.seed)
        print(f"Written: {', '.join(str(options.out / name) for name in NAMES)}")

    return run(write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
