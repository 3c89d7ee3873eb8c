#!/usr/bin/env bash
# torchao 0.18.0: the 8-bit map of AdamW8bit's first moment goes from -0.993 to 1, values are scaled
# to +-1. A block's largest value shrinks in each step if it is negative, and stays if positive.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/env/bin/pip" install --quiet torchao==0.18.0

cat > "$work/shown.py" <<'PY'
import logging
import sys
from importlib.metadata import version

import torch

# torchao notes which of its GPU extensions are not for this machine.
logging.disable(logging.WARNING)
from torchao.optim import AdamW8bit

# The same arithmetic without a C++ compiler.
torch.compiler.set_stance("force_eager")


def trained(optimizer_class, gradient, steps=200):
    """A weight that began at 0, and its first moment, after steps with this one gradient."""
    weight = torch.nn.Parameter(torch.zeros(4096))
    optimizer = optimizer_class([weight], lr=1e-3, weight_decay=0.0)
    for _ in range(steps):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    moment = optimizer.state[weight]["exp_avg"]
    if optimizer_class is AdamW8bit:
        moment = moment.dequantize()
    return weight[0].item(), moment[0].item()


found = {
    (optimizer_class, gradient): trained(optimizer_class, gradient)
    for optimizer_class in (torch.optim.AdamW, AdamW8bit)
    for gradient in (1.0, -1.0)
}

print(f"torch {version('torch')}, torchao {version('torchao')}")
print("200 steps at a learning rate of 0.001, every gradient the same:")
for (optimizer_class, gradient), (weight, moment) in found.items():
    print(f"  {optimizer_class.__name__:<10} gradient {gradient:+.0f}: "
          f"weight 0 to {weight:+.4f}, first moment {moment:+.4f}")
exact = [abs(abs(weight) - 0.2) < 1e-4 and abs(abs(moment) - 1) < 1e-4
         for weight, moment in found.values()]
weight, moment = found[AdamW8bit, -1.0]
same = exact == [True, True, True, False] and 0.188 < weight < 0.190 and -0.94 < moment < -0.93
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
