#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: after fuse_lora(lora_scale=0.5) and unfuse_lora() a LoRA acts
# at half its strength, and the next fuse_lora(lora_scale=0.5) merges a quarter of it.
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

SCALE = 0.5
torch.manual_seed(0)
pipeline = WanPipeline(
    tokenizer=None, text_encoder=None, vae=None,
    transformer=WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
    ),
    scheduler=FlowMatchEulerDiscreteScheduler(),
)
layer = pipeline.transformer.blocks[0].attn1.to_q
inputs = torch.eye(32)
plain = layer(inputs)
name = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
pipeline.load_lora_weights(
    {name.format("A"): torch.ones(4, 32), name.format("B"): torch.ones(32, 4)}, adapter_name="style"
)
layer = pipeline.transformer.blocks[0].attn1.to_q


def strength():
    """What the LoRA, merged or beside the weights, adds to each product; 4 at strength 1."""
    return round((layer(inputs) - plain).mean().item() / 4, 4)


found = [("load_lora_weights", strength())]
for _ in range(2):
    pipeline.fuse_lora(lora_scale=SCALE)
    found.append((f"fuse_lora(lora_scale={SCALE})", strength()))
    pipeline.unfuse_lora()
    found.append(("unfuse_lora", strength()))
pipeline.set_adapters("style", 1.0)
found.append(('set_adapters("style", 1.0)', strength()))

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers", "peft")))
print("How strongly a LoRA acts after each call:")
for title, value in found:
    print(f"  {title:28} {value}")
same = [value for _, value in found] == [1.0, 0.5, 0.5, 0.25, 0.25, 1.0]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
