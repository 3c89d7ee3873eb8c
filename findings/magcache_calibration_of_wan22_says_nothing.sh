#!/usr/bin/env bash
# diffusers 0.42.1: MagCacheConfig(calibrate=True) prints its ratios once a model has made as many
# steps as it was told. With Wan 2.2 each transformer makes a part of them: told all of a run's
# steps, as the documentation of num_inference_steps says, a calibration ends without a line.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import contextlib
import io
import sys
from importlib.metadata import version

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler, MagCacheConfig, WanPipeline, WanTransformer3DModel,
)

STEPS, BOUNDARY = 6, 0.875
torch.manual_seed(0)
PROMPT = torch.randn(1, 5, 8)


def transformer():
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )


def printed(*told):
    """How many ratios a calibration prints in each list, for transformers told these steps."""
    models = [transformer() for _ in told]
    for model, steps in zip(models, told):
        model.enable_cache(MagCacheConfig(num_inference_steps=steps, calibrate=True))
    second = {"transformer_2": models[1], "boundary_ratio": BOUNDARY} if models[1:] else {}
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=models[0],
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **second,
    )
    pipeline.set_progress_bar_config(disable=True)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        pipeline(
            prompt_embeds=PROMPT, height=32, width=32, num_frames=5, num_inference_steps=STEPS,
            guidance_scale=1.0, output_type="latent",
        )
    lists = [line for line in output.getvalue().splitlines() if line.startswith("[1.0")]
    return [len(line.split(",")) for line in lists]


scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
scheduler.set_timesteps(STEPS)
high = int((scheduler.timesteps >= BOUNDARY * 1000).sum())
found = {
    f"one transformer, told {STEPS}": printed(STEPS),
    f"two transformers, told {STEPS} and {STEPS}": printed(STEPS, STEPS),
    f"two transformers, told {high} and {STEPS - high}": printed(high, STEPS - high),
}

print(f"torch {version('torch')}, diffusers {version('diffusers')}")
print(f"Numbers of ratios that the calibration of a run of {STEPS} steps prints:")
for title, numbers in found.items():
    print(f"  {title:32} {numbers}")
same = list(found.values()) == [[STEPS], [], [high, STEPS - high]]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
