#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: fuse_lora() of a Wan 2.2 pipeline merges into the first
# transformer only; unload_lora_weights() takes the LoRA from both, and the second has it no more.
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

NAME = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
INPUTS = torch.eye(32)


def transformer():
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
    )


def product(model):
    return model.blocks[0].attn1.to_q(INPUTS)


class Loaded:
    """A pipeline with one LoRA in both transformers, and how strongly it acts in them."""

    def __init__(self):
        torch.manual_seed(0)
        self.pipeline = WanPipeline(
            tokenizer=None, text_encoder=None, vae=None, boundary_ratio=0.875,
            transformer=transformer(), transformer_2=transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
        self.models = self.pipeline.transformer, self.pipeline.transformer_2
        self.plain = [product(model) for model in self.models]
        lora = {NAME.format("A"): torch.ones(4, 32), NAME.format("B"): torch.ones(32, 4)}
        self.pipeline.load_lora_weights(dict(lora), adapter_name="style")
        self.pipeline.load_lora_weights(
            dict(lora), adapter_name="style", load_into_transformer_2=True
        )

    def strengths(self):
        """What the LoRA adds to each product, in both; 4 at strength 1."""
        pairs = zip(self.models, self.plain)
        return [round((product(model) - plain).mean().item() / 4, 3) for model, plain in pairs]


found = []
loaded = Loaded()
found.append(("load_lora_weights into both", loaded.strengths()))
loaded.pipeline.fuse_lora()
found.append(("fuse_lora()", loaded.strengths()))
loaded.pipeline.unload_lora_weights()
found.append(("unload_lora_weights()", loaded.strengths()))
loaded = Loaded()
loaded.pipeline.fuse_lora(components=["transformer", "transformer_2"])
loaded.pipeline.unload_lora_weights()
found.append(("the same with both named in fuse_lora", loaded.strengths()))

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers", "peft")))
print("How strongly the LoRA acts in transformer and transformer_2 after:")
for title, strengths in found:
    print(f"  {title:38} {strengths}")
same = [strengths for _, strengths in found] == [[1, 1], [1, 1], [1, 0], [1, 1]]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
