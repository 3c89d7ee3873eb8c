#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: a LoRA that is loaded after enable_layerwise_casting() is kept
# as float8 and never cast: the next forward pass raises. In the other order all is well.
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
TYPE = torch.bfloat16


def run(*order):
    """Casts a transformer and loads the LoRA in this order: the LoRA's type, and what comes."""
    transformer = WanTransformer3DModel.from_pretrained(FOLDER / "transformer", torch_dtype=TYPE)
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    for step in order:
        if step == "cast":
            transformer.enable_layerwise_casting(torch.float8_e4m3fn, TYPE)
        else:
            pipeline.load_lora_weights(FOLDER / "lora.safetensors", adapter_name="lora")
    kept = transformer.blocks[0].attn1.to_q.lora_A["lora"].weight.dtype
    try:
        with torch.no_grad():
            sample = transformer(
                hidden_states=torch.zeros(1, 4, 1, 4, 4, dtype=TYPE),
                timestep=torch.tensor([500]),
                encoder_hidden_states=torch.zeros(1, 3, 8, dtype=TYPE),
            ).sample
    except NotImplementedError as error:
        return kept, f"NotImplementedError: {error}"
    return kept, f"a result of {sample.dtype}"


WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
    freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
).save_pretrained(FOLDER / "transformer")
name = "diffusion_model.blocks.0.self_attn.{}.lora_{}.weight"
shapes = {"A": (4, 32), "B": (32, 4)}
save_file(
    {name.format(layer, side): torch.randn(shapes[side]) for layer in "qkvo" for side in "AB"},
    FOLDER / "lora.safetensors",
)
first = run("cast", "load")
last = run("load", "cast")

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers", "peft")))
print(f"enable_layerwise_casting, load_lora_weights:  LoRA {first[0]}, {first[1]}")
print(f"load_lora_weights, enable_layerwise_casting:  LoRA {last[0]}, {last[1]}")
same = first[0] == torch.float8_e4m3fn and "not implemented for 'Float8" in first[1]
same = same and last == (TYPE, f"a result of {TYPE}")
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
