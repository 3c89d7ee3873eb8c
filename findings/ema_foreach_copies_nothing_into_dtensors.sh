#!/usr/bin/env bash
# diffusers 0.42.1 with torch 2.13.0: EMAModel(foreach=True) averages the DTensor parameters of
# fully_shard(), but copy_to() and restore() end in a NotImplementedError; foreach=False works.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet diffusers==0.42.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
import torch.distributed as dist
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def outcome(action):
    """Says that the action works, or which error it ends in."""
    try:
        action()
    except NotImplementedError as error:
        return f"{type(error).__name__}: {error}"
    return "works"


@torch.no_grad()
def outcomes(mesh, foreach):
    """What becomes of averaging, using the average, and going back, in this order."""
    model = nn.Linear(4, 4)
    fully_shard(model, mesh=mesh)
    average = EMAModel(model.parameters(), foreach=foreach)
    actions = {
        "step": average.step, "store": average.store,
        "copy_to": average.copy_to, "restore": average.restore,
    }
    return {name: outcome(lambda: action(model.parameters())) for name, action in actions.items()}


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
found = {foreach: outcomes(mesh, foreach) for foreach in (True, False)}
dist.destroy_process_group()

print(f"torch {version('torch')}, diffusers {version('diffusers')}")
print("An average of the parameters of a model that fully_shard() has sharded:")
for foreach, results in found.items():
    print(f"  EMAModel(foreach={foreach})")
    for name, result in results.items():
        print(f"    {name:<8} {result}")
failed = {foreach: [name for name in results if results[name] != "works"]
          for foreach, results in found.items()}
same = failed == {True: ["copy_to", "restore"], False: []}
same = same and "_foreach_copy_" in found[True]["copy_to"]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
