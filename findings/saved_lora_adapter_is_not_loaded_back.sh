#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: what save_lora_adapter(folder) of a transformer writes,
# load_lora_adapter(folder) refuses: it looks for a .bin file; told the name, it loads nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import os
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig

FOLDER = Path(sys.argv[1]) / "lora"
FILE = "pytorch_lora_weights.safetensors"
torch.manual_seed(0)
trained = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
    freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
)
trained.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
trained.save_lora_adapter(FOLDER)
written = os.listdir(FOLDER)


def outcome(**options):
    """The adapters of a new transformer that loads the folder, or the error."""
    transformer = WanTransformer3DModel.from_config(trained.config)
    try:
        transformer.load_lora_adapter(FOLDER, **options)
    except OSError as error:
        return f"{type(error).__name__}: {str(error).replace(str(FOLDER), 'folder')}"
    return f"adapters {list(getattr(transformer, 'peft_config', {}))}"


ways = [
    {},
    {"weight_name": FILE},
    {"prefix": None},
    {"weight_name": FILE, "prefix": None},
    {"use_safetensors": True, "prefix": None},
]
found = [outcome(**way) for way in ways]

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers", "peft")))
print(f"transformer.save_lora_adapter(folder) wrote {', '.join(written)}")
for way, result in zip(ways, found):
    options = "".join(f", {name}={value!r}" for name, value in way.items())
    print(f"load_lora_adapter(folder{options}):")
    print(f"    {result}")
same = written == [FILE]
same = same and all("no file named pytorch_lora_weights.bin" in found[i] for i in (0, 2))
same = same and found[1] == "adapters []" and found[3] == found[4] == "adapters ['default_0']"
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
