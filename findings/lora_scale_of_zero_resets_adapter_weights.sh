#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: one run of WanPipeline with attention_kwargs={"scale": 0.0},
# to see the clip without LoRAs, sets the weights that set_adapters() gave to 1, for all later runs.
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

torch.manual_seed(0)
pipeline = WanPipeline(
    tokenizer=None, text_encoder=None, vae=None,
    transformer=WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
    ),
    scheduler=FlowMatchEulerDiscreteScheduler(),
)
pipeline.set_progress_bar_config(disable=True)
prompt = torch.randn(1, 5, 8)
name = "diffusion_model.blocks.0.self_attn.{}.lora_{}.weight"
shapes = {"A": (4, 32), "B": (32, 4)}
for adapter in ("style", "motion"):
    pipeline.load_lora_weights(
        {name.format(layer, side): torch.randn(shapes[side]) for layer in "qkvo" for side in "AB"},
        adapter_name=adapter,
    )
pipeline.set_adapters(["style", "motion"], [0.3, 0.8])


def run(scale):
    """The clip of one seed, with the LoRAs weighed by this scale."""
    return pipeline(
        prompt_embeds=prompt, height=32, width=32, num_frames=5, num_inference_steps=2,
        guidance_scale=1.0, attention_kwargs={"scale": scale},
        generator=torch.Generator().manual_seed(0), output_type="latent",
    ).frames


def weights():
    """What the adapters of a layer are multiplied by now."""
    return dict(pipeline.transformer.blocks[0].attn1.to_q.scaling)


found, clips = [("set_adapters", weights())], [run(1.0)]
for scale in (0.5, 0.0):
    run(scale)
    found.append((f'a run with {{"scale": {scale}}}', weights()))
    clips.append(run(1.0))

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers", "peft")))
print("Weights of the two adapters after each call, and whether the next clip, at scale 1, is the")
print("same as at first:")
equal = [torch.equal(clip, clips[0]) for clip in clips]
for (title, values), same in zip(found, equal):
    print(f"  {title:26} {values}  {same}")
kept = {"style": 0.3, "motion": 0.8}
same = [values for _, values in found] == [kept, kept, {"style": 1.0, "motion": 1.0}]
same = same and equal == [True, True, False]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
