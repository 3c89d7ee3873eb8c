#!/usr/bin/env bash
# torch 2.13.0: after a forward pass under no_grad, a model sharded by fully_shard() computes with
# the weights gathered for it, whatever its sharded parameters become. Nothing says so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


@torch.no_grad()
def validate_twice(mesh, between=None, **options):
    """Runs a model of ones, doubles its sharded parameters, and runs it again."""
    model = nn.Linear(4, 1, bias=False)
    nn.init.ones_(model.weight)
    fully_shard(model, mesh=mesh, **options)
    # An optimiser, or an average of the weights, holds these.
    parameters = list(model.parameters())
    inputs = torch.ones(1, 4)
    first = model(inputs).item()
    for parameter in parameters:
        parameter.mul_(2)
    if between is not None:
        between(model)
    return [first, model(inputs).item(), parameters[0].full_tensor().sum().item()]


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
found = {
    "fully_shard(model)": validate_twice(mesh),
    "... and model.reshard() before the second pass": validate_twice(
        mesh, between=lambda model: model.reshard()
    ),
    "fully_shard(model, reshard_after_forward=True)": validate_twice(
        mesh, reshard_after_forward=True
    ),
}
dist.destroy_process_group()

print(f"torch {version('torch')}")
print("A forward pass under no_grad, the weights doubled, a second pass; the second should give 8.")
for way, (first, second, weights) in found.items():
    print(f"  {way:<48} {first:g}, then {second:g}; the weights give {weights:g}")
same = list(found.values()) == [[4, 4, 8], [4, 8, 8], [4, 8, 8]]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
