#!/usr/bin/env bash
# diffusers 0.42.1: with FlowMatchEulerDiscreteScheduler(stochastic_sampling=True) the generator
# that WanPipeline is given makes the first noise only; that of each step comes from torch's global
# state, so that one seed gives another clip each time.
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

torch.manual_seed(0)
transformer = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
    freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
)
prompt = torch.randn(1, 5, 8)


class Seeded(FlowMatchEulerDiscreteScheduler):
    """Takes the noise of each step from a generator of its own."""

    generator = None

    def step(self, *arguments, **options):
        return super().step(*arguments, generator=self.generator, **options)


def latents(scheduler):
    """The latents of seed 0."""
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    if isinstance(scheduler, Seeded):
        scheduler.generator = generator
    return pipeline(
        prompt_embeds=prompt, height=32, width=32, num_frames=5, num_inference_steps=4,
        guidance_scale=1.0, generator=generator, output_type="latent",
    ).frames


def difference(kind=FlowMatchEulerDiscreteScheduler, global_seed=None, **options):
    """How far two runs with the same seed are apart."""
    runs = []
    for _ in range(2):
        if global_seed is not None:
            torch.manual_seed(global_seed)
        runs.append(latents(kind(shift=3.0, **options)))
    return (runs[0] - runs[1]).abs().max().item()


found = {
    "stochastic_sampling=False": difference(),
    "stochastic_sampling=True": difference(stochastic_sampling=True),
    "True, torch.manual_seed before each": difference(stochastic_sampling=True, global_seed=0),
    "True, a step that is given a generator": difference(Seeded, stochastic_sampling=True),
}

print(f"torch {version('torch')}, diffusers {version('diffusers')}")
print("How far two runs with generator=torch.Generator().manual_seed(0) are apart:")
for title, value in found.items():
    print(f"  {title:40} {value:.3f}")
same = [value == 0 for value in found.values()] == [True, False, True, True]
same = same and found["stochastic_sampling=True"] > 1
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
