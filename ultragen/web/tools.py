"""What the MCP server answers: a block for each output, whether or not progress is asked for."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import gradio.mcp
from anyio.to_thread import run_sync
from gradio_client.utils import is_file_obj_with_meta


class ToolServer(gradio.mcp.GradioMCPServer):
    """Gradio's MCP server, whose 6.31 gives callers that ask for no progress one block: a Python
    list as text, with paths of the server in place of addresses; and settings as Python writes
    them."""

    async def _execute_tool_without_progress(self, job: Any) -> list[Any]:
        data = None
        async for update in job:
            if update.type == "output" and update.final and update.success:
                data = update.outputs["data"]
        if data is None:
            await run_sync(job.result)  # raises what went wrong
            raise RuntimeError("The run ended without a result: try again.")
        return data

    def postprocess_output_data(self, data: Any, root_url: str) -> list[Any]:
        plain = [each if is_file_obj_with_meta(each) else _as_text(each) for each in data]
        return super().postprocess_output_data(plain, root_url)


def _as_text(output: Any) -> str:
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)


def serve_tools() -> bool:
    """Whether there is an MCP server, and makes it this one: Gradio takes what its module names."""
    if find_spec("mcp") is None:
        return False
    gradio.mcp.GradioMCPServer = ToolServer
    return True
