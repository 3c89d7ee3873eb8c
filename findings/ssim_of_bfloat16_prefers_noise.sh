#!/usr/bin/env bash
# torchmetrics 1.9.0: SSIM of bfloat16 frames is computed in bfloat16, where its differences of
# nearly equal numbers are mostly rounding: a clip compared with itself gets 0.93, with a noisy one
# 0.99. The type of the first argument alone decides: float32 frames beside it are cast to it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/env/bin/pip" install --quiet torchmetrics==1.9.0

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from torchmetrics.image import StructuralSimilarityIndexMeasure


def similarity(frames, others):
    return round(StructuralSimilarityIndexMeasure(data_range=1.0)(frames, others).item(), 4)


torch.manual_seed(0)
y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
clip = (0.5 + 0.3 * torch.sin(6 * x + 3 * y)).expand(4, 3, 64, 64).clone()
# What both have is exact in bfloat16: only the metric's own arithmetic differs below.
noisy = (clip + 0.01 * torch.randn_like(clip)).clamp(0, 1).bfloat16()
clip = clip.bfloat16()
kinds = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "bfloat16, then float32": (torch.bfloat16, torch.float32),
    "float32, then bfloat16": (torch.float32, torch.bfloat16),
}
found = {
    kind: (similarity(clip.to(one), clip.to(other)), similarity(noisy.to(one), clip.to(other)))
    for kind, (one, other) in kinds.items()
}

print(f"torchmetrics {version('torchmetrics')}, torch {version('torch')}")
print("SSIM of a smooth clip of values from 0 to 1, the same numbers in each type:")
for kind, (equal, other) in found.items():
    print(f"  {kind:<24} with itself {equal:.4f}, with a noisy one {other:.4f}")
exact, rounded, first, second = found.values()
same = exact[0] == 1 and 0.95 < exact[1] < 0.97
same = same and rounded[0] < 0.98 and rounded[1] > rounded[0]
same = same and (first, second) == (rounded, exact)
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
