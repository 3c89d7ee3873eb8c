"""Two hosts that train together, each with one process; both of them are this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import psutil
from paths import ROOT
from ports import free_port


def start(
    command: Sequence[str], said: IO | int = subprocess.PIPE, **environment: str
) -> subprocess.Popen:
    """A process of a host.

    Args:
        command: What Python is given.
        said: Where its words go, those of both kinds.
    """
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=said,
        stderr=said,
        text=True,
    )


@contextmanager
def two_hosts(command: Callable[[int], Sequence[str]]) -> Iterator[list[subprocess.Popen]]:
    """Hosts without a launcher: nobody looks after either.

    Args:
        command: What Python is given, by the number of the host.
    """
    port = free_port()
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    with killed_at_the_end() as hosts:
        for rank in range(2):
            hosts.append(start(command(rank), **group, RANK=str(rank), LOCAL_RANK="0"))
        yield hosts


@contextmanager
def killed_at_the_end() -> Iterator[list[subprocess.Popen]]:
    """A list whose processes end with it."""
    hosts: list[subprocess.Popen] = []
    try:
        yield hosts
    finally:
        for host in hosts:
            kill(host)


def kill(host: subprocess.Popen) -> None:
    """Kills a host: its process with all that it has started, which the launcher puts into groups
    of their own."""
    if host.poll() is None:
        family = psutil.Process(host.pid)
        for process in (family, *family.children(recursive=True)):
            process.kill()
    host.wait()
