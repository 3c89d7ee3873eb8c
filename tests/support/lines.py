"""A connection that can be cut: what a browser in a tunnel sees."""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Lock, Thread
from urllib.parse import urlsplit


class Line:
    """Passes connections on to a server until it is cut, and again once it is mended.

    Args:
        url: The server's address.

    Attributes:
        url: Where it is reached through the line.
    """

    def __init__(self, url: str) -> None:
        self._server = ("127.0.0.1", urlsplit(url).port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock, self._cut = Lock(), False
        self._open: list[socket.socket] = []
        Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends all connections, and refuses new ones."""
        with self._lock:
            self._cut = True
            ends, self._open = self._open, []
        for end in ends:
            _close(end)

    def mend(self) -> None:
        """New connections are passed on again."""
        with self._lock:
            self._cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                with self._lock:
                    cut = self._cut
                    self._open += [] if cut else [client, server]
                for source, target in ((client, server), (server, client)):
                    if cut:
                        _close(source)
                    else:
                        Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    _close(source)
    _close(target)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
