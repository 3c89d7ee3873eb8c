#!/usr/bin/env bash
# gradio 6.31.0 as an MCP server: of a tool that gives a video and something else, a client that
# asks for progress gets the video's URL as a block; one that doesn't gets a Python list as text.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet gradio==6.31.0 mcp==1.30.0 av==18.1.0 numpy==2.4.6
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR="$work/files" NO_PROXY=127.0.0.1,localhost

cat > "$work/shown.py" <<'PY'
import asyncio
import sys
from importlib.metadata import version
from pathlib import Path

import av
import gradio as gr
import numpy as np
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

VIDEO = Path(sys.argv[1]) / "clip.mp4"


def write_video():
    """Eight frames of H.264."""
    with av.open(VIDEO, "w") as output:
        stream = output.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for grey in range(0, 160, 20):
            pixels = np.full((64, 64, 3), grey, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))


def video(prompt: str):
    """Makes a clip.

    Args:
        prompt: What it shows.
    """
    return VIDEO


def video_and_seed(prompt: str):
    """Makes a clip, and tells its seed.

    Args:
        prompt: What it shows.
    """
    return VIDEO, 42


async def ignore(progress, total, message):
    """Hears how far a call is."""


async def ask(address):
    """What both tools answer without and with a listener for progress, as texts."""
    answers = {}
    async with streamablehttp_client(address) as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            for tool in ("video", "video_and_seed"):
                for listener in (None, ignore):
                    answer = await session.call_tool(
                        tool, {"prompt": "a lake"}, progress_callback=listener
                    )
                    answers[tool, listener is not None] = [block.text for block in answer.content]
    return answers


write_video()
with gr.Blocks() as demo:
    prompt, clip, seed = gr.Textbox(), gr.Video(), gr.Number()
    gr.Button().click(video, prompt, clip, api_name="video")
    gr.Button().click(video_and_seed, prompt, [clip, seed], api_name="video_and_seed")
_, url, _ = demo.launch(prevent_thread_lock=True, mcp_server=True, quiet=True)
found = asyncio.run(ask(f"{url}gradio_api/mcp/"))
demo.close()

print(f"gradio {version('gradio')}, mcp {version('mcp')}")
for (tool, listens), texts in found.items():
    print(f"{tool}, {'a client that asks for progress' if listens else 'one that does not'}:")
    for number, text in enumerate(texts, 1):
        print(f"  block {number}: {text if len(text) < 70 else f'{text[:67]}...'}")
lone, heard, listed, parted = found.values()
same = lone == heard and len(lone) == 1 and lone[0].startswith("http")
same = same and parted == [lone[0], "42"]
same = same and len(listed) == 1 and listed[0].startswith("[{'path': '")
same = same and lone[0] in listed[0] and listed[0].endswith(", 42]")
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
