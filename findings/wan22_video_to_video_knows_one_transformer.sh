#!/usr/bin/env bash
# diffusers 0.42.1: WanVideoToVideoPipeline has no second transformer. Made of Wan 2.2, by from_pipe
# or from_pretrained, it samples with the one for high noise down to the last step, without a word.
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
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel,
    WanVideoToVideoPipeline,
)

FOLDER = Path(sys.argv[1]) / "wan22"
torch.manual_seed(0)
PROMPT = torch.randn(1, 5, 8)
VIDEO = [np.full((32, 32, 3), i / 8, np.float32) for i in range(9)]


class Messages(logging.Handler):
    """Keeps what diffusers logs, from warnings on."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def transformer():
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )


def steps(pipeline, **inputs):
    """The timesteps that each of the pipeline's transformers is asked at."""
    pipeline.set_progress_bar_config(disable=True)
    asked, hooks = {}, []
    for name in ("transformer", "transformer_2"):
        model = getattr(pipeline, name, None)
        asked[name] = None if model is None else []
        if model is not None:
            hooks.append(
                model.register_forward_pre_hook(
                    lambda _, arguments, options, into=asked[name]: into.append(
                        int(options["timestep"].flatten()[0])
                    ),
                    with_kwargs=True,
                )
            )
    pipeline(
        prompt_embeds=PROMPT, height=32, width=32, num_inference_steps=6, guidance_scale=1.0,
        output_type="latent", **inputs,
    )
    for hook in hooks:
        hook.remove()
    return asked


messages = Messages()
logging.getLogger("diffusers").addHandler(messages)
wan22 = WanPipeline(
    tokenizer=None, text_encoder=None, boundary_ratio=0.875,
    transformer=transformer(), transformer_2=transformer(),
    vae=AutoencoderKLWan(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ),
    scheduler=UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0
    ),
)
wan22.save_pretrained(FOLDER)
found = {"WanPipeline": steps(wan22, num_frames=9)}
makers = {
    "from_pipe": lambda: WanVideoToVideoPipeline.from_pipe(wan22),
    "from_pretrained": lambda: WanVideoToVideoPipeline.from_pretrained(
        FOLDER, text_encoder=None, tokenizer=None
    ),
}
for title, maker in makers.items():
    found[title] = steps(maker(), video=VIDEO, strength=0.5)
told = [text for text in messages.texts if "transformer_2" in text or "boundary" in text]

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers")))
print("At which of 1000 timesteps transformers are asked; the second one is for t < 875:")
for title, asked in found.items():
    for name, timesteps in asked.items():
        print(f"  {title:16} {name:14} {timesteps}")
print(f"  warnings that speak of transformer_2 or of the boundary: {told}")
# Other messages have come, so that the list above is empty for no other reason.
first, second = found.pop("WanPipeline").values()
same = min(first) >= 875 > max(second) and messages.texts and not told and all(
    max(asked["transformer"]) < 875 and asked["transformer_2"] is None for asked in found.values()
)
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
