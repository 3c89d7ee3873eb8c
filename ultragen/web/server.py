"""The page's server: ended by signals, and old results swept meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from threading import Thread
from types import FrameType
from typing import Any, NoReturn

import gradio as gr

from ..runs.worker import stop_all

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # the last one is missing on Windows
# Seconds, of the five in which the page ends, that runs and then connections have.
FOR_RUNS, FOR_CONNECTIONS = 3.0, 1.0
SWEEP_EVERY = 3600.0  # seconds
PORTS = range(7860, 7960)


class NoPort(OSError):
    """No port can be had at the page's address; the message says what to do."""


def ipv6_name() -> str | None:
    """The IPv6 address that `GRADIO_SERVER_NAME` asks for, as `launch` takes it; None where it asks
    for none."""
    asked = os.environ.get("GRADIO_SERVER_NAME", "")
    if ":" not in asked:
        return None
    # Gradio 6.31 looks for a free port at the variable's address as if that were an IPv4 one.
    del os.environ["GRADIO_SERVER_NAME"]
    return f"[{asked.strip('[]')}]"


def can_listen(address: str, port: int) -> bool:
    """Whether a server could listen at this port of all that the address stands for."""
    try:
        for family, _, _, _, place in socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            socket.create_server(place, family=family).close()
    except (OSError, OverflowError):  # such as an address of another machine, or port 70000
        return False
    return True


def launch(blocks: gr.Blocks, **options: Any) -> None:
    """Launches a page at `GRADIO_SERVER_NAME`, and at `GRADIO_SERVER_PORT` or else the first of
    `PORTS` that is free there.

    Args:
        blocks: The page.
        options: Of `Blocks.launch`, but for name and port.

    Raises:
        NoPort: None can be had.
    """
    asked, name = os.environ.get("GRADIO_SERVER_PORT"), ipv6_name()
    name = name or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    address = name.strip("[]")
    # Where a port is lost to another process, Gradio 6.31 tries the same app at 99 more, 5 seconds
    # each, though its MCP server starts only once: each launch is for one port, and for options of
    # its own, which it changes.
    for port in [int(asked)] if asked else PORTS:
        if not can_listen(address, port):
            continue
        own = options | {"app_kwargs": dict(options.get("app_kwargs", {}))}
        try:
            blocks.launch(prevent_thread_lock=True, server_name=name, server_port=port, **own)
        except OSError as error:  # another process was faster
            if "empty port" not in str(error):
                raise
        else:
            return
    where = "" if address == "127.0.0.1" else f" at {address}, if this machine has that address"
    raise NoPort(
        f"Port {asked or f'{PORTS[0]} and those after it'} can't be had{where}: stop what runs "
        "there, or choose another one: GRADIO_SERVER_PORT=7960 python app.py"
    )


def serve(blocks: gr.Blocks, sweep: Callable[[], None], **options: Any) -> NoReturn:
    """Serves a page until SIGINT, SIGTERM or SIGHUP, of those that are not ignored; then ends the
    process within five seconds, with 128 and the signal's number.

    Running clips are cancelled, and leave no files.

    Args:
        blocks: The page.
        sweep: Called now and every hour.
        options: Of `launch`.

    Raises:
        NoPort: No port can be had.
    """
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)

    for name in ENDING:
        number = getattr(signal, name, None)
        # What `nohup` or a shell's background ignores stays ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    launch(blocks, **options)
    swept = -SWEEP_EVERY
    while not received:
        if time.monotonic() - swept >= SWEEP_EVERY:
            Thread(target=sweep, daemon=True).start()
            swept = time.monotonic()
        time.sleep(0.1)
    stop_all(FOR_RUNS)
    closing = Thread(target=blocks.close, daemon=True)
    closing.start()
    closing.join(FOR_CONNECTIONS)
    sys.stdout.flush()
    # Threads that still compute, or wait for a client, would keep the process.
    os._exit(128 + received[0])
