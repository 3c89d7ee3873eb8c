#!/usr/bin/env bash
# diffusers 0.42.1: UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=5.0), as
# in Wan's examples, is no flow scheduler if the pipeline held FlowMatchEulerDiscreteScheduler.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet diffusers==0.42.1 transformers==5.23.0 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import logging
import sys
from importlib.metadata import version

import torch
from diffusers import (
    AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline,
    WanTransformer3DModel,
)


class Lines(logging.Handler):
    """Keeps the lines that diffusers logs."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def sample():
    """A clip from given embeddings, with the timesteps at which the transformer was asked."""
    frames = pipe(
        prompt_embeds=torch.ones(1, 3, 8), negative_prompt_embeds=torch.zeros(1, 3, 8),
        height=32, width=32, num_frames=5, num_inference_steps=8,
    ).frames
    return frames.shape, [round(float(timestep), 1) for timestep in pipe.scheduler.timesteps]


transformer = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
    freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
)
vae = AutoencoderKLWan(
    base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
)
flow = FlowMatchEulerDiscreteScheduler(shift=5.0)
pipe = WanPipeline(
    tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=flow,
)
pipe.set_progress_bar_config(disable=True)
logged = Lines()
logging.getLogger("diffusers").addHandler(logged)

_, before = sample()
pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=5.0)
of_config, logged.lines = logged.lines, []
shape, after = sample()
config = {name: pipe.scheduler.config[name] for name in ("prediction_type", "use_flow_sigmas")}

print(f"torch {version('torch')}, diffusers {version('diffusers')}")
print(f"FlowMatchEulerDiscreteScheduler, shift 5:  {before}")
print(f"UniPC made from its configuration:         {after}")
print(f"  {config}, flow_shift {pipe.scheduler.config.flow_shift}, which has no effect")
print(f"  logged while it was made: {of_config}")
print(f"  logged while WanPipeline sampled with it: {logged.lines}; it returned a clip of {shape}")
same = config == {"prediction_type": "epsilon", "use_flow_sigmas": False} and not logged.lines
same = same and shape == (1, 5, 32, 32, 3) and after == [999, 874, 749, 624, 500, 375, 250, 125]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
