#!/usr/bin/env bash
# diffusers 0.42.1: a run of WanPipeline that ends in an exception, as where a callback stops it or
# memory runs out, leaves its steps in FirstBlockCache, and the next clip is made with them.
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
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

torch.manual_seed(0)
pipeline = WanPipeline(
    tokenizer=None, text_encoder=None, vae=None,
    transformer=WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=3, rope_max_seq_len=32,
    ),
    scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
)
pipeline.set_progress_bar_config(disable=True)
pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
prompt, other = torch.randn(2, 1, 5, 8)
other[:, :-1] = prompt[:, :-1]


class Stopped(Exception):
    pass


def latents(prompt_embeds=prompt, height=32, callback=None):
    """The clip of one seed."""
    return pipeline(
        prompt_embeds=prompt_embeds, height=height, width=32, num_frames=5, num_inference_steps=6,
        guidance_scale=1.0, generator=torch.Generator().manual_seed(0), output_type="latent",
        callback_on_step_end=callback,
    ).frames


def stop_by_exception(pipeline, step, timestep, tensors):
    if step == 0:
        raise Stopped
    return tensors


def stop_by_interrupt(pipeline, step, timestep, tensors):
    pipeline._interrupt = step == 0
    return tensors


def stopped(callback):
    """Stops a run of a prompt with another last token after its first step."""
    try:
        latents(other, callback=callback)
    except Stopped:
        pass


def difference():
    return (latents() - expected).abs().max().item()


expected = latents()
found = {"a run to its end": difference()}
stopped(stop_by_interrupt)
found["a run that pipeline._interrupt stopped"] = difference()
stopped(stop_by_exception)
found["a run that an exception stopped"] = difference()
found["the run after that"] = difference()
stopped(stop_by_exception)
pipeline.transformer._reset_stateful_cache()
found["an exception and _reset_stateful_cache()"] = difference()
stopped(stop_by_exception)
try:
    latents(height=48)
    larger = "a clip"
except RuntimeError as error:
    larger = f"RuntimeError: {error}"

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers")))
print("How far the same clip differs from that of a new pipeline after ...:")
for title, value in found.items():
    print(f"  {title:42} {value:.4f}")
print(f"A clip of another size after an exception: {larger}")
zeros = [value == 0 for value in found.values()]
same = zeros == [True, True, False, True, True] and "must match the size" in larger
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
