#!/usr/bin/env bash
# diffusers 0.42.1: Wan's autoencoder encodes 4n + 1 frames of a clip and leaves out up to three at
# its end without a word: WanVideoToVideoPipeline makes 13 frames of 16. WanPipeline, asked for 16,
# says that it rounds, and makes 17.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import logging
import sys
from importlib.metadata import version

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image

torch.manual_seed(0)
VAE = AutoencoderKLWan(
    base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4,
    latents_std=[1.0] * 4,
).eval()
PARTS = {
    "tokenizer": None, "text_encoder": None, "vae": VAE,
    "transformer": WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
    ),
}
SCHEDULER = UniPCMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
)
OPTIONS = {
    "prompt_embeds": torch.randn(1, 4, 8), "negative_prompt_embeds": torch.zeros(1, 4, 8),
    "height": 32, "width": 32, "num_inference_steps": 4, "output_type": "np",
}
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("diffusers").addHandler(handler)


@torch.no_grad()
def encoded(clip):
    return VAE.encode(clip).latent_dist.mode()


def again(number):
    """Frames that video to video makes of so many, and whether it says anything of them."""
    pipeline = WanVideoToVideoPipeline(**PARTS, scheduler=SCHEDULER)
    pipeline.set_progress_bar_config(disable=True)
    said.clear()
    video = [Image.new("RGB", (32, 32), (10 * n, 0, 0)) for n in range(number)]
    frames = pipeline(video=video, strength=0.5, **OPTIONS).frames
    return frames.shape[1], any("frame" in line for line in said)


clip = torch.rand(1, 3, 16, 32, 32) * 2 - 1
other = clip.clone()
other[:, :, 13:] = -1.0
difference = (encoded(clip) - encoded(other)).abs().max().item()
made = {number: again(number) for number in (13, 14, 15, 16, 17)}
pipeline = WanPipeline(**PARTS, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
pipeline.set_progress_bar_config(disable=True)
said.clear()
asked = pipeline(num_frames=16, **OPTIONS).frames.shape[1]
told = [line for line in said if "num_frames" in line]

print(f"diffusers {version('diffusers')}, torch {version('torch')}")
print("WanVideoToVideoPipeline, frames given: frames made, whether a line was logged about frames:")
for number, (frames, line) in made.items():
    print(f"  {number}: {frames}, {line}")
print(f"Latents of 16 frames, the last three blackened: at most {difference} apart")
print(f"WanPipeline(num_frames=16): {asked} frames, and says {told}")
same = [frames for frames, _ in made.values()] == [13, 13, 13, 13, 17] and difference == 0
same = same and not any(line for _, line in made.values()) and len(told) == 1
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
