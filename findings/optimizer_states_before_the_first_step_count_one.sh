#!/usr/bin/env bash
# torch 2.13.0: get_optimizer_state_dict() before an optimiser's first step makes its states by a
# step with gradients and learning rate of zero, and leaves what that did: Adam counts the step
# (PyTorch issue 164929), Rprop's step sizes begin at the smallest, so that it hardly moves.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

STEPS = 10
OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "Adam, weight decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "the same, dampening": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.9),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
}


def trained(make, look, clear=False):
    """The mean change of a weight in some steps, how many the optimiser counts, the weights."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    start = model.weight.detach().clone()
    optimizer = make(model.parameters())
    if look:
        get_optimizer_state_dict(model, optimizer)
    if clear:
        optimizer.state.clear()
    for _ in range(STEPS):
        model(torch.ones(1, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    counted = optimizer.state[model.weight].get("step")
    weight = model.weight.detach()
    return (weight - start).abs().mean().item(), counted and int(counted), weight


print(f"torch {version('torch')}")
print(f"{STEPS} steps, without and with get_optimizer_state_dict() before the first:")
print(f"  {'':<20} {'counted steps':>16} {'mean change of a weight':>23}   weights")
changed, mended, shares = {}, {}, {}
for name, make in OPTIMIZERS.items():
    change, counted, weight = trained(make, look=False)
    change_after, counted_after, weight_after = trained(make, look=True)
    changed[name] = not torch.equal(weight, weight_after)
    mended[name] = torch.equal(weight, trained(make, look=True, clear=True)[2])
    shares[name] = change_after / change
    counts = f"{counted} -> {counted_after}" if counted else "none kept"
    told = "others" if changed[name] else "the same"
    print(f"  {name:<20} {counts:>16} {change:>12.5f} -> {change_after:.5f}   {told}")
print(f"With optimizer.state.clear() after it all are the same: {all(mended.values())}")

unchanged = {"SGD, momentum", "SGD"}
same = all(changed[name] == (name not in unchanged) for name in OPTIMIZERS)
same = same and all(mended.values()) and shares["Rprop"] < 0.1
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
