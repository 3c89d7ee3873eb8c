#!/usr/bin/env bash
# diffusers 0.42.1: set_attention_backend() on one model also changes every other model that has
# none of its own, and reset_attention_backend() does not give the old one back.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet diffusers==0.42.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from diffusers import WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Keeps the names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


def model():
    """A Wan transformer of one block with random weights."""
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    ).eval()


def runs_fused(transformer):
    """Whether a forward pass runs PyTorch's fused attention, its choice on a CPU."""
    with torch.no_grad(), Operations() as seen:
        transformer(
            hidden_states=torch.zeros(1, 4, 1, 4, 4),
            timestep=torch.tensor([500]),
            encoder_hidden_states=torch.zeros(1, 3, 8),
        )
    return any("flash_attention" in name for name in seen.names)


first, second = model(), model()
found = {"before": runs_fused(second)}
first.set_attention_backend("_native_math")
found["after set_attention_backend on the first"] = runs_fused(second)
first.reset_attention_backend()
found["after reset_attention_backend on the first"] = runs_fused(second)

print(f"torch {version('torch')}, diffusers {version('diffusers')}")
print("Two models. Only the first is told to use `_native_math`, which is not fused.")
for when, answer in found.items():
    print(f"  {when}: the second model runs the fused attention: {answer}")
same = list(found.values()) == [True, False, False]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
