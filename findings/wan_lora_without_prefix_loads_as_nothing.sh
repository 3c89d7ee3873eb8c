#!/usr/bin/env bash
# diffusers 0.42.1: a Wan LoRA whose names have no prefix, as DiffSynth-Studio saves them, is
# "loaded" without an error: no adapter is there, and one line says that this is safe to ignore.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file

FOLDER = Path(sys.argv[1])


def adapters(name, key):
    """Writes the LoRA with these names, loads it into a new pipeline, and says what is there."""
    path = FOLDER / f"{name}.safetensors"
    save_file({key(layer, side): values[side].clone() for layer in "qkvo" for side in "AB"}, path)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.load_lora_weights(path)
    return pipeline.get_list_adapters()


values = {"A": torch.randn(4, 32), "B": torch.randn(32, 4)}
layer_name = "blocks.0.self_attn.{}.lora_{}"
bare = adapters("bare", lambda *part: layer_name.format(*part) + ".default.weight")
full = adapters("full", lambda *part: "diffusion_model." + layer_name.format(*part) + ".weight")

names = ("torch", "diffusers", "peft")
print(", ".join(f"{name} {version(name)}" for name in names))
print("The same LoRA of the four projections of one block, under two sets of names. Adapters:")
print(f"  blocks.0.self_attn.q.lora_A.default.weight          {bare}")
print(f"  diffusion_model.blocks.0.self_attn.q.lora_A.weight  {full}")
same = bare == {} and list(full) == ["transformer"]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
