#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: after fuse_qkv_projections() of a Wan transformer, what a LoRA
# adds to queries, keys and values is gone without a word, whether it was loaded before or after.
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

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

torch.manual_seed(0)
plain = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
    freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
)
name = "diffusion_model.blocks.0.self_attn.{}.lora_{}.weight"
shapes = {"A": (4, 32), "B": (32, 4)}
lora = {name.format(layer, side): torch.randn(shapes[side]) for layer in "qkv" for side in "AB"}
inputs = {
    "hidden_states": torch.randn(1, 4, 2, 4, 4),
    "timestep": torch.tensor([500]),
    "encoder_hidden_states": torch.randn(1, 5, 8),
}


@torch.no_grad()
def effect(*order):
    """Calls these in this order: how far the LoRA then changes what the model gives, and whether
    it is listed."""
    transformer = WanTransformer3DModel.from_config(plain.config)
    transformer.load_state_dict(plain.state_dict())
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    calls = {
        "load_lora_weights": lambda: pipeline.load_lora_weights(lora, adapter_name="style"),
        "fuse_qkv_projections": transformer.fuse_qkv_projections,
        "fuse_lora": pipeline.fuse_lora,
        "unload_lora_weights": pipeline.unload_lora_weights,
    }
    for call in order:
        calls[call]()
    difference = transformer(**inputs).sample - plain(**inputs).sample
    return difference.abs().max().item()


orders = [
    ("load_lora_weights",),
    ("fuse_qkv_projections", "load_lora_weights"),
    ("fuse_qkv_projections", "load_lora_weights", "fuse_lora"),
    ("load_lora_weights", "fuse_qkv_projections"),
    ("load_lora_weights", "fuse_lora", "fuse_qkv_projections"),
    ("load_lora_weights", "fuse_lora", "unload_lora_weights", "fuse_qkv_projections"),
]
found = [effect(*order) for order in orders]

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers", "peft")))
print("How far a LoRA changes what the model gives, after these calls:")
for order, value in zip(orders, found):
    print(f"  {value:.4f}  {', '.join(order)}")
same = [value > 1e-3 for value in found] == [True, False, False, False, True, True]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
