#!/usr/bin/env bash
# PyAV 18.1.0: to_ndarray() of YUV in RGB of 16 bits or floats puts white of a limited range at
# 65283 and 0.996, not at 65535 and 1: taken as PQ, HDR of 203 cd/m² is read as 199.
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
from av.video.reformatter import ColorRange, Colorspace, Interpolation

FLAGS = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
M1, M2 = 2610 / 16384, 2523 / 4096 * 128
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
LIGHT = 203  # cd/m², HDR's reference white


def pq_code(light):
    """cd/m² → PQ's code in [0, 1]: SMPTE ST 2084."""
    power = (light / 10000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def pq_light(code):
    """PQ's code in [0, 1] → cd/m²."""
    power = code ** (1 / M2)
    return 10000 * ((power - C1) / (C2 - C3 * power)) ** (1 / M1)


def read(layout, bits, full, code, format):
    """A plain grey of this code in [0, 1], as PyAV gives it; and the code, as luma rounds it."""
    step = 1 << (bits - 8)
    black, span = (0, (1 << bits) - 1) if full else (16 * step, 219 * step)
    luma = round(black + span * code)
    kind = np.dtype("u1" if bits == 8 else "<u2")
    frame = av.VideoFrame(64, 48, layout)
    for plane, value in zip(frame.planes, (luma, 128 * step, 128 * step)):
        plane.update(np.full(plane.buffer_size // kind.itemsize, value, kind).tobytes())
    frame.color_range = ColorRange.JPEG if full else ColorRange.MPEG
    frame.colorspace = Colorspace.BT2020
    pixels = frame.to_ndarray(
        format=format, interpolation=FLAGS, src_color_range=frame.color_range,
        dst_color_range=ColorRange.JPEG,
    )
    return pixels[24, 32, 1].item(), (luma - black) / span


layouts = {"yuv420p": 8, "yuv420p10le": 10, "yuv444p12le": 12, "yuv444p16le": 16}
white, errors = {}, []
print(f"av {version('av')}, libswscale {'.'.join(map(str, av.library_versions['libswscale']))}")
print(f"{'white of':24}{'rgb48le':>9}{'gbrp10le':>9}{'gbrpf32le':>11}  {LIGHT} cd/m² of PQ")
for layout, bits in layouts.items():
    for full in (False, True):
        answers = [
            read(layout, bits, full, 1.0, format)[0]
            for format in ("rgb48le", "gbrp10le", "gbrpf32le")
        ]
        found, code = read(layout, bits, full, pq_code(LIGHT), "rgb48le")
        exact, seen = pq_light(code), pq_light(found / 65535)
        mended = pq_light(found / answers[0])
        white[layout, full] = answers[0]
        errors.append((full, seen / exact - 1, mended / exact - 1))
        name = f"{layout}, {'full' if full else 'limited'}"
        print(
            f"  {name:22}{answers[0]:9}{answers[1]:9}{answers[2]:11.5f}  {exact:.1f} is read as "
            f"{seen:.1f}, with white as 1 as {mended:.1f}"
        )
same = all(white[layout, False] == 65283 for layout in layouts)
same = same and all(
    white[layout, True] == (2**bits - 1) << (16 - bits) for layout, bits in layouts.items()
)
same = same and all(error < -0.02 for full, error, _ in errors if not full)
same = same and all(abs(mended) < 0.002 for _, _, mended in errors)
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
