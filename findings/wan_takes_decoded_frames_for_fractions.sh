#!/usr/bin/env bash
# diffusers 0.42.1 with PyAV 18.1.0: WanVideoToVideoPipeline takes arrays of bytes, as PyAV decodes
# frames, for numbers from 0 to 1: white enters the autoencoder as 509, not as 1, without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 ftfy==6.3.1 av==18.1.0

cat > "$work/shown.py" <<'PY'
import logging
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel, WanVideoToVideoPipeline,
)

PATH = Path(sys.argv[1]) / "ramp.mp4"
torch.manual_seed(0)
PROMPT = torch.randn(1, 5, 8)


class Messages(logging.Handler):
    """Keeps what diffusers logs, from warnings on."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def encoded(video):
    """The range of what the autoencoder is given, and what is said during the run."""
    ranges, messages = [], Messages()
    hook = pipeline.vae.encoder.register_forward_pre_hook(
        lambda _, arguments: ranges.append((arguments[0].min(), arguments[0].max()))
    )
    logging.getLogger("diffusers").addHandler(messages)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline(
            video=video, prompt_embeds=PROMPT, height=32, width=32, num_inference_steps=2,
            guidance_scale=1.0, output_type="latent",
        )
    logging.getLogger("diffusers").removeHandler(messages)
    hook.remove()
    low, high = (round(edge(column).item()) for edge, column in zip((min, max), zip(*ranges)))
    return low, high, [*messages.texts, *(str(one.message) for one in caught)]


with av.open(PATH, "w") as container:
    stream = container.add_stream("libx264", rate=16)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, 16:] = 255
    for _ in range(9):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode())
with av.open(PATH) as container:
    frames = list(container.decode(video=0))
arrays = [frame.to_ndarray(format="rgb24") for frame in frames]
pipeline = WanVideoToVideoPipeline(
    tokenizer=None, text_encoder=None,
    vae=AutoencoderKLWan(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ),
    transformer=WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    ),
    scheduler=UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0
    ),
)
pipeline.set_progress_bar_config(disable=True)
found = {
    "frame.to_image()": encoded([frame.to_image() for frame in frames]),
    'frame.to_ndarray(format="rgb24")': encoded(arrays),
    "the same arrays as one tensor": encoded(
        torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)[None]
    ),
    'frame.to_ndarray(format="rgb24") / 255': encoded([array / 255 for array in arrays]),
}

names = ("torch", "diffusers", "av")
print(", ".join(f"{library} {version(library)}" for library in names))
print("A video of black and white; what the autoencoder is given, from -1 to 1 by its training:")
for title, (low, high, said) in found.items():
    print(f"  {title:40} {low} to {high}, warnings: {said}")
same = [(low, high) for low, high, _ in found.values()] == [(-1, 1), (-1, 509), (-1, 509), (-1, 1)]
same = same and not any(said for _, _, said in found.values())
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
