#!/usr/bin/env bash
# diffusers 0.42.1: from_single_file() reads ComfyUI's "scaled" FP8 files of Wan, but not their
# scales: weights come out hundreds or thousands of times too large, with one warning of names that
# were not used.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import re
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

FOLDER = Path(sys.argv[1])
LARGEST = 448  # of float8_e4m3fn
ORIGINAL = {  # Wan's authors' names, which ComfyUI's files have
    r"condition_embedder\.(time|text)_embedder\.linear_1": r"\1_embedding.0",
    r"condition_embedder\.(time|text)_embedder\.linear_2": r"\1_embedding.2",
    r"condition_embedder\.time_proj": "time_projection.1",
    r"attn1\.": "self_attn.",
    r"attn2\.": "cross_attn.",
    r"to_out\.0\.": "o.",
    r"to_([qkv])\.": r"\1.",
    r"norm2\.": "norm3.",
    r"ffn\.net\.0\.proj": "ffn.0",
    r"ffn\.net\.2": "ffn.2",
    r"proj_out": "head.head",
    r"^scale_shift_table": "head.modulation",
    r"scale_shift_table": "modulation",
}


def original_name(name):
    for pattern, theirs in ORIGINAL.items():
        name = re.sub(pattern, theirs, name)
    return name


def scaled(weights, scale_name):
    """The matrices of all blocks in FP8, each with the scale that it is to be multiplied by."""
    found = {}
    for name, weight in weights.items():
        if weight.ndim == 2 and name.startswith("blocks.") and name.endswith(".weight"):
            scale = weight.abs().max() / LARGEST
            found[name] = (weight / scale).to(torch.float8_e4m3fn)
            found[name.removesuffix("weight") + scale_name] = scale
        else:
            found[name] = weight
    if scale_name == "scale_weight":  # the older layout has a marker
        found["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    return found


torch.manual_seed(0)
model = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16, text_dim=8,
    freq_dim=8, ffn_dim=64, num_layers=2, rope_max_seq_len=32,
)
model.save_pretrained(FOLDER / "transformer")
weights = {original_name(name): x.detach().clone() for name, x in model.state_dict().items()}
files = {
    "float32": weights,
    "FP8 with scale_weight": scaled(weights, "scale_weight"),
    "FP8 with weight_scale": scaled(weights, "weight_scale"),
}
inputs = {
    "hidden_states": torch.randn(1, 16, 2, 4, 4),
    "timestep": torch.tensor([500]),
    "encoder_hidden_states": torch.randn(1, 5, 8),
}
found = {}
with torch.no_grad():
    expected = model(**inputs).sample
    for title, tensors in files.items():
        save_file(tensors, FOLDER / "file.safetensors")
        loaded = WanTransformer3DModel.from_single_file(
            FOLDER / "file.safetensors", config=str(FOLDER), subfolder="transformer"
        )
        query = loaded.blocks[0].attn1.to_q.weight
        error = (loaded(**inputs).sample - expected).abs().mean() / expected.abs().mean()
        found[title] = query.dtype, query.float().abs().max().item(), error.item()

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers")))
print("What comes of a file: type and largest value of a query projection, and how far the output")
print("is from the model's, relative:")
for title, (dtype, largest, error) in found.items():
    print(f"  {title:22} {dtype} {largest:10.4f} {error:8.4f}")
plain, older, newer = found.values()
same = plain[2] < 1e-3 and plain[1] < 1
same = same and all(large == LARGEST and error > 0.5 for _, large, error in (older, newer))
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
