#!/usr/bin/env bash
# diffusers 0.42.1 with torch 2.13.0: under fully_shard() with MixedPrecisionPolicy(param_dtype=
# torch.bfloat16) a Wan transformer sees timestep 501 as 500, and its blocks the rotary positions,
# which it makes in float32, in bfloat16.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/env/bin/pip" install --quiet diffusers==0.42.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

TIMESTEPS = (501.0, 987.3)


@torch.no_grad()
def seen(mesh, dtype, **options):
    """The timesteps that a small Wan transformer is given, as it sees them, and how far the rotary
    positions that its block sees are from those that it made."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=8, freq_dim=256, ffn_dim=32, num_layers=1,
    )
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, **options)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    timesteps, made, given = [], [], []
    model.condition_embedder.register_forward_pre_hook(
        lambda _, inputs: timesteps.append(round(inputs[0].item(), 4))
    )
    model.rope.register_forward_hook(lambda _, inputs, output: made.append(output[0]))
    model.blocks[0].register_forward_hook(lambda _, inputs, output: given.append(inputs[3][0]))
    for timestep in TIMESTEPS:
        model(
            torch.randn(1, 4, 21, 8, 8, dtype=dtype),
            torch.tensor([timestep]),
            torch.randn(1, 3, 8, dtype=dtype),
        )
    error = max((ours - theirs).abs().max().item() for ours, theirs in zip(made, given))
    return timesteps, round(error, 4)


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
found = {
    "param_dtype=torch.bfloat16": seen(mesh, torch.float32),
    "... cast_forward_inputs=False, latents and text cast beforehand": seen(
        mesh, torch.bfloat16, cast_forward_inputs=False
    ),
}
dist.destroy_process_group()

print(f"torch {version('torch')}, diffusers {version('diffusers')}")
print(f"A Wan transformer, whose blocks and root are sharded, is given the timesteps {TIMESTEPS}.")
for way, (timesteps, error) in found.items():
    print(f"  {way}")
    print(f"    it sees {timesteps}; cosines of the rotary positions are off by up to {error}")
rounded, exact = found.values()
same = rounded[0] == [500, 988] and 0.001 < rounded[1] < 0.004 and exact == ([501, 987.3], 0)
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
