#!/usr/bin/env bash
# torch 2.13.0: set_model_state_dict() with full_state_dict=True loads a state that lacks layers as
# if it were whole, also where strict is True: no error, no missing keys, those layers stay as they
# were.
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
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def load(mesh, **options):
    """Gives two sharded layers of zeros a state of ones without the second: what is said of it,
    and the parameters that are ones afterwards."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    fully_shard(model, mesh=mesh)
    state = {"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4)}
    try:
        said = str(set_model_state_dict(model, state, options=StateDictOptions(**options)))
    except RuntimeError as error:
        said = f"RuntimeError: {str(error).splitlines()[-1].strip()}"
    loaded = [
        name for name, parameter in model.named_parameters()
        if parameter.full_tensor().eq(1).all()
    ]
    return said, loaded


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
ways = [
    {"full_state_dict": True, "strict": True},
    {"full_state_dict": True, "strict": False},
    {"full_state_dict": True, "strict": True, "broadcast_from_rank0": True},
]
found = [load(mesh, **options) for options in ways]
dist.destroy_process_group()

print(f"torch {version('torch')}")
print("A sharded model has the layers 0 and 1; the state that is loaded has layer 0 alone.")
for options, (said, loaded) in zip(ways, found):
    print("  " + ", ".join(f"{name}={value}" for name, value in options.items()))
    print(f"    {said}")
    print(f"    loaded: {', '.join(loaded)}")
silent = ("<All keys matched successfully>", ["0.weight", "0.bias"])
same = found[:2] == [silent, silent] and "Missing key(s)" in found[2][0]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
