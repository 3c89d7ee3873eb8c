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


def ipv6_name() -> str | None:
    """The IPv6 address that `GRADIO_SERVER_NAME` asks for, as `launch` takes it; None where it asks
    for none."""
    asked = os.environ.get("GRADIO_SERVER_NAME", "")
    if ":" not in asked:
        return None
    # Gradio 6.31 looks for a free port at the variable's address as if that were an IPv4 one.
    del os.environ["GRADIO_SERVER_NAME"]
    return f"[{asked.strip('[]')}]"


def find_port(address: str | None) -> int:
    """The first free port at an address, of those that Gradio looks at, from 7860 on.

    Gradio 6.31 looks at 127.0.0.1 whatever the address is, and tries to serve where that is free.
    Where it fails, the page's tools (MCP) have been started, which they can be once: all further
    ports fail too, after five seconds each.

    Args:
        address: Where the page is served, as `launch` takes it; None for this machine alone.

    Raises:
        OSError: None of them can be had.
    """
    # Here, since Gradio reads the variables that `ipv6_name` changes when this is imported.
    from gradio import http_server

    host = (address or http_server.LOCALHOST_NAME).strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason: OSError | None = None
    first = http_server.INITIAL_PORT_VALUE
    for port in range(first, first + http_server.TRY_NUM_PORTS):
        try:
            with socket.create_server((host, port), family=family):
                return port
        except OSError as error:
            reason = error
    raise OSError(f"There is no empty port at {host}: {reason}")


def serve(blocks: gr.Blocks, sweep: Callable[[], None], **options: Any) -> NoReturn:
    """Serves a page until SIGINT, SIGTERM or SIGHUP, of those that are not ignored; then ends the
    process within five seconds, with 128 and the signal's number.

    Running clips are cancelled, and leave no files.

    Args:
        blocks: The page.
        sweep: Called now and every hour.
        options: Of `launch`.

    Raises:
        OSError: The port can't be had.
    """
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)

    for name in ENDING:
        number = getattr(signal, name, None)
        # What `nohup` or a shell's background ignores stays ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    blocks.launch(prevent_thread_lock=True, **options)
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
