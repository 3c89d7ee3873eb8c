#!/usr/bin/env bash
# diffusers 0.42.1: export_to_video multiplies every array by 255. Frames of bytes, as decoders give
# them, wrap around, which is their negative: white is written as 1, 200 as 56.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 imageio==2.38.1 imageio-ffmpeg==0.8.1 av==18.1.0 numpy==2.4.6

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
from diffusers.utils import export_to_video
from PIL import Image

FOLDER = Path(sys.argv[1])
GREYS = (0, 40, 200, 255)


def written(value, kind):
    """The grey that a clip of this grey has once written, frames given in this kind."""
    path = str(FOLDER / "clip.mp4")
    bytes_ = np.full((64, 64, 3), value, np.uint8)
    frame = {"bytes": bytes_, "fractions": bytes_ / 255, "pictures": Image.fromarray(bytes_)}[kind]
    export_to_video([frame] * 4, path, fps=16)
    with av.open(path) as container:
        return round(next(container.decode(video=0)).to_ndarray(format="rgb24").mean())


found = {
    kind: [written(value, kind) for value in GREYS] for kind in ("bytes", "fractions", "pictures")
}

print(", ".join(f"{name} {version(name)}" for name in ("diffusers", "imageio", "av", "numpy")))
print(f"Greys of clips that export_to_video was given  {list(GREYS)}")
for kind, greys in found.items():
    print(f"  written from frames as {kind:<22} {greys}")
expected = {"bytes": [-grey % 256 for grey in GREYS], "fractions": GREYS, "pictures": GREYS}
same = all(
    abs(one - other) <= 2
    for kind, greys in expected.items()
    for one, other in zip(greys, found[kind])
)
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
