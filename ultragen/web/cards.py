"""What other sites show of a link to the page: the title, picture and description of its clip."""

from __future__ import annotations

import re
from html import escape
from typing import Any
from urllib.parse import parse_qs, urlencode

from gradio.route_utils import get_root_url
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from ..runs.write import Result
from .links import RUN

POSTER = "/ultragen/poster"
TITLE = "UltraGen"
ABOUT = (
    "Text to video at the full size, beside the same prompt and seed made small and upscaled. "
    "Open it to compare both, or to make your own."
)
GRADIOS = re.compile(r'<meta\s+(?:property="og|name="twitter):[^>]*>')
LONGEST = 200  # characters of a title


class Cards:
    """ASGI middleware that names the clip of a link in the page's head.

    Gradio 6.31 says "Gradio" and "Click to try out the app!" there, before the page's own title.

    Args:
        app: What comes behind it.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")) or "/"
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
        elif path == POSTER:
            await poster(scope)(scope, receive, send)
        elif path == "/":
            await self._page(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _page(self, scope: dict, receive: Any, send: Any) -> None:
        """The page, with a head of its own."""
        started: dict = {}
        parts = []

        async def hold(message: dict) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body"):
                return
            body = b"".join(parts)
            if scope["method"] == "GET" and started["status"] == 200:
                body = with_card(body.decode("utf-8"), scope).encode("utf-8")
                headers = [pair for pair in started["headers"] if pair[0] != b"content-length"]
                started["headers"] = [*headers, (b"content-length", str(len(body)).encode())]
            await send(started)
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, hold)


def asked(scope: dict) -> tuple[Result | None, dict[str, str]]:
    """The clip that an address names, as long as it is kept, and the address's parameters."""
    query = parse_qs(scope["query_string"].decode("latin-1"))
    values = {name: texts[0] for name, texts in query.items()}
    return scope["app"].get_blocks().find_run(values.get(RUN)), values


def poster(scope: dict) -> Response:
    """The picture of a clip."""
    result, _ = asked(scope)
    if result is None:
        return Response("There is no such clip any more.", status_code=404)
    return FileResponse(result.poster, media_type="image/jpeg")


def with_card(page: str, scope: dict) -> str:
    """A page with its link preview in place of Gradio's."""
    result, values = asked(scope)
    root = get_root_url(Request(scope), "/", scope.get("root_path") or None)
    prompt = result.metadata["request"]["prompt"] if result else values.get("prompt", "")
    title = f"{prompt[:LONGEST]} · {TITLE}" if prompt else TITLE
    card = {"og:title": title, "og:description": ABOUT, "og:type": "website", "og:url": root}
    if result is not None:
        request, labels = result.metadata["request"], result.metadata["labels"]
        card["og:description"] = (
            f"{labels['native']}, seed {request['seed']}, beside {labels['upscaled']}. "
            "Open it to compare both, or to make your own."
        )
        card["og:url"] = f"{root}/?{urlencode(values)}"
        card["og:image"] = f"{root}{POSTER}?{urlencode({RUN: values[RUN]})}"
    card |= {"twitter:card": "summary_large_image" if result else "summary"}
    head = "".join(
        f'<meta {"name" if name.startswith("twitter") else "property"}="{name}" '
        f'content="{escape(text)}" />'
        for name, text in card.items()
    )
    # What comes behind is the page's own data, which may hold anything.
    start, script, rest = page.partition("<script")
    return GRADIOS.sub("", start) + head + script + rest
