#!/usr/bin/env bash
# diffusers 0.42.1: WanPipeline with two transformers asks guidance_scale alone whether to guide:
# with 1 and guidance_scale_2=5 the low-noise steps have no guidance either; with 5 and 1 they cost
# two passes each, of which one counts.
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
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

STEPS = 8


def transformer():
    """A Wan transformer of one block with random weights."""
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
    )


torch.manual_seed(0)
pipeline = WanPipeline(
    tokenizer=None, text_encoder=None, vae=None, transformer=transformer(),
    transformer_2=transformer(), boundary_ratio=0.5, scheduler=FlowMatchEulerDiscreteScheduler(),
)
pipeline.set_progress_bar_config(disable=True)
calls = {"transformer": 0, "transformer_2": 0}
for name in calls:
    def count(*_, name=name):
        calls[name] += 1

    getattr(pipeline, name).register_forward_hook(count)
prompt, negative = torch.randn(2, 1, 5, 8)


def run(guidance_scale, guidance_scale_2):
    """The clip of one seed, and the passes of each transformer."""
    calls.update(transformer=0, transformer_2=0)
    frames = pipeline(
        prompt_embeds=prompt, negative_prompt_embeds=negative, height=32, width=32, num_frames=5,
        num_inference_steps=STEPS, guidance_scale=guidance_scale,
        guidance_scale_2=guidance_scale_2, generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames
    return frames, tuple(calls.values())


scales = [(1.0, 1.0), (1.0, 5.0), (5.0, 1.0), (5.0, 5.0)]
found = {pair: run(*pair) for pair in scales}
unguided = found[1.0, 1.0][0]

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers")))
print(f"{STEPS} steps, half of them by each transformer:")
print("  guidance_scale  guidance_scale_2  passes of each  differs from 1, 1 by")
for (one, two), (frames, passes) in found.items():
    difference = (frames - unguided).abs().max().item()
    print(f"  {one:14}  {two:16}  {passes[0]:7}{passes[1]:7}  {difference:20.4f}")
passes = [found[pair][1] for pair in scales]
same = torch.equal(found[1.0, 5.0][0], unguided)
same = same and all(not torch.equal(found[pair][0], unguided) for pair in scales[2:])
same = same and sum(passes[1]) == STEPS and sum(passes[2]) == sum(passes[3]) == 2 * STEPS
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
