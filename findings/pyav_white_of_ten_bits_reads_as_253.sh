#!/usr/bin/env bash
# PyAV 18.1.0: to_ndarray(format="rgb24") of a 10-bit frame with halved chroma is one or two steps
# too dark: white reads as 253. ACCURATE_RND does not help, FULL_CHR_H_INT does.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet av==18.1.0 numpy==2.4.6

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import av
import numpy as np
from av.video.reformatter import Interpolation

FLAGS = {
    "no flags": None,
    "ACCURATE_RND": Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
    "FULL_CHR_H_INT": Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT,
}
GREYS = (0, 30, 60, 90, 120, 150, 180, 210, 240, 255)


def read(layout, bits, flags):
    """The greys, each as a frame of limited range without colour, as rgb24 gives them back."""
    step = 1 << (bits - 8)
    kind = np.uint8 if bits == 8 else np.uint16
    answers = []
    for grey in GREYS:
        luma = round((16 + 219 * grey / 255) * step)
        frame = av.VideoFrame(64, 48, layout)
        for plane, value in zip(frame.planes, (luma, 128 * step, 128 * step)):
            plane.update(np.full(plane.buffer_size // kind().itemsize, value, kind).tobytes())
        pixels = frame.to_ndarray(format="rgb24", interpolation=flags)
        answers.append(int(pixels[24, 32, 1]))
    return answers


layouts = {"yuv420p": 8, "yuv420p10le": 10, "yuv422p10le": 10, "yuv444p10le": 10}
found = {
    (layout, name): read(layout, bits, flags)
    for layout, bits in layouts.items()
    for name, flags in FLAGS.items()
}

names = ("av", "numpy")
print(", ".join(f"{name} {version(name)}" for name in names))
print("libswscale", ".".join(map(str, av.library_versions["libswscale"])))
print(f"{'plain grey frames':28}", *(f"{grey:4}" for grey in GREYS))
for (layout, name), answers in found.items():
    print(f"  {layout:11} {name:14}", *(f"{answer:4}" for answer in answers))
same = all(found["yuv444p10le", name] == list(GREYS) for name in FLAGS)
for layout in ("yuv420p10le", "yuv422p10le"):
    plain = found[layout, "no flags"]
    same = same and plain[-1] == 253
    same = same and all(grey - answer in (1, 2) for grey, answer in zip(GREYS[1:], plain[1:]))
    same = same and found[layout, "ACCURATE_RND"] == plain
    same = same and found[layout, "FULL_CHR_H_INT"] == list(GREYS)
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
