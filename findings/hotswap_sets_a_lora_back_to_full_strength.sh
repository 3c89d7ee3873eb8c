#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: load_lora_weights(..., hotswap=True) sets the adapter's weight,
# given by set_adapters, back to 1: the new file acts at twice the strength that 0.5 asked for.
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

START = "transformer.blocks.0.attn1.to_q.lora_"
INPUTS = torch.eye(32)

torch.manual_seed(0)
pipeline = WanPipeline(
    tokenizer=None, text_encoder=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(),
    transformer=WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
    ),
)


@torch.no_grad()
def product():
    return pipeline.transformer.blocks[0].attn1.to_q(INPUTS)


def load(value, **options):
    """Loads a LoRA that adds 4 * value to each product at strength 1."""
    lora = {START + "A.weight": torch.full((4, 32), value), START + "B.weight": torch.ones(32, 4)}
    pipeline.load_lora_weights(lora, adapter_name="style", **options)


PLAIN = product()
found = []


def note(title, value):
    found.append((title, round((product() - PLAIN).mean().item() / (4 * value), 3)))


load(1.0)
pipeline.set_adapters("style", 0.5)
note('set_adapters("style", 0.5)', 1.0)
load(3.0, hotswap=True)
note("load_lora_weights(other, hotswap=True)", 3.0)
pipeline.set_adapters("style", 0.5)
note('set_adapters("style", 0.5) again', 3.0)
load(1.0, hotswap=True)
note("back to the first by hotswap", 1.0)

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers", "peft")))
print("How strongly the LoRA that is loaded acts after:")
for title, strength in found:
    print(f"  {title:40} {strength}")
same = [strength for _, strength in found] == [0.5, 1, 0.5, 1]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
