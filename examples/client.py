"""The page's API from Python: both clips, side by side, and the metadata of the run.

python app.py &
python examples/client.py
python examples/client.py https://owner-space.hf.space
"""

from __future__ import annotations

import sys

from gradio_client import Client

PROMPT = "a calm lake under snowy mountains at sunset, the camera pans right"


def main(url: str = "http://127.0.0.1:7860", resolution: str = "544p") -> None:
    """Makes one pair of clips and prints where the files lie."""
    client = Client(url)
    native, upscaled, side_by_side, metadata = client.predict(
        prompt=PROMPT, resolution=resolution, seed=0, api_name="/generate"
    )
    print("native:      ", native)
    print("upscaled:    ", upscaled)
    print("side by side:", side_by_side)
    print(f"took {metadata['seconds']['total']:.0f} s with seed {metadata['request']['seed']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
