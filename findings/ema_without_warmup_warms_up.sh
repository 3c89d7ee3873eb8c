#!/usr/bin/env bash
# diffusers 0.42.1: EMAModel(decay=0.9999, use_ema_warmup=False) warms up too, by (1 + n) / (10 + n)
# of n steps: its decay is 0.9999 from step 89991 on. The first hundreds of steps have a lower decay
# than with use_ema_warmup=True.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet diffusers==0.42.1

cat > "$work/shown.py" <<'PY'
import itertools
import sys
from importlib.metadata import version

import torch
from diffusers.training_utils import EMAModel

SHOWN = (1, 2, 10, 100, 1000)


def decays(**options):
    """The decay of some steps, and the average of a weight that is 1, and at its last step 0."""
    weight = torch.nn.Parameter(torch.ones(1))
    average = EMAModel([weight], decay=0.9999, **options)
    seen = []
    for step in range(1, SHOWN[-1] + 1):
        if step == SHOWN[-1]:
            weight.data.zero_()
        average.step([weight])
        if step in SHOWN:
            seen.append(round(average.cur_decay_value, 4))
    return seen, 1 - average.shadow_params[0].item()


plain, moved = decays(use_ema_warmup=False)
warmed, moved_warmed = decays(use_ema_warmup=True)
fixed, moved_fixed = decays(use_ema_warmup=False, min_decay=0.9999)
average = EMAModel([torch.nn.Parameter(torch.ones(1))], decay=0.9999)
reached = next(step for step in itertools.count(1) if average.get_decay(step) >= 0.9999)

print(f"diffusers {version('diffusers')}, torch {version('torch')}")
print(f"Decay of EMAModel(decay=0.9999) at steps {SHOWN}; how far one step moves the average then:")
for title, seen, by in (
    ("use_ema_warmup=False", plain, moved),
    ("use_ema_warmup=True", warmed, moved_warmed),
    ("use_ema_warmup=False, min_decay=0.9999", fixed, moved_fixed),
):
    print(f"  {title:40} {seen}  {by:.4f}")
print(f"use_ema_warmup=False: the decay is 0.9999 from step {reached} on.")
same = plain == [0.0, 0.1818, 0.5263, 0.9174, 0.9911] and reached == 89991
same = same and warmed[3] > plain[3] and fixed == [0.0] + [0.9999] * 4 and 0.008 < moved < 0.01
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
