#!/usr/bin/env bash
# diffusers 0.42.1: load_lora_weights() of a Wan LoRA in ComfyUI's names multiplies alpha / rank
# into the tensors of the dictionary that it is given, except those of self-attention. A second load
# of it, say into Wan 2.2's second transformer, is weaker, and so is the first from then on.
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

RANK, ALPHA = 4, 2.0
WIDTHS = {"self_attn.q": (32, 32), "cross_attn.q": (32, 32), "ffn.0": (32, 64)}


def transformer():
    """A Wan transformer of one block with random weights."""
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
    )


def added(model):
    """What the LoRA adds to a weight of each layer; all entries are alike."""
    block = model.blocks[0]
    layers = (block.attn1.to_q, block.attn2.to_q, block.ffn.net[0].proj)
    return [layer.get_delta_weight("style").mean().item() for layer in layers]


def down_weights():
    """The value of each down weight in the dictionary; all entries are alike."""
    key = "diffusion_model.blocks.0.{}.lora_down.weight"
    return [lora[key.format(name)].mean().item() for name in WIDTHS]


lora = {}
for name, (inputs, outputs) in WIDTHS.items():
    prefix = f"diffusion_model.blocks.0.{name}"
    lora[f"{prefix}.lora_down.weight"] = torch.ones(RANK, inputs)
    lora[f"{prefix}.lora_up.weight"] = torch.ones(outputs, RANK)
    lora[f"{prefix}.alpha"] = torch.tensor(ALPHA)
pipeline = WanPipeline(
    tokenizer=None, text_encoder=None, vae=None, transformer=transformer(),
    transformer_2=transformer(), boundary_ratio=0.875,
    scheduler=FlowMatchEulerDiscreteScheduler(),
)
found = [("dictionary: down weights", down_weights())]
pipeline.load_lora_weights(lora, adapter_name="style")
found.append(("  after the first load", down_weights()))
found.append(("transformer: added to a weight", added(pipeline.transformer)))
pipeline.load_lora_weights(lora, adapter_name="style", load_into_transformer_2=True)
found.append(("  after the second load", added(pipeline.transformer)))
found.append(("transformer_2: added to a weight", added(pipeline.transformer_2)))

names = ("torch", "diffusers", "peft")
print(", ".join(f"{name} {version(name)}" for name in names))
print(f"One dictionary of ones, rank {RANK}, alpha {ALPHA}, is loaded into both transformers.")
print(f"{'':34}", *(f"{name:>12}" for name in WIDTHS))
for title, values in found:
    print(f"  {title:32}", *(f"{value:12}" for value in values))
same = [values for _, values in found] == [
    [1.0, 1.0, 1.0],
    [1.0, 0.5, 0.5],
    [2.0, 2.0, 2.0],
    [2.0, 1.0, 1.0],
    [2.0, 1.0, 1.0],
]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
