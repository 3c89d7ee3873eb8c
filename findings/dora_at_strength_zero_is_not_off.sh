#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: the weight that set_adapters gives a DoRA acts on its low-rank
# part alone. The new lengths of the rows act in full at any weight, also at 0.
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

LAYER = "transformer.blocks.0.attn1.to_q"
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
def products():
    layer = pipeline.transformer.blocks[0].attn1.to_q
    return layer(INPUTS) - layer.bias


plain = products()
weight = pipeline.transformer.blocks[0].attn1.to_q.weight.detach()
# Nothing of low rank: all that this DoRA does is to make every row twice as long.
pipeline.load_lora_weights(
    {
        f"{LAYER}.lora_A.weight": torch.ones(4, 32),
        f"{LAYER}.lora_B.weight": torch.zeros(32, 4),
        f"{LAYER}.lora_magnitude_vector": 2 * weight.norm(dim=1),
    },
    adapter_name="style",
)

found = []


def note(title):
    found.append((title, round((products().norm() / plain.norm()).item(), 3)))


for strength in (1.0, 0.5, 0.0):
    pipeline.set_adapters("style", strength)
    note(f'set_adapters("style", {strength})')
pipeline.disable_lora()
note("disable_lora()")

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers", "peft")))
print("How many times as large as without the DoRA the layer's products are after:")
for title, times in found:
    print(f"  {title:30} {times}")
same = [times for _, times in found] == [2, 2, 2, 1]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
