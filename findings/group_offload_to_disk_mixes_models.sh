#!/usr/bin/env bash
# diffusers 0.42.1: enable_group_offload(offload_to_disk_path=...) names its files after places
# inside a model and never writes over one: Wan 2.2's second transformer computes with the first
# one's weights, and a later run in the same folder with those of the earlier one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

FOLDER = Path(sys.argv[1])
torch.manual_seed(0)
INPUTS = {
    "hidden_states": torch.randn(1, 4, 2, 4, 4),
    "timestep": torch.tensor([500]),
    "encoder_hidden_states": torch.randn(1, 5, 8),
}


def transformer(seed):
    """A small transformer whose weights follow from the seed."""
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )


@torch.no_grad()
def answer(model):
    return model(**INPUTS).sample


expected = {seed: answer(transformer(seed)) for seed in (1, 2, 3)}


def whose(model):
    """The seed whose weights the model computes with."""
    given = answer(model)
    return [seed for seed, one in expected.items() if torch.allclose(given, one, atol=1e-5)]


def options(name, kind):
    """What group offloading to a folder of this name takes; all of it stays on the CPU here."""
    options = {"onload_device": torch.device("cpu"), "offload_type": kind}
    if kind == "block_level":
        options["num_blocks_per_group"] = 1
    return {**options, "offload_to_disk_path": str(FOLDER / f"{name}_{kind}")}


found = {}
for kind in ("block_level", "leaf_level"):
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, boundary_ratio=0.875,
        transformer=transformer(1), transformer_2=transformer(2),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.enable_group_offload(**options("pipeline", kind))
    found[kind, "pipe.transformer, made from seed 1"] = whose(pipeline.transformer)
    found[kind, "pipe.transformer_2, made from seed 2"] = whose(pipeline.transformer_2)
    later = transformer(3)
    later.enable_group_offload(**options("pipeline", kind))
    found[kind, "a model of seed 3, the same folder later"] = whose(later)
    apart = transformer(3)
    apart.enable_group_offload(**options("apart", kind))
    found[kind, "a model of seed 3, a folder of its own"] = whose(apart)

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers")))
print("With weights of which seed models compute that are offloaded to a folder:")
for (kind, title), seeds in found.items():
    print(f"  {kind:12} {title:42} {seeds}")
same = list(found.values()) == [[1], [1], [1], [3]] * 2
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
