"""Where the page's links lead: the paper, and files of the repository that the page serves."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

PAPER = "https://arxiv.org/abs/2510.18775"
SPACES = "https://huggingface.co/spaces"
FILES = {"readme": "README.md", "licence": "LICENSE", "vocabulary": "docs/world.md"}


def links() -> dict[str, str]:
    """Addresses by name; those without a scheme are relative to the page."""
    space = os.environ.get("SPACE_ID")
    return {
        "Paper": PAPER,
        "Code": f"{SPACES}/{space}/tree/main" if space else "about/readme",
        "Licence": "about/licence",
        "Vocabulary": "about/vocabulary",
    }


def routes(root: Path) -> list[Route]:
    """What serves the files, as text.

    Args:
        root: Folder of the repository.
    """

    return [Route(f"/about/{name}", _text(root / file)) for name, file in FILES.items()]


def _text(path: Path) -> Callable[[Request], Awaitable[FileResponse]]:
    """Answers with a file as text: browsers save Markdown that comes as what it is."""

    async def answer(request: Request) -> FileResponse:
        return FileResponse(path, media_type="text/plain")

    return answer
