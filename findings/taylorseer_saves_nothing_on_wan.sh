#!/usr/bin/env bash
# diffusers 0.42.1: the TaylorSeer cache, with the parts that it takes by itself, leaves out no
# attention of a Wan transformer: it looks for modules called `attn`, Wan's are `attn1`, `attn2`.
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
from diffusers import TaylorSeerCacheConfig, WanTransformer3DModel

STEPS, LAYERS = 12, 2


def computed(**settings):
    """How many attentions a denoising of 12 steps computes, with a cache if one is given."""
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=32, num_layers=LAYERS, rope_max_seq_len=32,
    ).eval()
    calls = []
    for block in transformer.blocks:
        for attention in (block.attn1, block.attn2):
            attention.to_q.register_forward_hook(lambda *_: calls.append(1))
    if settings:
        transformer.enable_cache(TaylorSeerCacheConfig(**settings))
    for step in range(STEPS):
        with torch.no_grad(), transformer.cache_context("cond"):
            transformer(
                hidden_states=torch.randn(1, 4, 1, 4, 4),
                timestep=torch.tensor([1000 - 80 * step]),
                encoder_hidden_states=torch.zeros(1, 3, 8),
            )
    return len(calls)


without = computed()
default = computed(cache_interval=3)
named = computed(cache_interval=3, cache_identifiers=[r"blocks\.\d+\.attn[12]"])

print(f"torch {version('torch')}, diffusers {version('diffusers')}")
print(f"Attentions computed in {STEPS} steps of a Wan transformer of {LAYERS} blocks:")
print(f"  without a cache                                {without}")
print(f"  TaylorSeer, every third step computed          {default}")
print(f"  the same with Wan's attentions named           {named}")
same = without == default == 2 * LAYERS * STEPS and named < without
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
