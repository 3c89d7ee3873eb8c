"""Ports for the servers of tests."""

from __future__ import annotations

import socket


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nothing listens at, of those that the system gives to whoever asks for any.

    Two processes that ask at once get two, which counting up from one number would not do.
    """
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as found:
        found.bind((address, 0))
        return found.getsockname()[1]
