#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: save_lora_weights writes a LoRA's alpha into the header of its
# file alone. Read with load_file and given as a dictionary, or cast and saved again, the same LoRA
# acts with alpha = rank: one of rank 4 and alpha 16 at a quarter of its strength, without a word.
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
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FOLDER = Path(sys.argv[1])
RANK, ALPHA = 4, 16
INPUTS = torch.eye(32)


def transformer():
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
    )


@torch.no_grad()
def added(model):
    """What the LoRA adds to the products of one layer."""
    plain = transformer().blocks[0].attn1.to_q(INPUTS)
    return model.blocks[0].attn1.to_q(INPUTS) - plain


def strength(lora):
    """How strongly a LoRA acts after loading, compared with the model it was trained in."""
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.load_lora_weights(lora)
    ratio = added(pipeline.transformer).norm() / added(trained).norm()
    return round(ratio.item(), 2)


trained = transformer()
trained.add_adapter(
    LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q"], init_lora_weights=False)
)
WanPipeline.save_lora_weights(
    FOLDER, transformer_lora_layers=get_peft_model_state_dict(trained),
    transformer_lora_adapter_metadata=trained.peft_config["default"].to_dict(),
)
path = FOLDER / "pytorch_lora_weights.safetensors"
halved = {name: value.bfloat16() for name, value in load_file(path).items()}
save_file(halved, FOLDER / "cast.safetensors", metadata={"format": "pt"})
with safe_open(path, "pt") as file:
    save_file(halved, FOLDER / "with_header.safetensors", metadata=file.metadata())
found = {
    "the path of the file": strength(str(path)),
    "load_file of that path": strength(load_file(path)),
    "cast to bfloat16 and saved": strength(str(FOLDER / "cast.safetensors")),
    "cast and saved with the old header": strength(str(FOLDER / "with_header.safetensors")),
}

names = ("torch", "diffusers", "peft", "safetensors")
print(", ".join(f"{library} {version(library)}" for library in names))
print(f"A LoRA of rank {RANK} and alpha {ALPHA}; how strongly it acts, given as:")
for title, value in found.items():
    print(f"  {title:36} {value}")
same = list(found.values()) == [1.0, 0.25, 0.25, 1.0]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
