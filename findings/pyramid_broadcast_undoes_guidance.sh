#!/usr/bin/env bash
# diffusers 0.42.1: PyramidAttentionBroadcast does not tell the two passes of a guided step of Wan
# apart: the negative pass gets the attention of the positive one, and guidance has no effect.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    PyramidAttentionBroadcastConfig,
    WanPipeline,
    WanTransformer3DModel,
)

STEPS = 8
torch.manual_seed(0)
pipeline = WanPipeline(
    tokenizer=None, text_encoder=None, vae=None,
    transformer=WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=2, rope_max_seq_len=32,
    ),
    scheduler=FlowMatchEulerDiscreteScheduler(),
)
pipeline.set_progress_bar_config(disable=True)
prompt, negative, other = torch.randn(3, 1, 5, 8)
calls = []
query = pipeline.transformer.blocks[0].attn2.to_q
query.register_forward_hook(lambda *_: calls.append(pipeline.current_timestep.item()))


def latents(guidance_scale=5.0, negative_prompt_embeds=negative):
    """The same clip; the timesteps of each computed attention to the text are in `calls`."""
    calls.clear()
    return pipeline(
        prompt_embeds=prompt, negative_prompt_embeds=negative_prompt_embeds, height=32, width=32,
        num_frames=5, num_inference_steps=STEPS, guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(0), output_type="latent",
    ).frames


unguided = latents(guidance_scale=1.0)
guided = {"no cache": latents()}
computed = {"no cache": (len(calls), len(set(calls)))}
for_other = {"no cache": latents(negative_prompt_embeds=other)}
pipeline.transformer.enable_cache(
    PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2,
        cross_attention_timestep_skip_range=(-1, 1001),  # all of them
        current_timestep_callback=lambda: pipeline.current_timestep,
    )
)
guided["pyramid"] = latents()
computed["pyramid"] = len(calls), len(set(calls))
for_other["pyramid"] = latents(negative_prompt_embeds=other)


def differences(latents):
    """By how much the guided clips differ from these, without and with the cache."""
    return [(guided[kind] - latents[kind]).abs().max().item() for kind in guided]


rows = {
    "guidance_scale=1 without a cache": differences(dict.fromkeys(guided, unguided)),
    "another negative prompt": differences(for_other),
}

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers")))
print("A clip with guidance_scale=5 differs from one with ... by at most:")
print(f"{'':36}{'no cache':>10}{'pyramid':>10}")
for title, (plain, cached) in rows.items():
    print(f"  {title:34}{plain:10.4f}{cached:10.4f}")
for kind, (number, steps) in computed.items():
    print(f"{kind}: attention to the text computed {number} times, at {steps} of {STEPS} steps")
same = all(plain > 0.01 and cached == 0 for plain, cached in rows.values())
same = same and list(computed.values()) == [(2 * STEPS, STEPS), (STEPS, STEPS)]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
