"""The Python API in five lines: a prompt → a clip at 544p, written to a file."""

from pathlib import Path

from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED_MODEL
from ultragen.video import encode_video

PROMPT = "a calm lake under snowy mountains at sunset, the camera pans right"
pipe = UltraGenPipeline.from_pretrained(EMBEDDED_MODEL)
clip = pipe(PROMPT, height=544, width=960, num_frames=17, output_type="uint8").frames[0]
print("Written:", encode_video(clip, Path("lake.mp4"), fps=12))
