"""What Gradio keeps on disk for the page: in a folder of its own, bounded and swept."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from .asgi import read_body, replayed
from .calls import Refused

RUNS_FOLDER = "runs"
LARGEST_UPLOAD = 100 * 2**20  # bytes of a request, in memory until it is whole; a 4K clip has less
AT_ONCE = 8  # uploads on their way
ON_ITS_WAY = 300.0  # seconds that an upload may take
KEPT, KEPT_FOR = 256 * 2**20, 600.0  # bytes of all uploads, on their way or here, and seconds


def own_folder() -> Path:
    """Has Gradio keep its files in a folder that no other program uses; returns that folder.

    What killed pages left can be told from nobody else's so.
    """
    folder = Path(get_upload_folder())
    if folder.name != "ultragen":
        folder /= "ultragen"
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def remove_old_copies(folder: Path, age: float, stay: Collection[str] = ()) -> None:
    """Removes what Gradio has copied or was sent, and not touched for a while.

    It knows only what its own process made, and leaves empty folders.

    Args:
        folder: From `own_folder`; runs below it stay.
        age: Seconds.
        stay: Paths of files that stay: `lasting_copies` of the page.
    """
    kept = {folder / RUNS_FOLDER, *(Path(path).parent for path in stay)}
    for path in folder.glob("*"):
        if path not in kept and time.time() - _touched(path) > age:
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def lasting_copies(blocks: Any) -> set[str]:
    """Paths of what a page shows from its start on, to everyone."""
    return {path for each in blocks.blocks.values() for path in each.keep_in_cache}


def forget_removed(blocks: Any) -> None:
    """Has Gradio forget files that are gone, whose names it would keep for good.

    Args:
        blocks: The page.
    """
    for made in blocks.temp_file_sets:
        made.difference_update([path for path in list(made) if not os.path.exists(path)])


def _touched(path: Path) -> float:
    """When a file, or the newest in a folder, was changed or made."""
    with suppress(OSError):  # it may go meanwhile
        files = [path, *path.iterdir()] if path.is_dir() else [path]
        return max(max(file.stat().st_mtime, file.stat().st_ctime) for file in files)
    return time.time()


class Uploads:
    """What visitors send, which anyone may: small, little at once, and not for long."""

    def __init__(self) -> None:
        self.coming: list[int] = []  # bytes of those on their way
        self._kept: dict[Path, float] = {}  # with the time
        self._door = asyncio.Lock()  # what Gradio leaves unfinished is one upload's

    async def take(self, app: Any, scope: dict, receive: Any, send: Any) -> None:
        """Hands an upload on to Gradio once it is whole.

        Raises:
            Refused: if it is too large or can't be read, or too many files are here.
        """
        self.sweep(scope["app"].get_blocks())
        held = sum(path.stat().st_size for path in self._kept if path.exists())
        size = _announced(scope)
        if len(self.coming) >= AT_ONCE or held + sum(self.coming) + size > KEPT:
            raise Refused(429, "Too many files are being sent: try again in ten minutes.")
        self.coming.append(size)
        try:
            async with asyncio.timeout(ON_ITS_WAY):
                body = await read_body(receive, LARGEST_UPLOAD)
            await _check_form(scope, body)
            async with self._door:
                await self._pass_on(app, scope, replayed(body, receive), send)
        except TimeoutError:
            raise Refused(408, f"A file must come within {ON_ITS_WAY:.0f} seconds.") from None
        finally:
            self.coming.remove(size)

    async def _pass_on(self, app: Any, scope: dict, receive: Any, send: Any) -> None:
        """Lets Gradio write the files; of what it can't, nothing stays."""
        folder = Path(get_upload_folder())
        before = set(folder.glob("tmp*"))
        answer: list[dict] = []

        async def collect(message: dict) -> None:
            answer.append(message)

        try:
            await app(scope, receive, collect)
        except OSError as error:
            print(f"An upload could not be written: {error}", file=sys.stderr)
            raise Refused(507, "The page has no room for files: try again later.") from error
        finally:
            for path in set(folder.glob("tmp*")) - before:
                path.unlink()
        if answer[0]["status"] == 200:
            paths = json.loads(b"".join(message.get("body", b"") for message in answer))
            self._kept |= dict.fromkeys(map(Path, paths), time.monotonic())
            blocks = scope["app"].get_blocks()
            asyncio.get_running_loop().call_later(KEPT_FOR + 1, self.sweep, blocks)
        for message in answer:
            await send(message)

    def sweep(self, blocks: Any) -> None:
        """Removes uploads after a while, but those that the page shows."""
        shown = lasting_copies(blocks) | {
            path for made in blocks.temp_file_sets if made is not blocks.upload_file_set
            for path in made
        }  # fmt: skip
        for path, since in list(self._kept.items()):
            if time.monotonic() - since > KEPT_FOR:
                del self._kept[path]
                blocks.upload_file_set.discard(str(path))
                if str(path) not in shown:
                    with suppress(OSError):
                        path.unlink(missing_ok=True)  # what was read is gone
                        path.parent.rmdir()


def _announced(scope: dict) -> int:
    """Bytes that an upload says it has, which a server holds it to, or may have."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    return min(int(length), LARGEST_UPLOAD) if length.isdigit() else LARGEST_UPLOAD


async def _check_form(scope: dict, body: bytes) -> None:
    """Gradio 6.31 fails on forms with anything else than files, and keeps those of other names.

    Raises:
        Refused: if an upload is no form of files.
    """
    try:
        async with Request(scope, replayed(body, None)).form(max_files=20) as form:
            fits = [name == "files" and hasattr(file, "file") for name, file in form.multi_items()]
    except (HTTPException, MultiPartException):
        fits = []
    if not fits or not all(fits):
        raise Refused(
            400, "Send files as multipart/form-data, each in a field that is called 'files'."
        )
