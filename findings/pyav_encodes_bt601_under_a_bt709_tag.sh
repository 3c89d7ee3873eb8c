#!/usr/bin/env bash
# PyAV 18.1.0: encode() turns RGB frames into YUV by BT.601's matrix, also where the stream's
# colorspace says BT.709: that only tags the file, and whoever reads the tag shows other colours.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet av==18.1.0 numpy==2.4.6

cat > "$work/shown.py" <<'PY'
import io
import sys
from importlib.metadata import version

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace, ColorRange, ColorTrc

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def encoded(colour, tagged, frame_tagged):
    """A lossless clip of one colour, in 4:4:4 so that nothing else changes it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=16, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
        if tagged:
            stream.codec_context.colorspace = Colorspace.ITU709
            stream.codec_context.color_primaries = ColorPrimaries.BT709
            stream.codec_context.color_trc = ColorTrc.BT709
            stream.codec_context.color_range = ColorRange.MPEG
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), colour, np.uint8), format="rgb24")
        if frame_tagged:
            frame.colorspace = Colorspace.ITU709
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    file.seek(0)
    return file


def decoded(file):
    """The matrix that the file tells, and the colour, read by PyAV itself."""
    with av.open(file) as container:
        frame = next(container.decode(video=0))
        return int(frame.colorspace), tuple(map(int, frame.to_ndarray(format="rgb24")[32, 32]))


ways = {
    "no tag": (False, False),
    "codec_context tagged BT.709": (True, False),
    "tagged, and each RGB frame too": (True, True),
}
found = {
    title: [decoded(encoded(colour, *way)) for colour in COLOURS.values()]
    for title, way in ways.items()
}

print(", ".join(f"{name} {version(name)}" for name in ("av", "numpy")))
print("libswscale", ".".join(map(str, av.library_versions["libswscale"])))
print(f"{'frames of one colour, encoded':34}", *(f"{str(c):>15}" for c in COLOURS.values()))
for title, answers in found.items():
    print(f"  {title:32}", *(f"{str(colour):>15}" for _, colour in answers))


def error(title):
    """The largest error of all channels of all colours."""
    colours = np.array([colour for _, colour in found[title]])
    return int(np.abs(colours - np.array(list(COLOURS.values()))).max())


matrices = {title: {matrix for matrix, _ in answers} for title, answers in found.items()}
unspecified, bt709 = 2, int(Colorspace.ITU709)
same = list(matrices.values()) == [{unspecified}, {bt709}, {bt709}]
errors = [error(title) for title in ways]
same = same and errors[0] <= 2 and errors[1] >= 10 and errors[2] <= 2
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
