"""Proxies that the environment names, made harmless to a page that has to reach itself."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::")
PROXIES = ("all_proxy", "http_proxy", "https_proxy")


def reach_localhost() -> None:
    """Lets the page reach itself, which Gradio and the MCP server do, wherever proxies are set.

    Proxies that its HTTP client can't use would end the import of Gradio. They are left out, with a
    line on stderr.
    """
    for name in ("no_proxy", "NO_PROXY"):
        kept = [host for host in os.environ.get(name, "").split(",") if host.strip()]
        os.environ[name] = ",".join([*kept, *(host for host in LOCAL if host not in kept)])
    usable = ("http", "https", *(("socks5", "socks5h") if find_spec("socksio") else ()))
    for name in (*PROXIES, *(name.upper() for name in PROXIES)):
        scheme = os.environ.get(name, "").partition("://")[0]
        if "://" in os.environ.get(name, "") and scheme.lower() not in usable:
            del os.environ[name]
            print(
                f"The proxy in {name} is left out: the page can't use {scheme}; for SOCKS 5, "
                "pip install socksio.",
                file=sys.stderr,
            )
